"""Files of tagging and of data-to-text, read as plain lists; and made-up ones like them.

tagging      token TAB tag files (`bioner/NCBI-disease-IOB`, ...), BioNLP 2004 (`tner/bionlp2004`)
generation   E2E, `meaning representation||text` lines; WebNLG and DART, triples and their texts
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from shared import sources, tables
from shared.runs import BadInput

TAGGING = {
    "ncbi": "bioner/NCBI-disease-IOB",
    "bc5cdr": "bioner/BC5CDR-IOB",
    "bc2gm": "bioner/BC2GM-IOB",
    "bionlp2004": "bionlp2004",
}
GENERATION = {"e2e": "nlg/e2e", "webnlg": "nlg/webnlg", "dart": "nlg/dart"}
FILES = {"e2e": "{}.txt", "webnlg": "{}.json", "dart": "dart-v1.1.1-full-{}.json"}
BIONLP_TYPES = ("DNA", "protein", "cell_type", "cell_line", "RNA")
BIONLP_TAGS = ("O", *(f"{place}-{name}" for name in BIONLP_TYPES for place in "BI"))

# lines between documents, which are no sentences: of CoNLL's files, and of GENIA's
_BETWEEN = re.compile(r"-DOCSTART-|###MEDLINE:")


class Sentence(NamedTuple):
    """words and tags: as many of one as of the other. at: file and row of the first word."""

    words: list[str]
    tags: list[str]
    at: str


def sentences(task: str, part: str) -> list[Sentence]:
    """The sentences of a tagging task's `train` or `test` part."""
    if task == "bionlp2004":
        return bionlp(TAGGING[task], part)
    return read_iob(Path(str(sources.find_data(TAGGING[task]))) / f"{part}.tsv")


def read_iob(path: Path) -> list[Sentence]:
    """Sentences of a file of `token TAB tag` lines with a blank line between sentences."""
    layout = "token TAB O|B-type|I-type"
    _present(path, f"train.tsv, devel.tsv, test.tsv with {layout} lines")
    tables.checked(path, f"{path.parent.name}/{path.name}")
    rows, sentence = [], Sentence([], [], "")
    for at, line in tables.lines(path, blank=True):
        if not line.strip() or _BETWEEN.match(line):
            if sentence.words:
                rows.append(sentence)
            sentence = Sentence([], [], "")
            continue
        fields = line.split("\t")
        if len(fields) != 2 or not re.fullmatch(r"O|[BI]-\S+", fields[1]):
            remedy = "Remedy: write the line so, or fetch the file again"
            raise BadInput(f"{at}: expected '{layout}', got {line[:60]!r}. {remedy}")
        sentence = sentence if sentence.words else Sentence([], [], at)
        sentence.words.append(fields[0])
        sentence.tags.append(fields[1])
    rows += [sentence] if sentence.words else []
    if not rows:
        raise BadInput(f"{path}: no rows, it holds no sentence. Remedy: fetch the file again")
    return rows


def bionlp(folder: str, part: str) -> list[Sentence]:
    """BioNLP 2004 from `dataset/<part>.json` of the folder, the hub's cache, or the hub."""
    place = sources.find_data(folder, "tner/bionlp2004")
    name = f"dataset/{part}.json"
    path = _of_hub(place, name) if isinstance(place, sources.Hub) else place / name
    _present(path, "dataset/train.json, valid.json, test.json, a line {tokens, tags}")
    rows = []
    for at, row in tables.json_lines(tables.checked(path, f"bionlp2004/{part}.json")):
        words, tags = row.get("tokens", 0), row.get("tags", 0)
        lists = isinstance(words, list) and isinstance(tags, list)
        if not lists or len(words) != len(tags) or not all(isinstance(w, str) for w in words):
            sizes = f"tokens {str(words)[:40]} and tags {str(tags)[:40]}"
            remedy = "Remedy: as many words as numbers; fetch the file again"
            raise BadInput(f"{at}: {sizes} are not two lists of one length. {remedy}")
        if wrong := [t for t in tags if type(t) is not int or not 0 <= t < len(BIONLP_TAGS)]:
            limit = f"expected 0 to {len(BIONLP_TAGS) - 1}"
            raise BadInput(f"{at}: tag {wrong[0]!r}, {limit}. Remedy: fetch the file again")
        if not (words and _BETWEEN.match(words[0])):
            rows.append(Sentence(words, [BIONLP_TAGS[tag] for tag in tags], at))
    return rows


def _present(path: Path, layout: str) -> None:
    if not path.exists():
        remedy = f"remedy:  fetch it again; layout: {layout}"
        raise sources.MissingInput(f"{path} is missing\n  {remedy}")


def _of_hub(hub: sources.Hub, name: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(hub.id, name, repo_type="dataset"))
    except Exception as error:
        what = f"{hub.id}/{name} is neither cached nor to be had"
        raise sources.MissingInput(f"{what}: {error}") from error


def pairs(task: str, part: str) -> list[tuple[str, str]]:
    """(meaning representation, text) pairs of a generation task's `train` or `test` part."""
    place = sources.find_data(GENERATION[task], "tuetschek/e2e_nlg" if task == "e2e" else None)
    if not isinstance(place, sources.Hub):
        path = place / FILES[task].format(part)
        return read_pairs(path) if task == "e2e" else read_triples(path)
    pairs = []
    for number, row in enumerate(sources.load_hub(place, GENERATION[task], part)):
        at = f"{place.id}, part {part} row {number}"
        names = ("meaning_representation", "human_reference")
        meaning, text = (tables.text_in(row, name, at) for name in names)
        pairs.append((linear(meaning), text))
    return pairs


def read_pairs(path: Path) -> list[tuple[str, str]]:
    layout = "meaning representation||text"
    _present(path, f"train.txt, valid.txt, test.txt, a line `{layout}`")
    rows = []
    for at, line in tables.lines(tables.checked(path, f"e2e/{path.name}")):
        meaning, _, text = (field.strip() for field in line.partition("||"))
        if not meaning or not text:
            remedy = "Remedy: write the line so, or fetch the file again"
            raise BadInput(f"{at}: expected '{layout}', got {line[:60]!r}. {remedy}")
        rows.append((meaning, text))
    return rows


def read_triples(path: Path) -> list[tuple[str, str]]:
    """WebNLG's or DART's file: triples as `subject : property | ...`, as LoRA's scripts write them.

    Only texts that WebNLG's annotators called good count."""
    _present(path, f"{path.name}, a JSON file of entries, each with its triples and texts")
    rows = []
    for at, entry in _entries(tables.checked(path, f"{path.parent.name}/{path.name}")):
        try:
            if "tripleset" in entry:
                triples = [(s, p.lower(), o) for s, p, o in entry["tripleset"]]
                texts = [note["text"] for note in entry["annotations"]]
            else:
                names = ("subject", "property", "object")
                triples = [tuple(t[n] for n in names) for t in entry["modifiedtripleset"]]
                texts = [x["lex"] for x in entry["lexicalisations"] if x["comment"] == "good"]
            meaning = " | ".join(" : ".join(triple) for triple in triples)
            rows += [(meaning, text.strip()) for text in texts]
            if not meaning or not all(map(str.strip, texts)):
                raise ValueError("one of them is empty")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{at}: not triples with texts ({error})"
            raise BadInput(f"{what}. Remedy: fetch the file again") from error
    if not rows:
        raise BadInput(f"{path}: no rows, no entry has a good text. Remedy: fetch the file again")
    return rows


def _entries(path: Path) -> Iterator[tuple[str, tables.Row]]:
    """(place, entry) of a list, or of WebNLG's {"entries": [{"1": entry}, ...]}; from 1."""
    document = tables.json_document(path)
    if isinstance(document, dict):
        document = document.get("entries")
    if not isinstance(document, list) or not document:
        raise BadInput(f"{path}: no list of entries. Remedy: fetch the file again")
    for number, entry in enumerate(document, 1):
        named = isinstance(entry, dict) and list(entry) == [str(number)]
        entry = entry[str(number)] if named else entry
        if not isinstance(entry, dict):
            raise BadInput(f"{path} entry {number}: not an object. Remedy: fetch the file again")
        yield f"{path} entry {number}", entry


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

    def webnlg() -> str:
        entries = []
        for number in range(1, n + 1):
            name, place = pick("Aromi", "Zizzi", "Cotto"), pick("Rome", "Turin")
            triple = {"subject": name, "property": "city", "object": f"{place} {number % 7}"}
            text = {"lex": f"{name} lies in {place} .", "comment": "good"}
            entry = {"modifiedtripleset": [triple], "lexicalisations": [text]}
            entries.append({str(number): entry})
        return json.dumps({"entries": entries})

    def iob() -> str:
        gene, verb = pick("BRCA1", "APC"), pick("acts", "binds")
        return f"The\tO\n{gene}\tB-Disease\ngene\tI-Disease\n{verb}\tO\n.\tO\n\n"

    def json_line() -> str:
        words = ["The", pick("NF-kB", "IL-2"), "gene", pick("acts", "binds"), "."]
        return json.dumps({"tokens": words, "tags": [0, 1, 2, 0, 0]}) + "\n"

    if name == "webnlg":
        return {f"nlg/webnlg/{part}.json": webnlg() for part in ("train", "valid", "test")}
    if name == "e2e":
        row, files = e2e, [f"nlg/e2e/{part}.txt" for part in ("train", "valid", "test")]
    elif name == "bionlp2004":
        row, files = (
            json_line,
            [f"{name}/dataset/{part}.json" for part in ("train", "valid", "test")],
        )
    else:
        row, files = iob, [f"{TAGGING[name]}/{part}.tsv" for part in ("train", "devel", "test")]
    return {file: "".join(row() for _ in range(n)) for file in files}
