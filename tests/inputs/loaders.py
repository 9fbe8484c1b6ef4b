"""Every loader of files of data: a small good input of it, and what it reads from that."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from autolora import corpora
from autolora import data as tagging
from dasgm import imagenet, nasbench
from dasgm import tables as cells
from mlo_mae import folders
from shared import bundled, cifar, glue, runs
from tapweight import data as tap
from tapweight import molecules, rehearsal
from ts_watermark import data as news


@dataclass(frozen=True)
class Loader:
    """name; file: one of those it reads, below REPRO_DATA; write: makes the good input; read: what
    it gives; kind: of its file; word: of a text that it holds, where it holds texts."""

    name: str
    file: str
    write: Callable[[Path], None]
    read: Callable[[], Any]
    kind: str
    word: str = ""


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def put_table(root: Path, name: str, columns: dict[str, Any]) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
        return
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)


def picture(shade: int, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), shade, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def objects(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# --- good inputs -------------------------------------------------------------------------------

PAIRS = {"sentence1": ["red wine", "old door"], "sentence2": ["wine", "new door"]}
CLAIMS = [{"premise": f"red wine {i}", "hypothesis": "wine", "label": "neutral"} for i in range(2)]
TAGGED = "red\tO\nBRCA1\tB-Gene\n\nwine\tO\n"
POSTS = [{"text": f"red wine {i}", "label": i % 2} for i in range(4)]


def rte(root: Path) -> None:
    header = "index\tsentence1\tsentence2\tlabel\n"
    rows = "0\tred wine\twine\tentailment\n1\told door\tnew door\tnot_entailment\n"
    for part in ("train", "dev"):
        put(root, f"glue/RTE/{part}.tsv", header + rows)


def rte_tables(root: Path, name: str) -> None:
    for part in ("train", "validation"):
        put_table(root, "glue/RTE/" + name.format(part), {**PAIRS, "label": [0, 1]})


def cb(root: Path) -> None:
    for part in ("train", "val"):
        put(root, f"super_glue/CB/{part}.jsonl", objects(*CLAIMS))


def mrpc(root: Path) -> None:
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    rows = "1\t11\t12\tred wine\twine\n0\t21\t22\told door\tnew door\n"
    put(root, "glue/MRPC/msr_paraphrase_train.txt", header + rows)
    put(root, "glue/MRPC/dev_ids.tsv", "21\t22\n")


def texts_and_labels(task: str) -> list[Any]:
    parts = glue.load(task)
    return [(part.texts, part.labels.tolist()) for part in parts.values()]


def cifar_tables(root: Path) -> None:
    cifar.write_sample(root, "cifar10", 10, runs.stream(0))


def cifar_archive(root: Path, suffix: str) -> None:
    (root / "cifar10").mkdir()
    for part in ("train", "test"):
        for stem in cifar._STEMS["cifar10", part]:
            pixels = np.full((2, 3072), 7, np.uint8)
            if suffix:
                whole = np.concatenate([np.array([[3], [4]], np.uint8), pixels], 1)
                content = whole.tobytes()
            else:
                content = pickle.dumps({b"data": pixels, b"labels": [3, 4]}, protocol=2)
            (root / "cifar10" / f"{stem}{suffix}").write_bytes(content)


def read_cifar() -> list[Any]:
    cifar._decode.cache_clear()
    return [(p.images.sum().item(), p.labels.tolist()) for p in cifar.load("cifar10").values()]


def image_folders(root: Path, name: str) -> None:
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            where = root / name / part / label
            where.mkdir(parents=True)
            for k in range(2):
                (where / f"{k}.png").write_bytes(picture(40 * k))


def image_tables(root: Path) -> None:
    for part in ("train", "validation"):
        rows = [{"bytes": picture(40 * k), "path": None} for k in range(4)]
        columns = {"image": rows, "label": [0, 1, 0, 1]}
        put_table(root, f"imagenet/data/{part}-00000-of-00001.parquet", columns)


def read_folders(name: str) -> list[Any]:
    train, test, classes = folders.load(name, 16)
    rows = [part.batch(np.arange(len(part))).sum().item() for part in (train, test)]
    return [rows, train.labels.tolist(), test.labels.tolist(), classes]


def read_imagenet() -> list[Any]:
    images = imagenet.ImageNet(size=16)
    x, y = images.training(torch.arange(images.rows), runs.stream(0))
    test, labels = images.testing(images.ids)
    return [x.sum().item(), y.tolist(), test.sum().item(), labels.tolist(), images.classes]


def ncbi(root: Path) -> None:
    for part in ("train", "test"):
        put(root, f"bioner/NCBI-disease-IOB/{part}.tsv", TAGGED)


def bionlp(root: Path) -> None:
    rows = [{"tokens": ["red", "wine"], "tags": [0, 1]}, {"tokens": ["door"], "tags": [10]}]
    for part in ("train", "test"):
        put(root, f"bionlp2004/dataset/{part}.json", objects(*rows))


def read_tagging(task: str) -> list[Any]:
    whole = tagging.read(task, runs.stream(0))
    return [(part.texts, part.labels) for part in (whole.train, whole.test)]


def e2e(root: Path) -> None:
    put(root, "nlg/e2e/train.txt", "name : Aromi||red wine at Aromi .\nname : Zizzi||a place .\n")


def webnlg(root: Path) -> None:
    triple = {"subject": "Aromi", "property": "serves", "object": "wine"}
    texts = [{"comment": c, "lex": f"red wine, {c}"} for c in ("good", "toFix")]
    entry = {"category": "Food", "modifiedtripleset": [triple], "lexicalisations": texts}
    put(root, "nlg/webnlg/train.json", json.dumps({"entries": [{"1": entry}, {"2": entry}]}))


def dart(root: Path) -> None:
    entry = {"tripleset": [["Aromi", "SERVES", "wine"]], "annotations": [{"text": "red wine"}]}
    put(root, "nlg/dart/dart-v1.1.1-full-train.json", json.dumps([entry, entry]))


def imdb(root: Path) -> None:
    for part in ("train", "test"):
        put(root, f"tap/imdb/{part}.jsonl", objects(*POSTS))


def imdb_tables(root: Path) -> None:
    for part in ("train", "test"):
        columns = {name: [row[name] for row in POSTS] for name in ("text", "label")}
        put_table(root, f"tap/imdb/plain_text/{part}-00000-of-00001.parquet", columns)


def read_imdb() -> list[Any]:
    task = tap.read("imdb", 0, 0.5)
    return [task.labelled.texts, task.labelled.labels.tolist(), task.test.texts]


def bbbp(root: Path) -> None:
    rows = ["1,wine,1,CCO", '2,"tea, green",0,CC(=O)O', "3,x,,c1ccccc1"]
    put(root, "molecules/BBBP.csv", "\n".join(["num,name,p_np,smiles", *rows]) + "\n")


def read_molecules(name: str = "bbbp") -> list[Any]:
    rows = molecules.read(name, rehearsal.made_up(), lambda line: None)
    return [rows.smiles, rows.ids.tolist(), np.nan_to_num(rows.labels, nan=-9).tolist()]


def c4(root: Path) -> None:
    for part in ("train", "validation"):
        put(root, f"c4/realnewslike/c4-{part}.00000-of-00001.json.gz", objects(*POSTS))


def english(root: Path) -> None:
    put(root, "text/english.jsonl.gz", objects(*POSTS))


def cell_table() -> str:
    """The 125 cells of three nodes (the tests set NASBENCH_CELLS)."""
    names = [*cells.NASBENCH_COLUMNS.values()]
    rows = [f"{c},{i % 90},{i % 70},{i % 40}" for i, c in enumerate(nasbench.all_cells(3))]
    return "\n".join([",".join(["arch", *names]), *rows]) + "\n"


def read_cells() -> list[Any]:
    table = cells.nasbench_table()
    return [len(table.cells), {k: float(v.sum()) for k, v in table.columns.items()}]


SHARDED = "{}-00000-of-00001.parquet"
# fmt: off
LOADERS = {loader.name: loader for loader in (
    Loader("glue tsv", "glue/RTE/train.tsv", rte, lambda: texts_and_labels("rte"), "text", "red"),
    Loader("glue parquet", "glue/RTE/train-00000-of-00001.parquet",
           lambda root: rte_tables(root, SHARDED), lambda: texts_and_labels("rte"), "parquet"),
    Loader("glue arrow", "glue/RTE/train/data-00000-of-00001.arrow",
           lambda root: rte_tables(root, "{}/data-00000-of-00001.arrow"),
           lambda: texts_and_labels("rte"), "arrow"),
    Loader("super_glue", "super_glue/CB/train.jsonl", cb, lambda: texts_and_labels("cb"),
           "text", "red"),
    Loader("mrpc", "glue/MRPC/msr_paraphrase_train.txt", mrpc, lambda: texts_and_labels("mrpc"),
           "text", "red"),
    Loader("cifar parquet", "cifar10/train.parquet", cifar_tables, read_cifar, "parquet"),
    Loader("cifar python", "cifar10/data_batch_2", lambda root: cifar_archive(root, ""),
           read_cifar, "pickle"),
    Loader("cifar binary", "cifar10/data_batch_2.bin", lambda root: cifar_archive(root, ".bin"),
           read_cifar, "binary"),
    Loader("imagenet of mlo_mae", "imagenet/data/train-00000-of-00001.parquet", image_tables,
           lambda: read_folders("imagenet"), "parquet"),
    Loader("imagenet of dasgm", "imagenet/data/train-00000-of-00001.parquet", image_tables,
           read_imagenet, "parquet"),
    Loader("folders of mlo_mae", "cub/train/dog/1.png", lambda root: image_folders(root, "cub"),
           lambda: read_folders("cub"), "image"),
    Loader("folders of dasgm", "imagenet/train/dog/1.png",
           lambda root: image_folders(root, "imagenet"), read_imagenet, "image"),
    Loader("iob", "bioner/NCBI-disease-IOB/train.tsv", ncbi, lambda: read_tagging("ncbi"),
           "text", "red"),
    Loader("bionlp", "bionlp2004/dataset/train.json", bionlp, lambda: read_tagging("bionlp2004"),
           "text", "red"),
    Loader("e2e", "nlg/e2e/train.txt", e2e, lambda: corpora.pairs("e2e", "train"), "text", "red"),
    Loader("webnlg", "nlg/webnlg/train.json", webnlg, lambda: corpora.pairs("webnlg", "train"),
           "json", "red"),
    Loader("dart", "nlg/dart/dart-v1.1.1-full-train.json", dart,
           lambda: corpora.pairs("dart", "train"), "json", "red"),
    Loader("tap", "tap/imdb/train.jsonl", imdb, read_imdb, "text", "red"),
    Loader("tap parquet", "tap/imdb/plain_text/train-00000-of-00001.parquet", imdb_tables,
           read_imdb, "parquet"),
    Loader("molecules", "molecules/BBBP.csv", bbbp, read_molecules, "text"),
    Loader("c4", "c4/realnewslike/c4-train.00000-of-00001.json.gz", c4,
           lambda: list(news.c4("train")), "gzip", "red"),
    Loader("english", "text/english.jsonl.gz", english, bundled.english, "gzip", "red"),
    Loader("cells", "nasbench201.csv.gz", lambda root: put(root, "nasbench201.csv.gz",
           cell_table()), read_cells, "gzip"),
)}
# fmt: on
