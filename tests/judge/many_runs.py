"""What the judge costs when a paper has many runs; nothing is trained, answers are invented.

    python tests/judge/many_runs.py 5000 1000      # runs, test items of each

Seconds of CPU and peak memory to plan, to judge and write, to check and to report so many runs of
the toy paper."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "judge")]


def timed(what: str, work: Callable[[], Any]) -> Any:
    begun = time.process_time()
    result = work()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}: {time.process_time() - begun:.1f} s of CPU, peak so far {memory:.0f} MB")
    return result


def main(runs: int, items: int) -> None:
    import toy

    with TemporaryDirectory() as place:
        folder = toy.write(
            Path(place)
        )  # with a copy of the judge, which finds papers beside itself
        del sys.modules["toy"]  # from here on the paper of that name
        sys.path.insert(0, place)
        import recorded_toy

        from benchmarks import check, report
        from shared.protocol import Protocol

        seeds, nodes = len(Protocol(folder).seeds("cpu")), Protocol(folder).nodes("cpu")
        of_a_seed = sum(node.seed == nodes[-1].seed for node in nodes)
        text = (folder / "protocol.yaml").read_text()
        more = text.replace(f"seeds: {seeds}", f"seeds: {runs // of_a_seed}", 1)
        (folder / "protocol.yaml").write_text(more)
        nodes = timed("plan", lambda: Protocol(folder).nodes("cpu"))
        print(f"{len(nodes)} runs, {of_a_seed} of a seed")
        recorded_toy.ITEMS = items
        timed("judge, record", lambda: recorded_toy.record(folder))
        problems = timed("check", lambda: check.check_paper(folder))[1]
        print(f"problems: {problems[:3]}")
        out = Path(place) / "report"
        timed("report", lambda: report.write_pages(Path(place), ["toy"], Path(place) / "runs", out))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
