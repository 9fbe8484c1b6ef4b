"""CIFAR: four layouts give the same images; bad files are refused; augmentation is what it says."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from shared import cifar, sources


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-cache"))
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    cifar._decode.cache_clear()


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write_archive(root: Path, name: str, n: int, layout: str) -> Path:
    """Made-up images in the layout of an archive, `python` or `binary`, below `root`."""
    folder, g = root / name, stream()
    folder.mkdir()
    for part in ("train", "test"):
        data, stems = cifar.sample(name, n, g), cifar._STEMS[name, part]
        for stem, rows in zip(stems, torch.arange(n).tensor_split(len(stems))):
            pixels, labels = data.images[rows].flatten(1), data.labels[rows]
            if layout == "python":
                key = b"labels" if name == "cifar10" else b"fine_labels"
                content = {b"data": pixels.numpy(), key: labels.tolist()}
                (folder / stem).write_bytes(pickle.dumps(content, protocol=2))
                continue
            head = labels[:, None].to(torch.uint8)
            if name == "cifar100":
                head = torch.cat([head // 5, head], dim=1)  # a coarse label, which is not read
            torch.cat([head, pixels], dim=1).numpy().tofile(folder / f"{stem}.bin")
    return folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("layout", ["parquet", "python", "binary"])
def test_layouts_give_the_same_images(name, layout, tmp_path):
    if layout == "parquet":
        cifar.write_sample(tmp_path, name, 110, stream())
    else:
        write_archive(tmp_path, name, 110, layout)
    with sources.recording() as log:
        parts = cifar.load(name)
    g = stream()
    for part in ("train", "test"):
        made = cifar.sample(name, 110, g)
        assert (
            torch.equal(parts[part].images, made.images) and parts[part].images.dtype == torch.uint8
        )
        assert (
            torch.equal(parts[part].labels, made.labels) and parts[part].labels.dtype == torch.int64
        )
    assert len(torch.cat([parts["train"].ids, parts["test"].ids]).unique()) == 220
    assert len(log) == (7 if name == "cifar10" and layout != "parquet" else 3)  # and decoded
    with sources.recording() as second:
        cifar.load(name)
    assert second == log  # also where the images come from memory
    cifar._decode.cache_clear()
    assert torch.equal(
        cifar.load(name)["test"].images, parts["test"].images
    )  # and from the cache on disk


def test_archive_folder_inside(tmp_path):
    folder = write_archive(tmp_path, "cifar10", 10, "binary")
    (folder / "cifar-10-batches-bin").mkdir()
    for path in list(folder.glob("*.bin")):
        path.rename(folder / "cifar-10-batches-bin" / path.name)
    assert len(cifar.load("cifar10")["train"]) == 10


def test_hub_layout(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = cifar.write_sample(tmp_path / "elsewhere", "cifar100", 5, stream())
    local = {part: str(folder / f"{part}.parquet") for part in ("train", "test")}
    real = datasets.load_dataset

    def load_dataset(name, config, split):
        assert (name, config) == ("uoft-cs/cifar100", None)
        data = real("parquet", data_files=local, split=split, cache_dir=str(tmp_path / "arrow"))
        return data.cast_column("img", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    got = cifar.load("cifar100")["train"]
    assert torch.equal(got.images, cifar.sample("cifar100", 5, stream()).images)


def test_real_files(repro_data, monkeypatch):
    """Decodes the 10,000 test images only: the training file takes five times as long."""
    images, labels = cifar._read("cifar10", repro_data / "cifar10" / "test.parquet")
    assert images.shape == (10000, 3, 32, 32) and torch.bincount(labels).tolist() == [1000] * 10
    plain = cifar.normalise(images)
    assert (
        plain.mean((0, 2, 3)).abs().max() < 0.05 and (plain.std((0, 2, 3)) - 1).abs().max() < 0.05
    )


# --- bad input


def test_broken_files_are_refused(tmp_path):
    folder = write_archive(tmp_path, "cifar10", 10, "binary")
    path = folder / "test_batch.bin"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(ValueError, match=r"test_batch.bin: 30729 bytes are not whole rows of 3073"):
        cifar.load("cifar10")
    path.write_bytes(raw[: 3073 * 2] + b"\x0a" + raw[3073 * 2 + 1 :])
    with pytest.raises(ValueError, match=r"row 2: label 10, expected 0 to 9"):
        cifar.load("cifar10")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"test_batch.bin: no rows"):
        cifar.load("cifar10")
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(sources.MissingInput, match=r"lacks data_batch_3.bin"):
        cifar.load("cifar10")


def test_pickles_that_hold_more_than_arrays_are_refused(tmp_path):
    folder = write_archive(tmp_path, "cifar100", 4, "python")

    class Evil:
        def __reduce__(self):
            return (print, ("owned",))

    (folder / "train").write_bytes(pickle.dumps({b"data": Evil(), b"fine_labels": []}))
    with pytest.raises(ValueError, match=r"refuses to load builtins.print"):
        cifar.load("cifar100")


def test_wrong_columns_and_broken_images(tmp_path):
    import pandas

    (tmp_path / "cifar10").mkdir()
    for part in ("train", "test"):
        pandas.DataFrame({"img": [{"bytes": b"xx"}], "label": [0]}).to_parquet(
            tmp_path / "cifar10" / f"{part}.parquet"
        )
    with pytest.raises(ValueError, match=r"train.parquet row 0: not a readable image"):
        cifar.load("cifar10")
    pandas.DataFrame({"img": [{"bytes": b"xx"}], "coarse": [0]}).to_parquet(
        tmp_path / "cifar10" / "train.parquet"
    )
    with pytest.raises(
        ValueError, match=r"row 0: needs columns img and label; columns: img, coarse"
    ):
        cifar.load("cifar10")


def test_missing_data_say_what_to_do(tmp_path):
    with pytest.raises(
        ValueError, match="unknown data set 'cifar'; choose one of: cifar10, cifar100"
    ):
        cifar.load("cifar")
    with pytest.raises(
        sources.MissingInput, match=r"(?s)'cifar100' are missing.*uoft-cs/cifar100.*fetch:"
    ):
        cifar.load("cifar100")
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(
        sources.MissingInput, match=r"(?s)no files of part 'train' in .*there: nothing.*fetch:"
    ):
        cifar.load("cifar10")


# --- augmentation


def test_crop_moves_whole_images():
    images = torch.arange(1, 3 * 32 * 32 * 4 + 1).reshape(4, 3, 32, 32).float()
    cropped = cifar.random_crop(images, stream(), padding=2)
    padded = torch.nn.functional.pad(images, [2] * 4)
    for image, source in zip(cropped, padded):
        windows = [source[:, i : i + 32, j : j + 32] for i in range(5) for j in range(5)]
        assert sum(torch.equal(image, window) for window in windows) == 1
    many = cifar.random_crop(torch.ones(2000, 1, 4, 4), stream(), padding=1)
    assert len({tuple(image.flatten().tolist()) for image in many}) == 9  # every shift occurs
    assert torch.equal(cifar.random_crop(images, stream(), padding=0), images)


def test_flip_mirrors_half():
    images = torch.arange(6.0).reshape(1, 1, 2, 3).repeat(1000, 1, 1, 1)
    flipped = cifar.random_flip(images, stream())
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (
        torch.equal(mirrored, ~(flipped == images).flatten(1).all(1)) and 430 < mirrored.sum() < 570
    )


def test_cutout_hides_one_square():
    cut = cifar.cutout(torch.ones(500, 3, 32, 32), stream(), length=16)
    hidden = (cut == 0).flatten(1).sum(1) // 3
    assert hidden.max() == 256 and hidden.min() >= 64 and hidden.unique().numel() > 10
    assert torch.equal(cut[:, 0], cut[:, 2])
    rows, columns = (cut[0, 0] == 0).any(1), (cut[0, 0] == 0).any(0)
    assert rows.sum() * columns.sum() == hidden[0]  # a rectangle


def test_augmentation_is_drawn_by_its_generator_alone():
    images = cifar.sample("cifar10", 16, stream()).images

    def augmented(seed):
        g = stream(seed)
        whole = cifar.random_flip(cifar.random_crop(images, g, 4), g)
        return cifar.cutout(cifar.normalise(whole), g, 8)

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = augmented(3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, augmented(3)) and not torch.equal(first, augmented(4))
    assert first.dtype == torch.float32 and first.shape == images.shape
    scaled = (images[0, 1, 2, 3].item() / 255 - 0.4822) / 0.2435
    assert np.isclose(cifar.normalise(images)[0, 1, 2, 3].item(), scaled, atol=1e-5)
