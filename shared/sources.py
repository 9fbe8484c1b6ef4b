"""Where data and models come from, and what was read.

The order is the same for every loader: folder of `REPRO_DATA` (or `REPRO_MODELS/<org>/<name>`),
Hugging Face cache or hub, what is bundled with the pinned packages. A missing input raises
`MissingInput`, which says how to get it. Every file that is read is hashed into what `recording`
yields, which ends up in the record of the run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared import door
from shared.inputs import MissingInput as MissingInput
from shared.inputs import below as _below
from shared.inputs import file_sha256 as file_sha256
from shared.inputs import first as first
from shared.inputs import hub_cache as _hub_cache
from shared.inputs import look, note, only_readme
from shared.inputs import plain as _plain
from shared.inputs import pointed_at as pointed_at
from shared.inputs import recording as recording
from shared.inputs import root as _root

if TYPE_CHECKING:
    from datasets import Dataset

_OFF = {"", "0", "false", "no", "off"}


@dataclass(frozen=True)
class Split:
    """Items of one part of a task.

    ids: (n,) int64. texts: n strings, or n tuples of strings where an item has several texts.
    labels: (n,) int64, or float for regression. groups, values: (n,), for items that belong
    together (the answers to one question), see `shared/glue.py`.
    """

    ids: np.ndarray
    texts: list
    labels: np.ndarray
    groups: np.ndarray | None = None
    values: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub (or its cache): `datasets.load_dataset(id, config)`."""

    id: str
    config: str | None = None


@dataclass(frozen=True)
class Layout:
    """What a folder of `REPRO_DATA` holds and where it usually comes from."""

    folder: str
    what: str
    files: str
    source: str  # hub id where it has the form owner/name
    licence: str
    fetch: str
    mirror: str = ""  # hub id of the same data in a layout of the hub's, where source is none

    @property
    def hub_id(self) -> str:
        """Data set of the hub that `load_hub` reads in its place, "" if there is none."""
        return self.source if re.fullmatch(r"[\w-]+/[\w.-]+", self.source) else self.mirror


def _on_hub(
    folder: str, what: str, files: str, hub_id: str, licence: str, options: str = ""
) -> Layout:
    fetch = f"hf download --repo-type dataset {hub_id} {options}--local-dir $REPRO_DATA/{folder}"
    return Layout(folder, what, files, hub_id, licence, fetch)


_TEXTS = "train.jsonl, test.jsonl: {text, label} a line, or the hub's files"
_CLASSES = "train/<class>/*.jpg, test/<class>/*.jpg"
_TERMS = "research use; each task has its own terms"
_LORA = "git clone https://github.com/microsoft/LoRA && mkdir -p $REPRO_DATA/nlg && "
# fmt: off
LAYOUTS = [
    _on_hub("glue", "GLUE: folders CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI",
            "train.tsv, dev.tsv (MNLI: dev_matched.tsv, dev_mismatched.tsv; MRPC also: "
            "msr_paraphrase_train.txt, msr_paraphrase_test.txt, dev_ids.tsv), "
            "or per task the hub's parquet files", "nyu-mll/glue", _TERMS),
    _on_hub("super_glue", "SuperGLUE: folders BoolQ, CB, COPA, MultiRC, ReCoRD, RTE, WiC, WSC",
            "train.jsonl, val.jsonl, or per task the hub's parquet files",
            "aps/super_glue", _TERMS),
    _on_hub("cifar10", "CIFAR-10: 50,000 + 10,000 images of 32 x 32",
            "train.parquet, test.parquet (img, label), or cifar-10-batches-py, "
            "or cifar-10-batches-bin", "uoft-cs/cifar10", "none stated"),
    _on_hub("cifar100", "CIFAR-100: 50,000 + 10,000 images of 32 x 32",
            "train.parquet, test.parquet (img, fine_label), or cifar-100-python, "
            "or cifar-100-binary", "uoft-cs/cifar100", "none stated"),
    Layout("imagenet", "ImageNet-1k (ILSVRC 2012): 1.28 million images",
           "train/<wnid>/*.JPEG, val/<wnid>/*.JPEG, or the hub's parquet files",
           "ILSVRC/imagenet-1k", "research use; accept the terms with an account first",
           "hf auth login && hf download --repo-type dataset ILSVRC/imagenet-1k "
           "--local-dir $REPRO_DATA/imagenet"),
    Layout("cub", "CUB-200-2011: 11,788 images of 200 birds", _CLASSES,
           "data.caltech.edu/records/65de6-vp158", "non-commercial research",
           "fetch CUB_200_2011.tgz there; train_test_split.txt says which image is in which part"),
    Layout("cars", "Stanford Cars: 16,185 images of 196 models of cars", _CLASSES,
           "ai.stanford.edu/~jkrause/cars/car_dataset.html", "non-commercial research",
           "fetch images and annotations there; the annotations say part and class of an image"),
    Layout("inat2019", "iNaturalist 2019: 268,243 images of 1,010 species", _CLASSES,
           "github.com/visipedia/inat_comp (2019)", "non-commercial research",
           "fetch train_val2019.tar.gz there; train2019.json and val2019.json give the classes"),
    Layout("bioner", "biomedical entities: folders NCBI-disease-IOB, BC5CDR-IOB, BC2GM-IOB, ...",
           "train.tsv, devel.tsv, test.tsv: token TAB tag, blank line between sentences",
           "github.com/cambridgeltl/MTL-Bioinformatics-2016", "each corpus has its own terms",
           "git clone https://github.com/cambridgeltl/MTL-Bioinformatics-2016 && "
           "cp -r MTL-Bioinformatics-2016/data $REPRO_DATA/bioner"),
    _on_hub("bionlp2004", "BioNLP 2004 (JNLPBA) entities",
            "dataset/train.json, valid.json, test.json: one object {tokens, tags} a line",
            "tner/bionlp2004", "terms of the GENIA corpus"),
    Layout("nlg/e2e", "E2E data to text",
           "train.txt, valid.txt, test.txt: meaning representation||text",
           "github.com/microsoft/LoRA (the copy there; original: tuetschek/e2e-dataset)",
           "CC BY-SA 4.0", _LORA + "cp -r LoRA/examples/NLG/data/e2e $REPRO_DATA/nlg/e2e",
           "tuetschek/e2e_nlg"),
    Layout("nlg/webnlg", "WebNLG challenge 2017, triples to text",
           "train.json, dev.json, test.json",
           "github.com/microsoft/LoRA (the copy there; original: webnlg-challenge-2017)",
           "CC BY-NC-SA 4.0",
           _LORA + "cp -r LoRA/examples/NLG/data/webnlg_challenge_2017 $REPRO_DATA/nlg/webnlg"),
    Layout("nlg/dart", "DART triples to text",
           "dart-v1.1.1-full-train.json, -dev.json, -test.json", "github.com/Yale-LILY/dart", "MIT",
           "git clone https://github.com/Yale-LILY/dart && mkdir -p $REPRO_DATA/nlg/dart && "
           "cp dart/data/v1.1.1/*.json $REPRO_DATA/nlg/dart/"),
    Layout("molecules", "MoleculeNet: BBBP, bace, clintox, sider, tox21, delaney-processed, "
           "Lipophilicity, SAMPL", "<name>.csv or .csv.gz with a SMILES column and label columns",
           "moleculenet.org", "each set has its own terms",
           "mkdir -p $REPRO_DATA/molecules && cd $REPRO_DATA/molecules && for f in BBBP.csv "
           "bace.csv clintox.csv.gz sider.csv.gz tox21.csv.gz delaney-processed.csv "
           "Lipophilicity.csv SAMPL.csv; do "
           "curl -LO https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/$f; done; "
           "gunzip -f *.gz"),
    Layout("text", "English text for language models",
           "english.jsonl.gz: {source, text} a line",
           "your own (the bundled corpus is used otherwise)", "that of your texts",
           "write english.jsonl.gz yourself: English prose, one document a line"),
    _on_hub("c4", "C4 real-news-like", "realnewslike/c4-*.json.gz", "allenai/c4", "ODC-BY",
            "--include 'realnewslike/c4-*-of-*.json.gz' "),
    Layout("official/TS_watermark", "published networks of the token-specific watermark",
           "ckpt/<model>/init_<gamma>_<delta>.pth", "github.com/mignonjia/TS_watermark",
           "none stated",
           "git clone https://github.com/mignonjia/TS_watermark $REPRO_DATA/official/TS_watermark"),
    Layout("nasbench201.csv.gz", "accuracies of all 15,625 cells of NAS-Bench-201",
           "CSV, one cell a row", "github.com/D-X-Y/NAS-Bench-201", "MIT",
           "extract it from NAS-Bench-201-v1_1-096897.pth with the API of that repository"),
    _on_hub("tap/rct", "PubMed RCT sentences, 20k version, for task-adaptive pretraining",
            "train.jsonl, dev.jsonl, test.jsonl: {text, label} a line, or the hub's files",
            "armanc/pubmed-rct20k", "research use"),
    _on_hub("tap/agnews", "AG news topics, for task-adaptive pretraining", _TEXTS,
            "fancyzhx/ag_news", "non-commercial use"),
    _on_hub("tap/imdb", "IMDB review polarity, for task-adaptive pretraining", _TEXTS,
            "stanfordnlp/imdb", "research use"),
]
# fmt: on


# --- data ----------------------------------------------------------------------------------------


def find_data(folder: str, hub: Hub | str | None = None) -> Path | Hub:
    """`REPRO_DATA/<folder>`, else the hub's data set if it is cached or may be asked for.

    Upper and lower case, `-` and `_` in folder names do not matter (`glue/sst2`: `glue/SST-2`). A
    folder with nothing but a README.md is none: a download that stopped leaves it.
    Raises MissingInput, with what, where from and how to fetch it.
    """
    if (path := look("REPRO_DATA", folder)) and not only_readme(path):
        return path
    hub = Hub(hub) if isinstance(hub, str) else hub
    if hub and (_cached_dataset(hub.id) or not offline()):
        return hub
    raise MissingInput(_data_remedy(folder, hub))


def load_hub(hub: Hub, folder: str, part: str) -> Dataset:
    """Part (`train`, `validation`, ...) of a hub data set; `folder` is for the message."""
    import datasets

    try:
        data = datasets.load_dataset(hub.id, hub.config, split=part)
    except Exception as error:  # no connection, no such repository, gated terms: it is missing
        raise MissingInput(_with_answer(_data_remedy(folder, hub), error)) from error
    # the files that it is read from; data in memory have none
    name = f"{hub.id}/{hub.config or ''}/{part}"
    files = [Path(file["filename"]) for file in data.cache_files]
    for path in files:
        note(f"{name}/{path.name}", path)
    if not files:
        note(name, data._fingerprint, f"hub:{hub.id}")
    return data


def stream_hub(hub: Hub, folder: str, part: str) -> Iterator[dict[str, Any]]:
    """Rows of a part of a hub data set as they arrive; nothing of it stays in the cache.

    A stream leaves no file to hash: what was taken of it is. Raises MissingInput, in mid-stream
    too: no network, no such data set, terms not accepted, a file that is cut off or no JSON.
    """
    import datasets

    if offline():  # only whole files are cached, so there is nothing that could be read
        raise MissingInput(_data_remedy(folder, hub))
    digest = hashlib.sha256()
    try:
        rows = iter(datasets.load_dataset(hub.id, hub.config, split=part, streaming=True))
    except Exception as error:
        raise MissingInput(_with_answer(_data_remedy(folder, hub), error)) from error
    for count in itertools.count():
        try:
            row = next(rows, None)
        except Exception as error:  # whatever a network and the readers of its files may raise
            remedy = _data_remedy(folder, hub) + f"\n  broken:  after {count} rows of {part}"
            raise MissingInput(_with_answer(remedy, error)) from error
        if row is None:
            return
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        note(f"{folder}/{part}, as streamed", digest.hexdigest(), f"hub:{hub.id}")
        yield row


def fetch_command(kind: str, name: str) -> str:
    """How to get a `model` or the `data` of that name, in one line."""
    if kind == "model":
        return f"hf download {name} --local-dir $REPRO_MODELS/{name}"
    layout = layout_of(name)
    return layout.fetch if layout else f"put it at $REPRO_DATA/{name}"


def _with_answer(remedy: str, error: Exception) -> str:
    """The remedy with what the hub said; of a gated repository also how to be let in."""
    answer = " ".join(str(error).split())[:300]
    gated = "gated" in answer  # 401 and 403 alike: the words are huggingface_hub's and datasets'
    terms = "\n  gated:   accept its terms on huggingface.co, then `hf auth login` or HF_TOKEN=..."
    return f"{remedy}{terms if gated else ''}\n  the hub's answer: {answer}"


def _data_remedy(folder: str, hub: Hub | None) -> str:
    root = os.environ.get("REPRO_DATA", "")
    where = f"not in REPRO_DATA={root}" if root else "REPRO_DATA is not set"
    if (path := _below(_root("REPRO_DATA"), folder)) and only_readme(path):
        where = f"{path} holds nothing but a README.md"
    silent = ", and the hub is off or has no copy" if hub else ""
    lines = [f"data '{folder}' are missing: {where}{silent}"]
    if layout := layout_of(folder):
        lines += [
            f"  what:    {layout.what}",
            f"  layout:  {layout.files}, in $REPRO_DATA/{layout.folder}",
            f"  source:  {layout.source} (licence: {layout.licence})",
            f"  fetch:   {layout.fetch}",
        ]
    else:
        folders = ", ".join(layout.folder for layout in LAYOUTS)
        place = f"$REPRO_DATA/{folder}; folders with a known layout: {folders}"
        lines.append(f"  remedy:  put it at {place}")
    if hub and offline():
        lines.append("  or:      unset HF_HUB_OFFLINE, so that it is fetched from the hub")
    return "\n".join(lines)


def layout_of(folder: str) -> Layout | None:
    """The row of LAYOUTS that a folder (or a folder below it) or a hub id belongs to."""
    for layout in LAYOUTS:
        if _plain(folder + "/").startswith(_plain(layout.folder + "/")):
            return layout
        if folder in (layout.source, layout.hub_id):
            return layout
    return None


# --- models --------------------------------------------------------------------------------------


def find_model(name: str, parts: Collection[str] = ("weights", "tokenizer")) -> tuple[str, str]:
    """Folder of a model and how it was found: `path`, `folder` (REPRO_MODELS), `cache` or `hub`.

    name: a folder, or a hub id (`FacebookAI/roberta-base`). Whatever its root, its files are
    checked (`door.model_files`; parts: those of it that are needed) and hashed into the record.
    Raises MissingInput if it is not to be had, BadInput if it cannot be used."""
    path = os.path.expanduser(name)
    first([Path(path)])
    if os.path.lexists(path):
        place = "/".join(Path(path).absolute().parts[-2:])  # the record names no folder above it
        return _admitted(place, Path(path), parts), "path"
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise MissingInput(f"model '{name}': there is no such folder, and it is no hub id\n{_GIVE}")
    if folder := local_model(name):
        return _admitted(name, folder, parts), "folder"
    snapshots = _cached_models(name)
    whole = [folder for folder in snapshots if door.is_whole(folder, parts)]
    if whole or (snapshots and offline()):
        return _admitted(name, [*whole, *snapshots][0], parts), "cache"
    if offline():
        raise MissingInput(_model_remedy(name))
    import huggingface_hub

    patterns = [f"*{suffix}" for suffix in door.SUFFIXES]
    patterns += ["*.safetensors"] if "weights" in parts else []
    try:
        fetched = huggingface_hub.snapshot_download(
            name, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    except Exception as error:
        raise MissingInput(_with_answer(_model_remedy(name), error)) from error
    return _admitted(name, Path(fetched), parts), "hub"


_GIVE = "  remedy:  give a folder with config.json, or owner/name as on huggingface.co"


def local_model(name: str) -> Path | None:
    """`REPRO_MODELS/<org>/<name>` if it is there."""
    return look("REPRO_MODELS", name)


def _admitted(name: str, folder: Path, parts: Collection[str]) -> str:
    note_model(name, folder, parts)
    return str(folder)


def note_model(
    name: str, folder: Path, parts: Collection[str] = ("weights", "tokenizer"), origin: str = ""
) -> None:
    """Check a model's files and write each of them down. BadInput: see `door.model_files`."""
    for path in door.model_files(folder, parts):
        note(f"{name}/{path.name}", path, origin)


def _model_remedy(name: str) -> str:
    root = os.environ.get("REPRO_MODELS", "")
    where = f"in REPRO_MODELS={root}" if root else "given (REPRO_MODELS is not set)"
    forbidden = ", and HF_HUB_OFFLINE forbids asking the hub" if offline() else ""
    return (
        f"model '{name}' is missing: not {where}, not in the Hugging Face cache{forbidden}\n"
        f"  layout:  config.json, model.safetensors, tokenizer files, in $REPRO_MODELS/{name}\n"
        f"  source:  huggingface.co/{name} (licence: see its card)\n"
        f"  fetch:   {fetch_command('model', name)}"
    )


# --- the hub -------------------------------------------------------------------------------------


def offline() -> bool:
    """True if the environment forbids the network (read each time: a test may change it)."""
    switches = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").lower() not in _OFF for name in switches)


def _cached_models(name: str) -> list[Path]:
    """Snapshots of a model in the hub's cache, the newest first."""
    snapshots = _hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    folders = [x for x in snapshots.glob("*") if x.is_dir()]
    return sorted(folders, key=lambda x: x.stat().st_mtime, reverse=True)


def _cached_dataset(hub_id: str) -> bool:
    datasets = Path(os.environ.get("HF_DATASETS_CACHE") or _hub_cache().parent / "datasets")
    folders = [
        _hub_cache() / f"datasets--{hub_id.replace('/', '--')}",
        datasets / hub_id.replace("/", "___").lower(),
    ]
    return any(folder.is_dir() and any(folder.rglob("*.*")) for folder in folders)


def available(kind: str, name: str, hub_timeout: float = 3) -> str:
    """Where an input would come from: `folder`, `cache`, `hub`, or "" if it is not to be had.

    Nothing is loaded: this chooses a scale. kind: `model` (name: hub id) or `data` (name: folder
    of REPRO_DATA, or hub id). hub_timeout: seconds that the hub has to answer.
    """
    if kind not in ("model", "data"):
        raise ValueError(f"kind '{kind}' is not one of: model, data")
    layout = layout_of(name) if kind == "data" else None
    folders = {name, layout.folder} if layout and name == layout.hub_id else {name}
    root = _root("REPRO_MODELS" if kind == "model" else "REPRO_DATA")
    paths = filter(None, (_below(root, folder) for folder in folders))
    if any(kind == "model" or not only_readme(path) for path in paths):
        return "folder"
    hub_id = layout.hub_id if layout else name
    if not re.fullmatch(r"[\w-]+/[\w.-]+", hub_id):
        return ""
    if kind == "model":
        in_cache = any(door.is_whole(folder, ("weights",)) for folder in _cached_models(name))
    else:
        in_cache = _cached_dataset(hub_id)
    if in_cache:
        return "cache"
    return "hub" if not offline() and _answers(kind, hub_id, hub_timeout) else ""


_silent_hub: set[str] = set()  # endpoints that did not answer once: this process asks no more


def _answers(kind: str, hub_id: str, timeout: float) -> bool:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if endpoint in _silent_hub:
        return False
    url = f"{endpoint}/api/{'models' if kind == 'model' else 'datasets'}/{hub_id}"
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return False
    except OSError:
        _silent_hub.add(endpoint)
        return False
