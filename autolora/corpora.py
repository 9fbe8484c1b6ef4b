"""Files of tagging and of data-to-text, read as plain lists; and made-up ones like them.

tagging      token TAB tag files (`bioner/NCBI-disease-IOB`, ...), BioNLP 2004 (`tner/bionlp2004`)
generation   E2E, `meaning representation||text` lines
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from shared import sources
from shared.runs import BadInput

TAGGING = {
    "ncbi": "bioner/NCBI-disease-IOB",
    "bc5cdr": "bioner/BC5CDR-IOB",
    "bc2gm": "bioner/BC2GM-IOB",
    "bionlp2004": "bionlp2004",
}
GENERATION = {"e2e": "nlg/e2e"}
BIONLP_TYPES = ("DNA", "protein", "cell_type", "cell_line", "RNA")
BIONLP_TAGS = ("O", *(f"{place}-{name}" for name in BIONLP_TYPES for place in "BI"))

Sentence = tuple[list[str], list[str]]  # words, tags


def sentences(task: str, part: str) -> list[Sentence]:
    """The sentences of a tagging task's `train` or `test` part."""
    if task == "bionlp2004":
        return bionlp(TAGGING[task], part)
    return read_iob(Path(str(sources.find_data(TAGGING[task]))) / f"{part}.tsv")


def read_iob(path: Path) -> list[Sentence]:
    """Sentences of a file of `token TAB tag` lines with a blank line between sentences."""
    if not path.exists():
        layout = "train.tsv, devel.tsv, test.tsv with token TAB tag lines"
        raise sources.MissingInput(f"{path} is missing; layout: {layout}")
    sources.note(f"{path.parent.name}/{path.name}", path)
    rows: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*path.read_text("utf-8").split("\n"), ""], 1):
        if not line.strip():
            if words:
                rows.append((words, tags))
                words, tags = [], []
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != 2 or not (fields[1] == "O" or fields[1][:2] in ("B-", "I-")):
            layout = "'token TAB O|B-type|I-type'"
            raise BadInput(f"{path}, line {number}: expected {layout}, got {line[:60]!r}")
        words.append(fields[0])
        tags.append(fields[1])
    return rows


def bionlp(folder: str, part: str) -> list[Sentence]:
    """BioNLP 2004 from `dataset/<part>.json` of the folder, the hub's cache, or the hub."""
    place = sources.find_data(folder, "tner/bionlp2004")
    name = f"dataset/{part}.json"
    path = _of_hub(place, name) if isinstance(place, sources.Hub) else place / name
    sources.note(f"bionlp2004/{part}.json", path)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [(row["tokens"], [BIONLP_TAGS[tag] for tag in row["tags"]]) for row in rows]


def _of_hub(hub: sources.Hub, name: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(hub.id, name, repo_type="dataset"))
    except Exception as error:
        what = f"{hub.id}/{name} is neither cached nor to be had"
        raise sources.MissingInput(f"{what}: {error}") from error


def pairs(task: str, part: str) -> list[tuple[str, str]]:
    """(meaning representation, text) pairs of a generation task's `train` or `test` part."""
    place = sources.find_data(GENERATION[task], "tuetschek/e2e_nlg")
    if isinstance(place, sources.Hub):
        rows = sources.load_hub(place, GENERATION[task], part)
        return [(linear(row["meaning_representation"]), row["human_reference"]) for row in rows]
    return read_pairs(place / f"{part}.txt")


def read_pairs(path: Path) -> list[tuple[str, str]]:
    if not path.exists():
        layout = "train.txt, valid.txt, test.txt, a line `meaning representation||text`"
        raise sources.MissingInput(f"{path} is missing; layout: {layout}")
    sources.note(f"e2e/{path.name}", path)
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        meaning, bars, text = line.partition("||")
        if not bars:
            layout = "'meaning representation||text'"
            raise BadInput(f"{path}, line {number}: expected {layout}, got {line[:60]!r}")
        rows.append((meaning.strip(), text.strip()))
    return rows


def linear(meaning: str) -> str:
    """The hub's `name[Aromi], area[riverside]` as the files' `name : Aromi | area : riverside`."""
    return " | ".join(slot.strip().rstrip("]").replace("[", " : ") for slot in meaning.split("],"))


def sample_files(name: str, n: int, stream: torch.Generator) -> dict[str, str]:
    """Made-up rows in the source's own layout: file name below `REPRO_DATA` -> content."""

    def pick(*options: str) -> str:
        return options[int(torch.randint(len(options), (1,), generator=stream))]

    def e2e() -> str:
        name, area = pick("Aromi", "Zizzi", "Cotto"), pick("riverside", "city centre")
        return f"name : {name} | area : {area}||{name} is a place in the {area} .\n"

    def iob() -> str:
        gene, verb = pick("BRCA1", "APC"), pick("acts", "binds")
        return f"The\tO\n{gene}\tB-Disease\ngene\tI-Disease\n{verb}\tO\n.\tO\n\n"

    def json_line() -> str:
        words = ["The", pick("NF-kB", "IL-2"), "gene", pick("acts", "binds"), "."]
        return json.dumps({"tokens": words, "tags": [0, 1, 2, 0, 0]}) + "\n"

    if name in GENERATION:
        row, files = e2e, [f"nlg/e2e/{part}.txt" for part in ("train", "valid", "test")]
    elif name == "bionlp2004":
        row, files = (
            json_line,
            [f"{name}/dataset/{part}.json" for part in ("train", "valid", "test")],
        )
    else:
        row, files = iob, [f"{TAGGING[name]}/{part}.tsv" for part in ("train", "devel", "test")]
    return {file: "".join(row() for _ in range(n)) for file in files}
