"""What a run read, and whether it would read the same now.

Each file is noted with its sha256 and a place that can be found again on another machine: below
REPRO_DATA, REPRO_MODELS, the hub's cache, a package, or a folder that the configuration names.
Imports nothing heavy: a finished paper is recognised within a second.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class MissingInput(RuntimeError):
    """An input is not on this machine and cannot be fetched; the message says how to get it."""


def in_words(error: Exception) -> str:
    """An error's message; of one of the system's the file comes first, with a remedy."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    remedy = "correct the path, its permissions, or what is in its place"
    return f"{str(error.filename)[:300]}: {error.strerror}\n  remedy:  {remedy}"


# --- roots ------------------------------------------------------------------------------------


def root(variable: str) -> Path | None:
    """The folder an environment variable names; one that does not exist is an error, not a miss."""
    value = os.environ.get(variable, "")
    if value and not os.path.isdir(_expanded(value)):
        remedy = f"remedy:  correct or unset {variable}"
        raise MissingInput(f"{variable}={value[:300]} is not a folder\n  {remedy}")
    return _expanded(value).resolve() if value else None


def writable(root: Path) -> Path:
    """Where runs, caches and reports of `root` go: there, or, if `root` is the folder that packages
    are installed in, to the working directory."""
    return Path.cwd() if root.name.endswith("-packages") else root


def _expanded(path: str | Path) -> Path:
    """`~` of a user that is not there stays; `Path.expanduser` would stop the program."""
    return Path(os.path.expanduser(path))


def cache_root() -> Path:
    """Where values are kept that are made once; safe to delete."""
    return _expanded(os.environ.get("REPRO_CACHE") or writable(ROOT) / ".cache").absolute()


def hub_cache() -> Path:
    user = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME") or os.path.join(user, "huggingface")
    return _expanded(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))


def plain(name: str) -> str:
    return re.sub(r"[-_]", "", name).casefold()


def below(root: Path | None, name: str) -> Path | None:
    """`root/name`, its parts compared without case, `-` and `_`; an exact name wins."""
    path = root
    for part in Path(name).parts:
        if path is None or (path / part).exists():
            path = path and path / part
            continue
        entries = sorted(path.iterdir()) if path.is_dir() else []
        path = next((entry for entry in entries if plain(entry.name) == plain(part)), None)
    return path


def only_readme(path: Path) -> bool:
    """Whether a folder holds a README.md and else hidden files only: no data set."""
    if not path.is_dir():
        return False
    return {x.name for x in path.iterdir() if x.name[0] != "."} == {"README.md"}


def newest_snapshot(folder: Path) -> Path | None:
    """The snapshot of a model or data set in the hub's cache that is read: the newest whole one."""
    from shared import door  # which needs this file

    snapshots = [x for x in (folder / "snapshots").glob("*") if x.is_dir()]
    if folder.name.startswith("models--"):
        kinds = (("weights", "tokenizer"), ("weights",), ("tokenizer",))
        whole = ([x for x in snapshots if door.is_whole(x, parts)] for parts in kinds)
        snapshots = next(filter(None, whole), [])
    return max(snapshots, key=lambda x: x.stat().st_mtime, default=None)


def _datasets_cache() -> Path:
    return _expanded(os.environ.get("HF_DATASETS_CACHE") or hub_cache().parent / "datasets")


def _roots(given: Mapping[str, Any]) -> dict[str, Path]:
    """Names of places and their folders now; of folders inside each other the innermost is first.

    given: fields of a configuration; each that names a file or folder is a place of its own."""
    folders: dict[str, Path] = {}
    for variable in ("REPRO_DATA", "REPRO_MODELS"):
        with contextlib.suppress(MissingInput):
            folders |= {variable: folder} if (folder := root(variable)) else {}
    folders |= {"cache": hub_cache(), "datasets": _datasets_cache(), "REPRO_CACHE": cache_root()}
    folders = dict(sorted(folders.items(), key=lambda item: -len(item[1].parts)))
    for key, value in given.items():
        if isinstance(value, str) and value and key not in {"out", "device"}:
            folders[f"config.{key}"] = _expanded(value).absolute()
    return {**folders, "repository": ROOT}


def _place(path: Path, given: Mapping[str, Any] | None = None) -> str:
    """Where a file is, in words that are true on other machines; its bare name where it is none's.

    A package's file is told from the folder that packages are installed in."""
    path = path.absolute()
    for entry in sys.path:
        if entry.endswith("-packages") and path.is_relative_to(entry):
            return f"package/{path.relative_to(entry).as_posix()}"
    for name, folder in _roots(given or _given).items():
        for form in (folder, Path(os.path.realpath(folder))):
            if path.is_relative_to(form):
                return f"{name}/{path.relative_to(form).as_posix()}".removesuffix("/.")
    return path.name


def _locate(place: str, folders: Mapping[str, Path]) -> Path | None:
    """The file at a place now, whether it is there or not; None where no place is meant."""
    name, _, rest = place.partition("/")
    if name == "package":
        package, _, inside = rest.partition("/")
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(package)
            if spec is not None and spec.submodule_search_locations:
                return Path(spec.submodule_search_locations[0]) / inside
        return Path(rest)
    if name not in folders:
        unset = name in ("REPRO_DATA", "REPRO_MODELS") or name.startswith("config.")
        return Path("unset") / rest if unset else None
    parts = Path(rest).parts
    if name == "cache" and parts[1:2] == ("snapshots",):
        snapshot = newest_snapshot(folders[name] / parts[0])
        return snapshot.joinpath(*parts[3:]) if snapshot else folders[name] / rest
    return below(folders[name], rest) or folders[name] / rest


# --- what was read ----------------------------------------------------------------------------


class ReadLog(dict[str, dict[str, Any]]):
    """name -> {sha256, path, and where they are needed place, beside} of what was read.

    path: the place, or an origin such as `bundled`. beside: number of files that belong to the same
    part of the data. asked: place that was looked at first -> place that was there, or "".
    caches: sha256 of each stored value that was used."""

    def __init__(self, data: Any = (), asked: Any = (), caches: Any = ()):
        super().__init__(data)
        self.asked: dict[str, str] = dict(asked)
        self.caches: dict[str, str] = dict(caches)

    def fill(self, before: ReadLog) -> None:
        """Add what was read earlier and is not here."""
        self.update({name: entry for name, entry in before.items() if name not in self})
        self.asked = before.asked | self.asked
        self.caches = before.caches | self.caches

    def parts(self) -> dict[str, Any]:
        return {"data": dict(self), "asked": self.asked, "caches": self.caches}


_recordings: list[ReadLog] = []
_given: Mapping[str, Any] = {}  # fields of the configuration of the run that reads
_samples = False  # what is read was written for it: inside `pointed_at`


@contextlib.contextmanager
def recording(given: Mapping[str, Any] | None = None) -> Iterator[ReadLog]:
    """Everything noted inside the `with` block, also by loaders that answer from memory.

    given: the configuration, whose paths are places that can be found again."""
    global _given
    log, before = ReadLog(), _given
    _recordings.append(log)
    _given = before if given is None else given
    try:
        yield log
    finally:
        _given = before
        # by identity: two recordings that are equal (both empty, say) are not the same
        _recordings[:] = [other for other in _recordings if other is not log]


@contextlib.contextmanager
def pointed_at(**folders: str | Path) -> Iterator[None]:
    """`with pointed_at(REPRO_DATA=folder)`: these variables name these folders in the block.

    They hold samples that the reader wrote, and would write again: their content is noted, but no
    place where it could be looked for later."""
    global _samples
    before, outside = {name: os.environ.get(name) for name in folders}, _samples
    os.environ.update({name: str(folder) for name, folder in folders.items()})
    _samples = True
    try:
        yield
    finally:
        _samples = outside
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def note(name: str, path_or_sha: Path | str, origin: str = "") -> str:
    """Write down that the data called `name` were read: a file (hashed), a folder (its listing
    hashed) or a sha256 -> the sha256.

    origin: `bundled`, `hub:...`; a file's default is its place.
    """
    if isinstance(path_or_sha, Path):
        path, place = path_or_sha, _place(path_or_sha)
        sha = tree_sha256(path) if path.is_dir() else file_sha256(path)
        entry: dict[str, Any] = {"sha256": sha, "path": origin or place}
        if _samples:
            entry["path"] = "sample"
        elif origin:
            entry["place"] = place
        if path.is_file() and not _samples and (n := _beside(path, place)) > 1:
            entry["beside"] = n
    else:
        sha, entry = path_or_sha, {"sha256": path_or_sha, "path": origin}
    for log in _recordings:
        log[name] = entry
    return sha


def look(variable: str, name: str) -> Path | None:
    """`name` below the folder of REPRO_DATA or REPRO_MODELS; that it is not there is noted too."""
    if Path(name).is_absolute():
        return None
    folder = root(variable)
    path = below(folder, name)
    place = _place(folder / name) if folder else f"{variable}/{name}"
    _note_asked(place, _there(path, _given) if path else "")
    return path


def first(paths: Iterable[Path]) -> Path | None:
    """The first that exists; that those before it do not is noted: one of them would be read."""
    for path in paths:
        if path.exists():
            return path
        _note_asked(_place(path), "")
    return None


def _note_asked(place: str, there: str) -> None:
    for log in _recordings if not _samples else ():
        log.asked[place] = there


def _there(path: Path, given: Mapping[str, Any]) -> str:
    """The place of a file or folder; how many tables a folder holds says which layout is read.

    A folder with nothing but a README.md counts as none: data that come later are a change."""
    if only_readme(path):
        return ""
    kinds = (".parquet", ".arrow")
    tables = [x for depth in ("*", "*/*") for x in path.glob(depth) if x.suffix in kinds]
    return _place(path, given) + (f" with {len(tables)} tables" if tables else "")


def replay(read: ReadLog) -> None:
    """Note once more what a stored value was made of."""
    for log in _recordings:
        log.update(read)
        log.asked |= read.asked
        log.caches |= read.caches


def note_cache(name: str, sha256: str) -> None:
    for log in _recordings:
        log.caches[name] = sha256


def _beside(path: Path, place: str) -> int:
    """How many files belong to the same part: shards and other formats, here or one folder up; of a
    model all that are read."""
    from shared import door  # which needs this file

    kind = place.partition("/")[0]
    if not kind.startswith(("REPRO_DATA", "REPRO_MODELS", "cache", "package", "config.")):
        return 1
    if door.is_read(path.name):
        return sum(map(door.is_read, os.listdir(path.parent)))
    if kind == "package" or kind.startswith("config."):
        return 1

    def part(name: str) -> str:
        return re.sub(r"_?\d+$", "", re.split(r"[.-]", name)[0])

    folders = [path.parent] if place.count("/") < 3 else [path.parent, path.parent.parent]
    names = [name for folder in folders for name in os.listdir(folder) if name[0] != "."]
    return sum(part(name) == part(path.name) for name in names)


HASHED_WHOLE = 4 * 10**9  # bytes: to hash 140 GB of images would take longer than many a run


_large: dict[tuple[str, tuple[tuple[str, int], ...]], str] = {}


def tree_sha256(folder: Path) -> str:
    """sha256 of names and contents of the files in the folders of `folder`, hidden ones left out;
    of more than 4 GB names and sizes stand for the content, and a process walks them once as long
    as nothing is added to or taken from a class."""
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_dir()}
    key = str(folder), tuple(sorted(times.items()))
    if key in _large:
        return _large[key]
    names = [path.relative_to(folder) for path in folder.glob("*/*") if path.is_file()]
    names = [p for p in names if not any(x.startswith((".", "__", "@")) for x in p.parts)]
    sizes = {name: (folder / name).stat().st_size for name in names}
    whole = sum(sizes.values()) <= HASHED_WHOLE
    listing = (
        f"{name.as_posix()} {file_sha256(folder / name) if whole else size}"
        for name, size in sorted(sizes.items())
    )
    sha256 = hashlib.sha256("\n".join(listing).encode()).hexdigest()
    if not whole:
        _large[key] = sha256
    return sha256


def file_sha256(path: Path | str) -> str:
    """sha256 of a file's bytes; asked twice of an untouched file, it is read once."""
    s = os.stat(path)
    return _file_sha256(str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)


@functools.lru_cache(maxsize=2**17)
def _file_sha256(path: str, *state: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- whether it would be read again -----------------------------------------------------------


def changed(read: ReadLog, given: Mapping[str, Any] | None = None) -> str | None:
    """Why the same loaders would now read something else (`data changed: glue/RTE/dev.tsv`).

    given: fields of the configuration of the run, by default of the one that reads at the moment.
    None is returned where every file is as it was."""
    given = _given if given is None else given
    folders = _roots(given)
    for name, entry in read.items():
        place = entry.get("place") or entry.get("path") or ""
        path = _locate(place, folders)
        if path is None:
            continue
        if not path.exists():
            if place.startswith("REPRO_CACHE/"):
                continue  # made again by the code that made it, whose hash the run holds
            return f"data missing: {name} ({_where(place)})"
        now = tree_sha256(path) if path.is_dir() else file_sha256(path)
        if now != entry["sha256"]:
            return f"data changed: {name}"
        if path.is_file() and (n := _beside(path, place)) != entry.get("beside", 1):
            return f"data changed: {name} ({entry.get('beside', 1)} -> {n} files of this part)"
    for place, before in read.asked.items():
        path = _locate(place, folders)
        if path is not None and path.exists() and (now := _there(path, given)) != before:
            name, _, tables = now.partition(" with ")
            more = f", with {tables}" if tables else ""
            return f"data changed: {name} is there now and would be read{more}"
    return None


def _where(place: str) -> str:
    variable = place.partition("/")[0]
    if variable in ("REPRO_DATA", "REPRO_MODELS"):
        value = os.environ.get(variable, "")
        return f"{variable}={value}" if value else f"{variable} is not set"
    return f"not found again at {place}"
