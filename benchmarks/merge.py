"""Finished runs of other machines beside those of this one: python -m benchmarks.merge DIR[,DIR2]

DIR is a folder of runs (`runs/` of another checkout, copied here), or an archive (.tar.gz) of one.
A run is taken over if this checkout would make the very same one: its settings, code, the runs it
uses, and the sha256 of its predictions are checked before it is renamed into place. Nothing is
overwritten; a run that is here with another outcome is a clash, named with both places. Then
`make reproduce-X` judges all.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks import locks, recorded
from benchmarks.plan import ROOT, say
from shared import inputs, protocol
from shared.protocol import BadInput, Node, Protocol

TAKEN, HERE, CLASH, REFUSED = "taken over", "here already", "clash", "refused"


def runs_in(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """(paper, scale) -> the directories of finished runs below a folder of runs."""
    if not folder.is_dir():
        raise BadInput(f"FROM={folder} is no folder and no archive of runs")
    folder = folder / "runs" if (folder / "runs").is_dir() else folder
    runs: dict[tuple[str, str], list[Path]] = {}
    for record in sorted(folder.glob("*/*/*/seed*/[!.]*/record.json")):
        paper, scale = record.relative_to(folder).parts[:2]
        if scale in protocol.SCALES:
            runs.setdefault((paper, scale), []).append(record.parent)
    if not runs:
        layout = "<paper>/<scale>/<task>/seed<k>/<arm>/record.json"
        raise BadInput(f"FROM={folder}: no finished run; it should hold {layout}")
    return runs


@contextlib.contextmanager
def unpacked(place: Path) -> Iterator[Path]:
    """The folder itself, or a temporary one with what an archive holds."""
    if not place.is_file():
        yield place
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(place) as archive:
                archive.extractall(folder, filter="data")  # no path leads out of the folder
        except (tarfile.TarError, EOFError) as error:
            why = str(error).partition("\n")[0].rstrip(" (:")
            what = f"FROM={place}: no archive of runs, or cut short ({why})"
            raise BadInput(f"{what}; copy it again, or give a folder") from error
        yield Path(folder)


def same_rules(paper: Protocol, folder: Path) -> None:
    """Refuse results that other claims or another protocol led to: their seeds may differ."""
    for path in (folder / "results.json", folder / "preview.json"):
        if path.exists():
            head = recorded.load_json(path)
            for name in ("claims", "protocol"):
                sha256 = protocol.sha256_yaml(paper.directory / f"{name}.yaml")
                if head.get(f"{name}_sha256") not in (None, sha256):
                    raise BadInput(f"{path}: made with another {name}.yaml; use the same commit")


def merge(paper: Protocol, scale: str, places: list[Path]) -> Counter[str]:
    """Take over what fits; runs that others use come first."""
    code = protocol.code_hashes(paper.directory / "train.py")
    nodes: dict[protocol.Key, tuple[Node, list[Path]]] = {}
    counted: Counter[str] = Counter()
    for place in places:
        task, seed, arm = place.parts[-3:]
        try:
            if not re.fullmatch("seed[0-9]+", seed):
                raise BadInput(f"{seed} is no seed; its folder is named seed<k>")
            node = paper.node(scale, arm, task, int(seed.removeprefix("seed")))
        except BadInput as error:
            say(f"  {place}: {REFUSED}: {error}")
            counted[REFUSED] += 1
        else:
            nodes.setdefault(node.key, (node, []))[1].append(place)

    def take(key: protocol.Key) -> None:
        if key not in nodes:
            return
        node, copies = nodes.pop(key)
        for used in node.uses:
            take(used)
        for place in copies:
            outcome, why = take_over(place, paper, scale, node, code)
            counted[outcome] += 1
            if why:
                say(f"  {place}: {outcome}: {why}")

    for key in list(nodes):
        take(key)
    return counted


def take_over(
    place: Path, paper: Protocol, scale: str, node: Node, code: dict[str, str]
) -> tuple[str, str]:
    """(what became of one run, why it was not taken over or '')."""
    target = paper.run_directory(scale, node.key)
    theirs = protocol.read_record(place)
    if target.exists():
        ours = protocol.read_record(target)
        if ours is None:
            return CLASH, f"{target} is unfinished; finish or delete it"
        same = theirs is not None and protocol.record_sha256(ours) == protocol.record_sha256(theirs)
        return (HERE, "") if same else (CLASH, f"{target} has another outcome or other settings")
    target.parent.mkdir(parents=True, exist_ok=True)
    copy = target.with_name(f".{target.name}.merging")
    shutil.rmtree(copy, ignore_errors=True)
    try:
        shutil.copytree(place, copy, ignore=shutil.ignore_patterns(".*"))
        # the copy is what is checked: that it arrived whole, and that this checkout would make it
        if reason := protocol.stale(copy, paper.config(scale, node), code):
            return REFUSED, reason
        copy.rename(target)
    except OSError as error:  # a pipe, a loop of links, a file that may not be read
        return REFUSED, f"it cannot be copied ({str(error)[:200]})"
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return TAKEN, ""


def merge_scale(name: str, scale: str, runs: list[Path]) -> Counter[str]:
    """Take over the runs of one paper and scale: how many came to what."""
    say(f"{name} at scale {scale}")
    paper = Protocol(ROOT / name)
    paper.scale(scale)
    for folder in {run.parents[2] for run in runs}:
        same_rules(paper, folder)
    with locks.alone(protocol.runs_root(ROOT) / name / scale, f"{name} at scale {scale}"):
        return merge(paper, scale, runs)


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    folders = [Path(os.path.expanduser(word)) for word in ",".join(words).split(",") if word]
    total: Counter[str] = Counter()
    given = contextlib.ExitStack()
    try:
        if not folders:
            raise BadInput("FROM= is missing: make merge FROM=runs-of-another-machine[,another]")
        folders = [given.enter_context(unpacked(folder)) for folder in folders]
        places: dict[tuple[str, str], list[Path]] = {}
        for folder in folders:
            for key, runs in runs_in(folder).items():
                places.setdefault(key, []).extend(runs)
        for (name, scale), runs in places.items():
            try:
                counted = merge_scale(name, scale, runs)
            except (BadInput, OSError) as error:  # another paper's runs may fit
                print(f"error: {inputs.in_words(error)}", file=sys.stderr)
                counted = Counter({REFUSED: len(runs)})
            total += counted
            say(f"  {', '.join(f'{n} {what}' for what, n in counted.items())}")
    except (BadInput, OSError) as error:
        print(f"error: {inputs.in_words(error)}", file=sys.stderr)
        return 2
    finally:
        given.close()
    return 2 if total[CLASH] or total[REFUSED] else 0


if __name__ == "__main__":
    sys.exit(main())
