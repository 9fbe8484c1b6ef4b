"""Generated blocks of Markdown pages: between the marks is ours, the rest is not touched.

<!-- generated: NAME -->
...
<!-- end generated -->
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.recorded import write_text

BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n)(.*?)(<!-- end generated -->)", re.DOTALL)


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """`text` with its generated blocks replaced; one that `blocks` does not name stays."""
    opened, closed = text.count("<!-- generated: "), text.count("<!-- end generated -->")
    if opened != closed or opened != len(BLOCK.findall(text)):
        raise ValueError(
            f"{opened} blocks are opened and {closed} closed; write `<!-- generated: NAME -->` and "
            "`<!-- end generated -->` each on a line of its own, in pairs"
        )

    def block(match: re.Match[str]) -> str:
        body = blocks.get(match[2])
        return match[0] if body is None else f"{match[1]}{body}\n{match[4]}"

    return BLOCK.sub(block, text)


def update_readme(path: Path, blocks: Mapping[str, str]) -> bool:
    """Fill the blocks of the page at `path`; True if that changed it."""
    before = path.read_text(encoding="utf-8")
    try:
        after = filled(before, blocks)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if after != before:
        write_text(path, after)
    return after != before


def outdated(path: Path, blocks: Mapping[str, str]) -> list[str]:
    """Names of the blocks of `path` that are not what `blocks` says."""
    text = path.read_text(encoding="utf-8")
    old = {name: body for _, name, body, _ in BLOCK.findall(text)}
    new = {name: body for _, name, body, _ in BLOCK.findall(filled(text, blocks))}
    return [name for name in new if old[name] != new[name]]
