"""Every file of rows is opened and read here; what cannot be read is refused with file and row.

Text is UTF-8 with or without a byte-order mark. A line ends at a line feed (with or without a
carriage return) and nowhere else: U+0085, U+2028 and their like are characters of a text. Blank
lines are skipped. Readers yield (place, row), where the place (`<file> row <number>`) begins the
message of whoever refuses the row. Text rows count from 1, a header included; others from 0.
"""

from __future__ import annotations

import csv
import functools
import gzip
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shared import door, sources
from shared.protocol import BadInput

Row = dict[str, Any]  # column -> value

_GZIP = b"\x1f\x8b"
_POINTERS = (b"version https://git-lfs.github.com/", b"/annex/objects/", b"../.git/annex/")
_PAGES = (b"<!doctype", b"<html", b"<?xml")  # what a server sends in place of a file
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"


# --- files ---------------------------------------------------------------------------------------


def checked(path: Path, name: str) -> Path:
    """The file itself, `intact`, written down as read under `name` (`sources.note`)."""
    intact(path)
    sources.note(name, path)
    return path


def intact(path: Path) -> None:
    """Raises BadInput for what is no whole file of data, as far as its two ends say.

    That is a folder, a pipe or device, an empty file, a pointer of Git LFS or git-annex, a web
    page, and a parquet or arrow file without its end.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise BadInput(f"{path}: a pipe or a device, not a file. Remedy: save it as a file")
        head, tail = _ends(path)
        if not head:
            raise BadInput(f"{path}: no rows, the file is empty. Remedy: fetch it again")
        if head.startswith(_POINTERS):
            remedy = "Remedy: `git lfs pull` (or `git annex get`), or fetch it again"
            raise BadInput(f"{path}: a pointer to the file, not the file. {remedy}")
        if head.lstrip().lower().startswith(_PAGES):
            raise BadInput(f"{path}: a web page, not the data. Remedy: fetch it again")
        parquet = path.suffix == ".parquet" and (head[:4], tail[-4:]) != (b"PAR1", b"PAR1")
        if parquet or (path.suffix == ".arrow" and tail != _ARROW_END):
            kind = path.suffix.removeprefix(".")
            raise BadInput(f"{path}: cut short, or not a {kind} file. Remedy: fetch it again")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error}). Remedy: fetch it again") from error


def _ends(path: Path) -> tuple[bytes, bytes]:
    with open(path, "rb") as file:
        head = file.read(512)
        file.seek(max(0, path.stat().st_size - 8))
        return head, file.read(8)


def hidden(path: Path) -> bool:
    """What systems and tools leave in folders: `.DS_Store`, `._x`, `.ipynb_checkpoints`, ..."""
    return path.name.startswith(".") or path.name in ("__MACOSX", "@eaDir", "lost+found")


def visible(folder: Path) -> list[Path]:
    """Entries of a folder in order, without hidden ones; how many those are is printed once."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        what = f"{folder}: cannot be read as a folder ({error.strerror})"
        raise BadInput(
            f"{what}. Remedy: correct the link or the permissions, or move it away"
        ) from error
    shown = [entry for entry in entries if not hidden(entry)]
    if len(shown) < len(entries):
        say_once(f"note: {len(entries) - len(shown)} hidden entries of {folder} are skipped")
    return shown


@functools.cache
def say_once(message: str) -> None:
    print(message, flush=True)


def shards(folder: Path, part: str) -> list[Path]:
    """Parquet or arrow files of a part in the hub's layouts, in order; none if there are none.

    `<part>.parquet`, `<part>-00000-of-00003.parquet`, in the folder or a folder of it; or files of
    a folder `<part>`: numbered ones, and what `save_to_disk` writes. Raises BadInput where a file
    of a family is missing or there twice.
    """
    entries = visible(folder)
    entries += [x for entry in entries if entry.is_dir() for x in visible(entry)]
    tables = [entry for entry in entries if entry.suffix in (".parquet", ".arrow")]
    member = r"[-._]\d+-of-\d+(-[0-9a-f]{8,})?"  # the hub once added a hash
    own, inside = re.compile(rf"{part}({member})?"), re.compile(rf"\d+|dataset|.+{member}")
    named = [path for path in tables if own.fullmatch(path.stem)]
    nested = [path for path in tables if path.parent.name == part and inside.fullmatch(path.stem)]
    return complete(named or nested)


def complete(paths: Iterable[Path]) -> list[Path]:
    """The files of one part in order. Raises BadInput unless they are one whole family.

    `-of-N` in their names says how many there must be; plain numbers must run from 0.
    """
    files = sorted(paths, key=lambda path: (path.name, path))
    members = [_member(path, len(files)) for path in files]
    sizes = sorted({size for _, size in members})
    numbers = Counter(number for number, _ in members)
    if sizes in ([], [0]) and len(files) < 2:
        return files
    where, again = files[0].parent, "Remedy: fetch the data again into an empty folder"
    if len(sizes) > 1 or max(numbers.values()) > 1:
        names = ", ".join(str(path.relative_to(path.parents[1])) for path in files[:4])
        raise BadInput(f"{where}: more than one copy of the same part: {names}. {again}")
    count = sizes[0]
    lacking = (number for number in range(count) if number not in numbers)
    if missing := list(itertools.islice(lacking, 5)):
        some = ", ".join(f"{number:05d}" for number in missing)
        others = count - sum(number < count for number in numbers) - len(missing)
        more = f" and {others} more" if others else ""
        what = f"{files[0].name} is one of {count} files; missing: {some}{more}"
        raise BadInput(f"{where}: {what}. Remedy: fetch the missing files")
    if max(numbers) >= count:
        raise BadInput(f"{where}: {files[-1].name} is beyond the {count} files. {again}")
    return files


def _member(path: Path, files: int) -> tuple[int, int]:
    """(number, size of its family) of a file; (0, 0) of one that is whole by itself."""
    if match := re.search(r"(\d+)-of-(\d+)", path.name):
        return int(match[1]), int(match[2])
    base = path.name.split(".")[0]
    return (int(base), files) if base.isdecimal() else (0, 0)


# --- rows ----------------------------------------------------------------------------------------


def lines(path: Path, blank: bool = False) -> Iterator[tuple[str, str]]:
    """(place, line) of a text file, gzip or not; `blank`: blank lines, too.

    Raises BadInput with the row that is not UTF-8 or holds a NUL (of UTF-16, of a damaged file),
    where the file ends too soon, and for one that is blank or whose lines end at carriage returns.
    """
    intact(path)
    number, empty = 0, True
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == _GZIP
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                # a mark begins a file, and each that was appended to it
                line = raw.decode("utf-8").lstrip("\ufeff").removesuffix("\n").removesuffix("\r")
                if "\0" in line:
                    what = f"{path} row {number}: a NUL, which is no text"
                    raise BadInput(f"{what}. Remedy: save it as UTF-8, or fetch it again")
                if "\r" in line and number == 1 and not (blank or raw.endswith(b"\n")):
                    what = f"{path}: its lines end at carriage returns"
                    raise BadInput(f"{what}. Remedy: save it with line feeds")
                empty = empty and not line.strip()
                if blank or line.strip():
                    yield f"{path} row {number}", line
        if empty:
            raise BadInput(f"{path}: no rows, every line is blank. Remedy: fetch it again")
    except UnicodeDecodeError as error:
        wrong = f"byte {error.object[error.start]:#04x} at place {error.start + 1} is not UTF-8"
        raise BadInput(f"{path} row {number}: {wrong}. Remedy: save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        what = f"{path} row {number + 1}: cannot be read ({error})"
        raise BadInput(f"{what}. Remedy: fetch it again") from error


def text(path: Path) -> str:
    """A whole text file."""
    return "\n".join(line for _, line in lines(path, blank=True))


def json_document(path: Path) -> Any:
    """What a JSON file holds. Raises BadInput if it is none, or cut short."""
    try:
        return door.strict_json(text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: not JSON ({error}). Remedy: fetch the file again") from error


def json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, object) of a file of JSON lines. Raises BadInput for a line that is none."""
    for at, line in lines(path):
        try:
            row = door.strict_json(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{at}: not JSON ({error}). Remedy: fetch the file again") from error
        if not isinstance(row, dict):
            remedy = 'Remedy: one object {"column": value} a line'
            raise BadInput(f"{at}: {line[:60]!r} is not a JSON object. {remedy}")
        yield at, row


def tab_separated(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(place, fields) of a TSV: quotes are plain characters."""
    for at, line in lines(path):
        yield at, line.split("\t")


def comma_separated(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, row) of a CSV with a header; quoted fields may hold commas and line feeds.

    Raises BadInput for a row with more or fewer fields than the header, and what csv refuses.
    """
    reader = csv.reader((line + "\n" for _, line in lines(path, blank=True)), strict=True)
    columns: list[str] = []
    begun = 0
    try:
        for fields in reader:
            at, begun = f"{path} row {begun + 1}", reader.line_num
            if not any(map(str.strip, fields)):
                continue
            if not columns:
                columns = header(at, fields)
                continue
            if len(fields) != len(columns):
                raise wrong_width(at, fields, columns)
            yield at, dict(zip(columns, fields))
    except csv.Error as error:
        at = f"{path} row {begun + 1}"
        raise BadInput(f"{at}: not CSV ({error}). Remedy: fetch the file again") from error


def header(at: str, fields: Iterable[str]) -> list[str]:
    """The names of columns. Raises BadInput where two are the same: which one counts?"""
    columns = [field.strip() for field in fields]
    if twice := [name for name, times in Counter(columns).items() if name and times > 1]:
        raise BadInput(f"{at}: column {twice[0]!r} is there twice. Remedy: rename one")
    return columns


def wrong_width(at: str, fields: list[str], columns: list[str]) -> BadInput:
    names = ", ".join(columns[:8])
    what = f"{len(fields)} columns, expected {len(columns)} ({names})"
    return BadInput(f"{at}: {what}. Remedy: fetch the file again; the row is broken")


def columnar(path: Path) -> list[tuple[str, Row]]:
    """(place, row) of a parquet or arrow file. Raises BadInput if it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            rows = pyarrow.parquet.read_table(path).to_pylist()
        else:
            with pyarrow.memory_map(str(path)) as file:
                rows = pyarrow.ipc.open_stream(file).read_all().to_pylist()
    except (OSError, ValueError, ArithmeticError, pyarrow.ArrowException) as error:
        raise BadInput(f"{path}: cannot be read ({error}). Remedy: fetch it again") from error
    return [(f"{path} row {number}", row) for number, row in enumerate(rows)]


def no_column(at: str, column: str, row: Iterable[str]) -> BadInput:
    there = f"no column '{column}'; columns: {', '.join(map(str, row))[:300]}"
    return BadInput(f"{at}: {there}. Remedy: rename the column, or fetch the file again")


def records(path: Path) -> Iterable[tuple[str, Row]]:
    """(place, row) of a parquet or arrow file, or else of JSON lines."""
    return columnar(path) if path.suffix in (".parquet", ".arrow") else json_lines(path)


def text_in(row: Row, column: str, at: str) -> str:
    """What a text column holds; BadInput where that is no text."""
    if column not in row:
        raise no_column(at, column, row)
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        blank = value is None or isinstance(value, str)
        what = "is empty" if blank else f"holds {repr(value)[:60]}"
        raise BadInput(f"{at}: column '{column}' {what}, expected text. Remedy: fetch it again")
    return value
