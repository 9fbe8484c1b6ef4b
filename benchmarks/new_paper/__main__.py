"""Make the directory of another paper; it trains, is judged and is tested. Then replace it.

    python -m benchmarks.new_paper my_paper     writes my_paper/ and tests/my_paper/

What it holds is a small honest bilevel problem, learning the weight decay of each column of a ridge
regression. Nothing else has to be touched: every list of papers follows from the paper.yaml.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

from benchmarks import PAPERS, ROOT, drawings, papers
from shared.protocol import BadInput

TEMPLATE = Path(__file__).parent / "template"
PLACEHOLDER = "example_paper"


def create(name: str, root: Path = ROOT) -> list[Path]:
    """Write `root`/NAME and `root`/tests/NAME: the files. BadInput if the name will not do."""
    if not name.isidentifier() or name != name.lower():
        raise BadInput(f"name {name!r}: write a Python name in small letters, as ts_watermark")
    if (root / name).exists() or importlib.util.find_spec(name):
        raise BadInput(f"name {name!r} is taken by a directory or a package; choose another")
    order = 1 + max((papers.paper(paper).order for paper in PAPERS), default=0)
    files = []
    for source in sorted(TEMPLATE.iterdir()):
        if source.is_file():
            tests = source.name.startswith("test_")
            target = (root / "tests" / name if tests else root / name) / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text(encoding="utf-8").replace(PLACEHOLDER, name)
            target.write_text(text.replace("order: 1\n", f"order: {order}\n"), encoding="utf-8")
            files.append(target)
    tidy(files)
    return files + drawings.write(root / name)


def tidy(files: list[Path]) -> None:
    """Imports in the order, and lines in the breaks, that a name of this length asks for."""
    code = [str(file) for file in files if file.suffix == ".py"]
    if importlib.util.find_spec("ruff"):
        ruff = [sys.executable, "-m", "ruff"]
        subprocess.run([*ruff, "check", "--quiet", "--select", "I", "--fix", *code], check=True)
        subprocess.run([*ruff, "format", "--quiet", *code], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.new_paper", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("name", help="of the directory, as in `import NAME`")
    name = parser.parse_args().name
    try:
        files = create(name)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(str(file.relative_to(ROOT)) for file in files))
    print(
        f"\nIt runs: python -m {name}.train --tiny; make reproduce-{name.replace('_', '-')}.\n"
        f"Now write what the paper is into {name}/paper.yaml, its algorithm into\n"
        f"{name}/method.py, and its claims into {name}/claims.yaml, before the first verdict run."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
