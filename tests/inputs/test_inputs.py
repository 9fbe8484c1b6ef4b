"""What people's files do: each kind of fault or habit, tried on every loader that can meet it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import loaders
import numpy as np
import pyarrow
import pytest
from loaders import LOADERS, Loader, objects, put, put_table
from PIL import Image

from benchmarks import pool
from dasgm import tables as cells
from shared import bundled, glue, inputs, pictures, sources
from shared.protocol import BadInput
from shared.sources import MissingInput

ROOT = Path(__file__).resolve().parents[2]


def of(*kinds: str) -> pytest.MarkDecorator:
    """All loaders whose file is of one of these kinds."""
    chosen = [loader for loader in LOADERS.values() if loader.kind in kinds]
    return pytest.mark.parametrize("loader", chosen, ids=lambda loader: loader.name)


EVERY = of(*{loader.kind for loader in LOADERS.values()})
TEXTS = of("text", "gzip", "json")


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    """Data of the test's own; no hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("HF_HOME", "REPRO_CACHE", "REPRO_DATA"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "REPRO_DATA").mkdir()
    monkeypatch.setattr(cells, "NASBENCH_CELLS", 125)


@pytest.fixture
def data(tmp_path) -> Path:
    return tmp_path / "REPRO_DATA"


def content(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw


def rewrite(path: Path, raw: bytes) -> None:
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def refused(loader: Loader, name: str) -> str:
    """The message with which the loader refuses its input; it names the file and a remedy."""
    with pytest.raises(BadInput) as error:
        loader.read()
    assert name in str(error.value) and "Remedy" in str(error.value)
    return str(error.value)


# --- whole files ---------------------------------------------------------------------------------


@EVERY
def test_every_file_that_is_read_is_hashed(loader, data):
    loader.write(data)
    path = data / loader.file
    with sources.recording() as log:
        good = loader.read()
    if loader.kind != "image":
        hashes = {entry["path"]: entry["sha256"] for entry in log.values()}
        assert hashes[f"REPRO_DATA/{loader.file}"] == hashlib.sha256(path.read_bytes()).hexdigest()
        return
    path.write_bytes(path.read_bytes() + b"\0")  # the same picture
    with sources.recording() as other:
        assert loader.read() == good
    assert log != other and log.keys() == other.keys()


@EVERY
@pytest.mark.parametrize("fault", [
    b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    b"<!DOCTYPE html><html><body>404</body></html>",
], ids=["empty", "pointer", "web page"])  # fmt: skip
def test_what_stands_in_place_of_a_file_is_refused(loader, fault, data):
    loader.write(data)
    (data / loader.file).write_bytes(fault)
    refused(loader, Path(loader.file).name)


@EVERY
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(loader, make, data):
    loader.write(data)
    (data / loader.file).unlink()
    make(data / loader.file)
    with pytest.raises((BadInput, MissingInput), match=r"a pipe or a device|lacks data_batch_2"):
        loader.read()


@of("gzip", "json", "parquet", "arrow", "pickle", "binary")
@pytest.mark.parametrize("share", [0.49, 0.97])
def test_a_file_cut_short_is_refused(loader, share, data):
    loader.write(data)
    path = data / loader.file
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(loader, "" if "imagenet" in loader.name else path.name)


@of("text", "gzip", "json", "parquet", "arrow", "pickle", "binary")
def test_a_file_that_is_not_there_is_missing(loader, data, monkeypatch):
    loader.write(data)
    (data / loader.file).unlink()
    if loader.name == "english":  # the bundled corpus takes its place
        monkeypatch.setattr(bundled, "documentation_texts", lambda: ["bundled"])
        assert loader.read() == ["bundled"]
        return
    with pytest.raises(MissingInput, match=r"remedy|fetch|see the layouts"):
        loader.read()


@EVERY
def test_a_folder_in_place_of_a_file_is_refused(loader, data):
    loader.write(data)
    (data / loader.file).unlink()
    (data / loader.file).mkdir()
    with pytest.raises((BadInput, MissingInput)):
        loader.read()


# --- text ----------------------------------------------------------------------------------------


@TEXTS
@pytest.mark.parametrize("change", [
    lambda raw: b"\xef\xbb\xbf" + raw, lambda raw: b"\xef\xbb\xbf" * 2 + raw,
    lambda raw: raw + b"\n\xef\xbb\xbf\n", lambda raw: raw.replace(b"\n", b"\r\n"),
    lambda raw: raw + b"\n", lambda raw: raw + b" \r\n\n", lambda raw: raw.removesuffix(b"\n"),
], ids=["byte-order mark", "two marks", "a mark alone", "CRLF", "blank end", "blank lines",
        "no last line feed"])  # fmt: skip
def test_marks_and_blank_lines_change_nothing(loader, change, data):
    loader.write(data)
    good, path = loader.read(), data / loader.file
    rewrite(path, change(content(path)))
    assert loader.read() == good


@pytest.mark.parametrize("loader, mark", [
    (loader, mark) for loader in LOADERS.values() if loader.word
    for mark in ("\x85", "\u2028", "\x0b", "\x0c", "\x1c")
    if mark > " " or "json" not in loader.file
], ids=lambda value: value.name if isinstance(value, Loader) else ascii(value))  # fmt: skip
def test_a_line_ends_at_a_line_feed_alone(loader, mark, data):
    loader.write(data)
    good, word = json.dumps(loader.read(), ensure_ascii=False), loader.word
    for path in data.rglob("*.*"):
        if path.is_file():
            rewrite(path, content(path).replace(word.encode(), f"r{mark}d".encode()))
    inside = json.dumps(f"r{mark}d", ensure_ascii=False).strip('"')
    assert json.dumps(loader.read(), ensure_ascii=False) == good.replace(word, inside)


@TEXTS
def test_a_wrong_byte_is_refused_with_its_row(loader, data):
    loader.write(data)
    path = data / loader.file
    first, rest = content(path).split(b"\n", 1) if loader.kind != "json" else (b"", b"{\xe9}")
    rewrite(path, first + b"\n" + rest.replace(b"e", b"\xe9", 1))
    assert f"{path} row 2: byte 0xe9" in refused(loader, path.name)


@TEXTS
@pytest.mark.parametrize("change, said", [
    (lambda raw: raw[:3] + b"\0" + raw[3:], "row 1: a NUL"),
    (lambda raw: raw + bytes(99), "a NUL"),
    (lambda raw: raw.decode().encode("utf-16-le"), "row 1: a NUL"),
    (lambda raw: b" \n\n", "no rows"),
], ids=["NUL", "zeros at the end", "UTF-16", "blank"])  # fmt: skip
def test_what_is_no_text_is_refused(loader, change, said, data):
    loader.write(data)
    path = data / loader.file
    rewrite(path, change(content(path)))
    assert said in refused(loader, path.name)


@of("text", "gzip")
def test_lines_that_end_at_carriage_returns_are_refused(loader, data):
    loader.write(data)
    path = data / loader.file
    rewrite(path, content(path).replace(b"\n", b"\r"))
    refused(loader, path.name)


@pytest.mark.parametrize("name", ["super_glue", "bionlp", "webnlg", "dart", "tap", "c4", "english"])
def test_half_of_a_pair_of_surrogates_is_no_text(name, data):
    LOADERS[name].write(data)
    path = data / LOADERS[name].file
    rewrite(path, content(path).replace(b"red", b"\\ud83d\\ude00", 1))
    assert "\U0001f600" in json.dumps(LOADERS[name].read(), ensure_ascii=False)
    rewrite(path, content(path).replace(b"\\ude00", b""))
    assert "surrogates not allowed" in refused(LOADERS[name], path.name)


def test_another_encoding_and_a_plain_file_called_gz(data):
    put(data, "text/english.jsonl.gz", "")
    path = data / "text/english.jsonl.gz"
    path.write_bytes(objects({"text": "plain"}).encode())
    assert LOADERS["english"].read() == ["plain"]
    path.write_bytes(objects({"text": "plain"}).encode("utf-16"))
    assert "row 1: byte 0xff" in refused(LOADERS["english"], path.name)


# --- families of files ---------------------------------------------------------------------------

FAMILIES = ("glue parquet", "glue arrow", "cifar parquet", "tap parquet", "imagenet of mlo_mae",
            "imagenet of dasgm", "c4")  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("numbers, said", [
    ("0/3 2/3", "missing: 00001"), ("1/2", "missing: 00000"), ("0/2 1/2 0/1", "more than one copy"),
    ("0/1 1/1", "beyond the 1 files"), ("0/12", "missing: 00001, 00002, .* and 6 more"),
    ("0/1 0/1-0123456789abcdef", "more than one copy"), ("0/1", ""), ("1/2 0/2", ""),
    ("0/2 1/3", "more than one copy"), ("0/99999999999", "and 99999999993 more"),
])  # fmt: skip
def test_a_family_of_files_is_whole(name, numbers, said, data):
    loader = LOADERS[name]
    loader.write(data)
    path = data / loader.file
    raw = path.read_bytes()
    path.unlink()
    base, end = path.name.split("00000-of-00001") if "of" in path.name else ("train-", ".parquet")
    for number in numbers.split():
        index, count = number.split("/")
        count, _, mark = count.partition("-")
        member = f"{int(index):05d}-of-{int(count):05d}" + (f"-{mark}" if mark else "")
        (path.parent / f"{base}{member}{end}").write_bytes(raw)
    if said:
        with pytest.raises(BadInput, match=said):
            loader.read()
    else:
        loader.read()


@pytest.mark.parametrize("names, said", [
    (["train.parquet", "train-00000-of-00001.parquet"], "more than one copy"),
    (["a/train.parquet", "b/train.parquet"], "more than one copy"),
    (["train/0000.parquet", "train/0002.parquet"], "missing: 00001"),
    (["train/0000.parquet", "train/0001.parquet"], ""),
    (["train/data-00000-of-00001.arrow", "train/cache-0123.arrow"], ""),
    (["train-00000-of-00001-0123456789abcdef.parquet", "training.parquet"], ""),
])  # fmt: skip
def test_layouts_of_the_hub(names, said, data):
    for name in names:
        put_table(data, f"glue/RTE/{name}", {**loaders.PAIRS, "label": [0, 1]})
    if said:
        with pytest.raises(BadInput, match=said):
            glue.load("rte", ("train",))
    else:
        count = 2 if "cache" in names[-1] or "training" in names[-1] else 2 * len(names)
        assert len(glue.load("rte", ("train",))["train"]) == count


# --- what else lies in folders -------------------------------------------------------------------


@EVERY
def test_hidden_files_are_skipped(loader, data):
    loader.write(data)
    good, path = loader.read(), data / loader.file
    for folder in (path.parent, path.parent.parent):
        if folder in (data, data.parent):
            continue
        for name in (".DS_Store", f"._{path.name}", ".ipynb_checkpoints/x", "__MACOSX/x", ".git/x"):
            copy = folder / name.replace("/x", f"/{path.name}")
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(b"junk")
    assert loader.read() == good


@of("image")
def test_other_files_among_images(loader, data, capsys):
    loader.write(data)
    path = data / loader.file
    good = loader.read()
    for name in ("Thumbs.db", "list.txt", "._1.png", "../2.png"):
        (path.parent / name).write_bytes(b"junk")
    assert loader.read() == good
    said = capsys.readouterr().out
    assert "3 files of" in said and "1 hidden entries of" in said
    (path.parent / "more").mkdir()
    assert "a folder inside a class" in refused(loader, "more")
    (path.parent / "more").rmdir()
    (path.parent.parent / "empty").mkdir()
    assert "class empty has no images" in refused(loader, "train")
    (path.parent.parent / "empty" / "._1.png").write_bytes(b"junk")
    assert "class empty has no images" in refused(loader, "train")


@pytest.mark.parametrize("make, value", [
    (lambda: Image.fromarray(np.full((8, 8), 0x8080, np.uint16)), 128),
    (lambda: Image.new("L", (8, 8), 77), 77), (lambda: Image.new("1", (8, 8), 1), 255),
    (lambda: Image.new("RGBA", (8, 8), (9, 9, 9, 255)), 9), (lambda: Image.new("LA", (8, 8), 9), 9),
    (lambda: Image.new("P", (8, 8)), 0),
], ids=["16 bits", "grey", "bilevel", "RGBA", "grey alpha", "palette"])  # fmt: skip
def test_images_of_any_depth(make, value, tmp_path):
    path = tmp_path / "x.png"
    make().save(path)
    assert np.asarray(pictures.rgb(path, "x")).tolist() == [[[value] * 3] * 8] * 8
    with pytest.raises(BadInput, match=r"x: grey levels .* Remedy"):
        Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "x.tiff")
        pictures.rgb(tmp_path / "x.tiff", "x")


def frames(kind: str) -> bytes:
    buffer, image = io.BytesIO(), Image.new("RGB", (8, 8))
    image.save(buffer, kind, save_all=True, append_images=[Image.new("RGB", (8, 8), (9, 9, 9))])
    return buffer.getvalue()


def large_comment() -> bytes:
    """A PNG whose comment unpacks to 100 MB."""
    body = b"zTXtk\0\0" + zlib.compress(bytes(10**8))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    raw = loaders.picture(9)
    return raw[:33] + chunk + raw[33:]


@pytest.mark.parametrize("content, said", [
    (frames("GIF"), "several pictures"), (frames("PNG"), "several pictures"),
    (frames("TIFF"), "several pictures"), (frames("WEBP"), "several pictures"),
    (large_comment(), "too large"), (b"RIFF\x24\0\0\0WAVEfmt " + bytes(99), "cannot identify"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "cannot identify"),
    (loaders.picture(9)[:60], ""), (b"<svg/>", "cannot identify"),
], ids=["GIF", "APNG", "TIFF", "WebP", "comment", "sound", "program", "cut", "SVG"])  # fmt: skip
def test_what_is_no_single_image_is_refused(content, said, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    for source in (tmp_path / "x.png", {"bytes": content}):
        with pytest.raises(BadInput, match=f"^x: not a readable image .*{said}.* Remedy"):
            pictures.rgb(source, "x")


def test_the_jpeg_of_a_camera_holds_a_preview(tmp_path):
    Image.new("RGB", (8, 8)).save(
        tmp_path / "x.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))]
    )
    assert pictures.rgb(tmp_path / "x.jpg", "x").size == (8, 8)


@pytest.mark.parametrize("change", [
    {b"labels": [3.7, 4.2]}, {b"labels": ["3", "4"]}, {b"labels": [True, False]},
    {b"labels": [[3], [4]]}, {b"labels": [3, float("nan")]}, {b"labels": []},
    {b"data": np.full((2, 3072), 0.5)}, {b"data": np.full((2, 3072), 256)},
    {b"data": np.full((2, 3072), -1)}, {b"data": np.zeros((0, 3072), np.uint8)},
], ids=str)  # fmt: skip
def test_a_batch_of_other_numbers_is_refused(change, data):
    loader = LOADERS["cifar python"]
    loader.write(data)
    batch = {b"data": np.full((2, 3072), 7, np.uint8), b"labels": [3, 4]}
    (data / loader.file).write_bytes(pickle.dumps(batch | change))
    refused(loader, "data_batch_2")


# --- rows and labels -----------------------------------------------------------------------------

JSONL = "tap/imdb/train.jsonl"
HEADER = "index\tsentence1\tsentence2\tlabel\n"
CSV = "smiles,BBBP\n"
BIO = "bionlp2004/dataset/train.json"


def tagged(tokens: object, tags: object) -> str:
    return objects({"tokens": tokens, "tags": tags})


@pytest.mark.parametrize("name, file, text, said", [
    ("glue tsv", "glue/RTE/dev.tsv", HEADER + "0\ta\tb\t-1\n", "row 2: label '-1' .*test part"),
    ("glue tsv", "glue/RTE/dev.tsv", HEADER + "0\ta\tb\tmaybe\n", "row 2: label 'maybe'"),
    ("glue tsv", "glue/RTE/dev.tsv", HEADER + "0\ta\tb\n", "row 2: 3 columns, expected 4"),
    ("glue tsv", "glue/RTE/dev.tsv", HEADER + "0\ta\tb\t0\tx\n", "row 2: 5 columns, expected 4"),
    ("glue tsv", "glue/RTE/dev.tsv", HEADER + "\n0\t\tb\t0\n", "row 3: column 'sentence1' is empt"),
    ("glue tsv", "glue/RTE/dev.tsv", "sentence1\tsentence2\tlabel\tlabel\na\tb\t0\t1\n",
     "row 1: column 'label' is there twice"),
    ("glue tsv", "glue/RTE/dev.tsv", HEADER + "0\ta\tb\t" + "9" * 5000, "row 2: label '999"),
    ("glue tsv", "glue/RTE/dev.tsv", HEADER + "0\ta\tb\t1.0", "row 2: label '1.0'"),
    ("glue tsv", "glue/RTE/dev.tsv", HEADER + "0\ta\tb\t\u0661", "row 2: label"),
    ("glue tsv", "glue/RTE/dev.tsv", HEADER + "0\ta\tb\t0\n" + HEADER, "row 3: label 'label'"),
    ("mrpc", "glue/MRPC/msr_paraphrase_train.txt", "1\t11\t12\ta\tb\n0\t21\t22\tc\td\n",
     "row 2: no column '#1 ID'"),
    ("super_glue", "super_glue/CB/val.jsonl", '{"premise": "a", "premise": "b", "label": 0}',
     "row 1: .*'premise' is there twice"),
    ("super_glue", "super_glue/CB/val.jsonl", '{"premise": 5, "hypothesis": "b", "label": 0}',
     "row 1: column 'premise' holds 5"),
    ("super_glue", "super_glue/CB/val.jsonl", '["a"]', r"row 1: '\[\"a\"\]' is not a JSON object"),
    ("super_glue", "super_glue/CB/val.jsonl", "[" * 100_000, "row 1: not JSON"),
    ("super_glue", "super_glue/CB/val.jsonl",
     '{"premise": "a", "hypothesis": "b", "label": NaN}', "row 1: label 'nan'"),
    ("tap", JSONL, '{"text": "a", "label": -1}', "row 1: label -1 is not one of the 2"),
    ("tap", JSONL, '{"text": "a", "label": 2}', "row 1: label 2 is not one of the 2"),
    ("tap", JSONL, '{"text": null, "label": 1}', "row 1: column 'text' is empty"),
    ("tap", JSONL, '{"text": "a", "label": 1.5}', "row 1: label 1.5"),
    ("tap", JSONL, '{"text": "a", "label": "' + "9" * 5000 + '"}', "row 1: label"),
    ("tap", JSONL, '{"text": "a", "label": true}', "row 1: label True"),
    ("iob", "bioner/NCBI-disease-IOB/test.tsv", "a\tO\n\nb\tI-X\n", "row 3: tag 'I-X'"),
    ("iob", "bioner/NCBI-disease-IOB/train.tsv", "a\tB-\n", "row 1: expected 'token TAB"),
    ("iob", "bioner/NCBI-disease-IOB/train.tsv", "a\tO\nb O\n", "row 2: expected 'token TAB"),
    ("bionlp", BIO, tagged(["a", "b"], [0]), "row 1: tokens .* of one length"),
    ("bionlp", BIO, tagged(["a"], [-1]), "row 1: tag -1, expected 0 to 10"),
    ("bionlp", BIO, tagged(["a"], [11]), "row 1: tag 11, expected 0 to 10"),
    ("bionlp", BIO, tagged([None], [0]), "row 1: tokens"),
    ("bionlp", BIO, tagged("a", "0"), "row 1: tokens"),
    ("e2e", "nlg/e2e/train.txt", "a||b\nname : Aromi\n", "row 2: expected 'meaning"),
    ("e2e", "nlg/e2e/train.txt", "name : Aromi|| \n", "row 1: expected 'meaning"),
    ("webnlg", "nlg/webnlg/train.json", '{"entries": [{"1": {}}]}', "entry 1: not triples"),
    ("dart", "nlg/dart/dart-v1.1.1-full-train.json", '[{"tripleset": [["a"]]}]', "entry 1: not tr"),
    ("dart", "nlg/dart/dart-v1.1.1-full-train.json", "[]", "no list of entries"),
    ("dart", "nlg/dart/dart-v1.1.1-full-train.json",
     '[{"tripleset": [["a", "b", "c"]], "annotations": []}]', "no rows"),
    ("iob", "bioner/NCBI-disease-IOB/train.tsv", "-DOCSTART-\tO\n\n", "no rows"),
    ("molecules", "molecules/BBBP.csv", CSV + "CCO,\nCC,-1\n", "no row has a label"),
    ("molecules", "molecules/BBBP.csv", CSV, "lacks the columns"),
    ("molecules", "molecules/BBBP.csv", CSV + "CCO,2\n", "row 2, column 'BBBP': label '2'"),
    ("molecules", "molecules/BBBP.csv", CSV + "CCO,inf\n", "row 2, column 'BBBP': label 'inf'"),
    ("molecules", "molecules/BBBP.csv", CSV + "CCO,nan\n", "row 2, column 'BBBP': label 'nan'"),
    ("molecules", "molecules/BBBP.csv", CSV + "CCO\n", "row 2: 1 columns, expected 2"),
    ("molecules", "molecules/BBBP.csv", CSV + "CCO,1,1\n", "row 2: 3 columns, expected 2"),
    ("molecules", "molecules/BBBP.csv", "smiles,smiles\n", "row 1: column 'smiles' is there twice"),
    ("molecules", "molecules/BBBP.csv", CSV + "C" * 200_000 + ",1\n", "row 2: not CSV .*131072"),
    ("molecules", "molecules/BBBP.csv", CSV + '"CCO,1\nCC,0\n', "row 2: not CSV"),
    ("english", "text/english.jsonl.gz", '{"title": "x"}', "row 1: no column 'text'; columns: ti"),
    ("english", "text/english.jsonl.gz", "\n\n", "no rows"),
    ("c4", "c4/realnewslike/c4-train.00000-of-00001.json.gz", '{"text": []}', "row 1: column 'te"),
    ("cells", "nasbench201.csv.gz", "arch,x\na,1\n", "row 2: no column 'cifar10_test_200ep'"),
])  # fmt: skip
def test_a_bad_row_is_refused_with_its_place(name, file, text, said, data):
    loader = LOADERS[name]
    loader.write(data)
    put(data, file, text)
    with pytest.raises(BadInput, match=said) as error:
        loader.read()
    assert str(data / file) in str(error.value) and "Remedy" in str(error.value)


@pytest.mark.parametrize("line, said", [
    (",nan,1,1", "row 2: .*nan, expected 0 to 100"), (",101,1,1", "row 2: .*101"),
    (",,1,1", "row 2: could not convert"), ("", "row 2: 1 columns"), (None, "124 cells, expected"),
])  # fmt: skip
def test_the_table_of_cells_is_whole(line, said, data):
    header, first, *rest = loaders.cell_table().split("\n")
    own = [] if line is None else [first.split(",")[0] + line]
    put(data, "nasbench201.csv.gz", "\n".join([header, *own, *rest]))
    with pytest.raises(BadInput, match=said):
        loaders.read_cells()


@pytest.mark.parametrize("name, columns, said", [
    ("glue/RTE/train.parquet", {**loaders.PAIRS, "label": [0, -1]}, "row 1: label '-1'"),
    ("glue/RTE/train.parquet", {**loaders.PAIRS, "label": [0, None]}, "row 1: label 'None'"),
    ("glue/RTE/train.parquet", {**loaders.PAIRS, "label": [0, 2]}, "row 1: label '2'"),
    ("glue/RTE/train.parquet", {"label": [0]}, "row 0: no column 'sentence1'"),
    ("tap/imdb/train.parquet", {"text": ["a"], "label": [-1]}, "row 0: label -1"),
    ("tap/imdb/train.parquet", {"text": [None], "label": [1]}, "row 0: column 'text' is empty"),
    ("cifar10/train.parquet", {"label": [10]}, "row 0: label 10, expected 0 to 9"),
    ("cifar10/train.parquet", {"label": [None]}, "row 0: label None is not a whole number"),
    ("cifar10/train.parquet", {"label": [True]}, "row 0: label True is not a whole number"),
    ("glue/RTE/train.parquet", {**loaders.PAIRS, "label": [0.0, 1.0]}, "row 0: label '0.0'"),
    ("glue/RTE/train.parquet", {**loaders.PAIRS, "label": [0, 1], "sentence1": [b"a", b"b"]},
     "row 0: column 'sentence1' holds b'a'"),
    ("glue/RTE/train.parquet",
     {**loaders.PAIRS, "label": pyarrow.array([0, 10**18], pyarrow.timestamp("us"))},
     "cannot be read .*out of range"),
    ("imagenet/train.parquet", {"label": [-1]}, "row 0: label -1"),
    ("imagenet/train.parquet", {"label": [1]}, "no image of class 0"),
    ("imagenet/train.parquet", {"label": [0.5]}, "labels are not whole numbers"),
    ("imagenet/train.parquet", {"labels": [0]}, "no column 'label'"),
])  # fmt: skip
def test_a_bad_row_of_a_table_is_refused(name, columns, said, data):
    image = {"bytes": loaders.picture(9), "path": None}
    column = {"cifar10": "img", "imagenet": "image"}.get(name.split("/")[0])
    for part in ("train", "validation", "test"):
        given = {**({column: [image]} if column else {}), **columns}
        put_table(data, name.replace("train", part), given)
    own = {"glue": "glue parquet", "tap": "tap parquet", "cifar10": "cifar parquet"}
    for loader in (own.get(name.split("/")[0], "imagenet of mlo_mae"), "imagenet of dasgm"):
        with pytest.raises(BadInput, match=said):
            LOADERS[loader if column == "image" else own[name.split("/")[0]]].read()


@pytest.mark.parametrize("score", ["nan", "inf", "-1", "5.01", "", "four"])
def test_a_score_outside_its_range_is_refused(score, data):
    put(data, "glue/STS-B/dev.tsv", f"sentence1\tsentence2\tscore\na\tb\t3\na\tb\t{score}\n")
    with pytest.raises(BadInput, match=f"dev.tsv row 3: score '{score}' .*Remedy"):
        glue.load("stsb", ("validation",))
    put(data, "molecules/SAMPL.csv", f"smiles,expt\nCCO,3\nCCC,{score or 'x'}\n")
    if score in ("-1", "5.01"):
        return
    with pytest.raises(BadInput, match=r"SAMPL.csv row 3, column 'expt': label .*Remedy"):
        loaders.read_molecules("freesolv")


@pytest.mark.parametrize("task, row, said", [
    ("record", {"passage": {"text": "a", "entities": []}, "qas": [{"query": "q"}]}, "candidates"),
    ("record", {"passage": {"text": "a", "entities": [{"start": 5, "end": 6}]},
                "qas": [{"query": "q"}]}, "candidates"),
    ("record", {"passage": "a", "qas": [{"query": "q"}]}, "where record should have it"),
    ("multirc", {"passage": {"text": "a", "questions": ["q"]}}, "where multirc should have it"),
    ("multirc", {"paragraph": "a", "question": "b", "answer": "c", "label": 1}, "column 'idx'"),
    ("wsc", {"text": "a", "target": {"span1_text": "a"}, "label": True}, "no column 'span2_text'"),
    ("multirc", {"paragraph": "a", "question": "b", "answer": "c", "label": 1,
                 "idx": {"paragraph": [1], "question": 2}}, "column 'idx'"),
    ("multirc", {"paragraph": "a", "question": "b", "answer": "c", "label": 1, "idx": {}}, "'idx'"),
    *(("record", {"passage": "a", "query": "q", "entities": ["a"], "answers": ["a"]} | wrong,
       f"column '{next(iter(wrong))}'") for wrong in (
           {"answers": None}, {"answers": "abc"}, {"answers": [None]}, {"entities": 5})),
    ("record", {"passage": {"text": "a", "entities": [{"start": 0, "end": 0}]},
                "qas": [{"query": "q", "answers": [{"text": 5}]}]}, "column 'answers'"),
    ("wsc", {"text": "a", "target": 5, "label": True}, "where wsc should have it"),
    ("copa", {**dict.fromkeys(("premise", "question", "choice1", "choice2"), "a"), "label": 2},
     "label '2' is not one of"),
])  # fmt: skip
def test_a_bad_row_of_super_glue_is_refused(task, row, said, data):
    put(data, f"{glue.spec(task).folder}/train.jsonl", objects(row))
    with pytest.raises(BadInput, match=rf"train.jsonl row 1: .*{said}") as error:
        glue.load(task, ("train",))
    assert "Remedy" in str(error.value)


def test_long_fields_and_quotes_are_read(data):
    text = '"' + "wine " * 40_000 + "door"
    put(data, "glue/RTE/train.tsv", HEADER + f"0\t{text}\tb\t0\n")
    put(data, JSONL, objects(*loaders.POSTS, {"text": text, "label": 0}))
    put(data, "tap/imdb/test.jsonl", objects(*loaders.POSTS))
    assert glue.load("rte", ("train",))["train"].texts == [(text, "b")]
    assert text in LOADERS["tap"].read()[0]


# --- headers and layouts of the real downloads ---------------------------------------------------


@pytest.mark.parametrize("name, file, header, row, labels", [
    ("bbbp", "BBBP.csv", "num,name,p_np,smiles", "1,Propanolol,1,CCO", [1]),
    ("bbbp", "BBBP.csv", "BBBP,smiles", "0,CCO", [0]),
    ("bace", "bace.csv", "mol,CID,Class,Model,pIC50", "CCO,BACE_1,1,Train,9.15", [1]),
    ("clintox", "clintox.csv.gz", "smiles,FDA_APPROVED,CT_TOX", "CCO,1,0", [1, 0]),
    ("sider", "sider.csv.gz", 'smiles,"A, b",C', "CCO,1,0", [1, 0]),
    ("tox21", "tox21.csv", "NR-AR,NR-AR-LBD,NR-AhR,NR-Aromatase,NR-ER,NR-ER-LBD,NR-PPAR-gamma,"
     "SR-ARE,SR-ATAD5,SR-HSE,SR-MMP,SR-p53,mol_id,smiles", "0,0,1,,-1,0,0,1,0,0,0,0,TOX3021,CCO",
     [0, 0, 1, -9, -9, 0, 0, 1, 0, 0, 0, 0]),
    ("esol", "delaney-processed.csv", "Compound ID,ESOL predicted log solubility in mols per litre,"
     "measured log solubility in mols per litre,smiles", "Amigdalin,-0.974,-0.77,CCO", [-0.77]),
    ("lipophilicity", "Lipophilicity.csv", "CMPD_CHEMBLID,exp,smiles", "CHEMBL1,3.5,CCO", [3.5]),
    ("freesolv", "SAMPL.csv", "iupac,smiles,expt,calc", '"4-a, b",CCO,-11.01,-9.6', [-11.01]),
])  # fmt: skip
def test_headers_of_the_published_molecules(name, file, header, row, labels, data):
    put(data, f"molecules/{file}", f"{header}\n{row}\n")
    smiles, _, values = loaders.read_molecules(name)
    assert smiles == ["CCO"] and np.allclose(values, [labels])


def test_mrpc_as_its_authors_publish_it(data):
    loaders.mrpc(data)
    train, dev = loaders.texts_and_labels("mrpc")
    assert train == ([("red wine", "wine")], [1]) and dev == ([("old door", "new door")], [0])
    (data / "glue/MRPC/dev_ids.tsv").unlink()
    with pytest.raises(MissingInput, match=r"(?s)train and dev together.*dev_ids.tsv.*fetch:"):
        glue.load("mrpc")
    rows = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tred\twine\n"
    put(data, "glue/MRPC/msr_paraphrase_test.txt", rows)
    assert glue.load("mrpc", ("test",))["test"].texts == [("red", "wine")]


@pytest.mark.parametrize("line", ["-DOCSTART-\tO", "-DOCSTART- -X- -X- O", "###MEDLINE:9\tO"])
def test_lines_between_documents_are_no_sentences(line, data):
    loaders.ncbi(data)
    loaders.bionlp(data)
    good = [LOADERS[name].read() for name in ("iob", "bionlp")]
    put(data, LOADERS["iob"].file, f"{line}\n\n{loaders.TAGGED}\n{line}\n")
    mark = objects({"tokens": [line.split()[0]], "tags": [0]})
    put(data, BIO, mark + (data / BIO).read_text(encoding="utf-8") + mark)
    assert [LOADERS[name].read() for name in ("iob", "bionlp")] == good


# --- the command line and the judge --------------------------------------------------------------


@pytest.mark.parametrize("paper, name, task, arm, said", [
    ("autolora", "glue tsv", "rte", "uniform_2", r"train.tsv row 2: label '\\xe9' is not one of"),
    ("dasgm", "cifar python", "nasbench", "darts", "data_batch_2: not a batch of cifar10"),
    *(pytest.param(*rest, marks=pytest.mark.slow) for rest in (
        ("tapweight", "tap", "imdb", "ft", "train.jsonl row 1: not JSON"),
        ("weight_mixup", "glue parquet", "rte_300", "plain", "train-00000-of-00001.parquet: cut"),
        ("mlo_mae", "cifar parquet", "cifar10", "mae", "train.parquet: cut short"),
        ("ts_watermark", "english", "english", "kgw", "english.jsonl.gz row 5: cannot be read"),
    )),
])  # fmt: skip
def test_a_run_that_meets_a_bad_file_ends_with_status_2(paper, name, task, arm, said, data):
    """Also where the machine's language is none."""
    loader = LOADERS[name]
    loader.write(data)
    path = data / loader.file
    rows = {"glue tsv": HEADER + "0\ta\tb\t\xe9\n", "tap": "{\n"}
    raw = rows[name].encode() if name in rows else path.read_bytes()[:-9]
    path.write_bytes(b"\x80\x02}q\x00" if loader.kind == "pickle" else raw)
    scale = "paper" if paper == "tapweight" else "gpu"
    line = [sys.executable, "-m", f"{paper}.train", "--scale", scale, "--task", task, "--arm", arm]
    places = {"REPRO_DATA": str(data), "REPRO_RUNS": str(data / "runs")}
    language = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env = os.environ | places | language
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.search(rf"error: .*{said}", done.stderr), done.stderr


def test_the_judge_calls_such_a_run_refused(data, capsys):
    for loader in LOADERS.values():
        loader.write(data)
        (data / loader.file).write_bytes(b"")
        module = SimpleNamespace(Config=dict, run=lambda config, loader=loader: loader.read())
        status, detail = pool.attempt(module, {})
        assert status == "refused" and Path(loader.file).name in detail, loader.name
        shutil.rmtree(data)
        data.mkdir()
    assert "Traceback" not in capsys.readouterr().out


# --- another layout of the same data, added later -------------------------------------------------

LAYOUTS = [
    ("glue parquet", "glue tsv"), ("glue arrow", "glue tsv"), ("glue arrow", "glue parquet"),
    ("glue tsv", "glue parquet"), ("cifar python", "cifar parquet"),
    ("cifar binary", "cifar parquet"), ("cifar binary", "cifar python"),
    ("folders of dasgm", "imagenet of dasgm"), ("tap parquet", "tap"), ("tap", "tap parquet"),
]  # fmt: skip


@pytest.mark.parametrize("first, second", LAYOUTS)
def test_a_layout_that_would_be_read_instead_is_noticed(first, second, data):
    loader = LOADERS[first]
    loader.write(data)
    with inputs.recording({}) as before:
        loader.read()
    assert inputs.changed(before, {}) is None
    other = data.parent / "other"
    other.mkdir()
    LOADERS[second].write(other)
    shutil.copytree(other, data, dirs_exist_ok=True)
    assert str(inputs.changed(before, {})).startswith("data changed: ")
