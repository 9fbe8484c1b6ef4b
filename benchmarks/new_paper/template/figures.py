"""The method's own picture: which weight decay each column was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RunDirectories = dict[tuple[str, str, int], Path]


def figures(results: dict[str, Any], run_dirs: RunDirectories) -> list[tuple[str, str, str, Any]]:
    """[(name, caption, alt, figure)]; nothing where no run of the method is on this machine."""
    records = [
        json.loads((directory / "record.json").read_text(encoding="utf-8"))
        for (arm, _, _), directory in sorted(run_dirs.items())
        if arm == "learned" and (directory / "record.json").exists()
    ]
    if not records:
        return []
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(4.4, 2.4))
    for record in records:
        axis.plot(record["details"]["decays"], ".", color="C0", alpha=0.6)
    axis.axvline(9.5, color="0.5", linewidth=0.8)
    axis.set(yscale="log", xlabel="column (right of the line: noise)", ylabel="weight decay")
    caption = f"Learned weight decay of each column, {len(records)} seeds."
    alt = caption + " Columns 0 to 9 were measured; the others are noise."
    return [("decays", caption, alt, figure)]
