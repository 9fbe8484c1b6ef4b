"""Rows of data files, one way for each format; numbers of rows are there to be named in errors."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # column -> value


def shards(folder: Path, part: str) -> list[Path]:
    """The hub's files of a part: `<part>.parquet`, its shards, or what `save_to_disk` writes."""
    name = re.compile(rf"{part}(-\d+-of-\d+)?")
    parquet = sorted(path for path in folder.glob("*.parquet") if name.fullmatch(path.stem))
    return parquet or sorted((folder / part).glob("*.arrow"))


def columnar(path: Path) -> list[Row]:
    """All rows of a parquet or arrow file."""
    import pyarrow
    import pyarrow.parquet

    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    with pyarrow.memory_map(str(path)) as file:
        return pyarrow.ipc.open_stream(file).read_all().to_pylist()


def json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, object) of a file of JSON lines, gzip where it ends in `.gz`.

    Raises ValueError with the line that is not JSON.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path} row {number}: not JSON ({error}). Remedy: fetch the file again"
                ) from error


def tab_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of a TSV: quotes are plain characters, a byte-order mark is dropped."""
    text = io.StringIO(path.read_text("utf-8-sig"), newline="")
    reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    for fields in reader:
        yield reader.line_num, fields
