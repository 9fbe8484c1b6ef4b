"""Runs of one paper cut to a few steps of each phase, and what a step costs on this device.

    python -m benchmarks.short_runs PAPER SCALE --out FILE [--steps 4] [--seconds 60]

Each line of FILE is one run: seconds, and for each of its phases the steps that the protocol asks
for, seconds of one, FLOPs, and the tokens and images that forward passes read. Nothing of such a
run is kept: its folder is a temporary one, its seed a development seed. In the order of the first
claim's arms, then all others, so that a call that runs out of time has measured what is judged.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.plan import ROOT, load_claims
from benchmarks.visits import Phase, Short
from shared.protocol import Node, Protocol

SEED = 90  # of development


def order(paper: Protocol, scale: str) -> list[Node]:
    """One run of each arm on each task: the first claim's on its first task, then all others on
    that task, then the other tasks."""
    claims = [c for c in load_claims(paper).claims if scale in c.scales]
    arms = [arm for claim in claims for arm in claim.arms.sides]
    arms += paper.selected(scale)
    named = [t for claim in claims[:1] for t in claim.listed_tasks() if t in paper.tasks(scale)]
    nodes: dict[Any, Node] = {}

    def add(key: tuple[str, str, int]) -> None:
        node = paper.node(scale, *key)
        for used in node.uses:
            add(used)
        nodes.setdefault(key, node)

    for task in dict.fromkeys([*named, *paper.tasks(scale)]):
        for arm in dict.fromkeys(arms):
            if paper.at_scale(arm, scale) and task in paper.arm_tasks(arm, scale):
                add((arm, task, SEED))
    return list(nodes.values())


# --- measuring ------------------------------------------------------------------------------------


class Reads:
    """Tokens that go into the largest embeddings, images into convolutions of up to 3 channels."""

    def __init__(self) -> None:
        self.of: Counter[int] = Counter()  # rows of an embedding -> ids that it was asked for
        self.images = 0

    @property
    def tokens(self) -> int:
        """Positions and types have embeddings, too, with fewer rows."""
        return self.of[max(self.of)] if self.of else 0

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        from torch.nn.modules.module import register_module_forward_pre_hook

        hook = register_module_forward_pre_hook(self._seen)
        try:
            yield
        finally:
            hook.remove()

    def _seen(self, module: Any, inputs: tuple[Any, ...]) -> None:
        import torch

        x = inputs[0] if inputs else None
        if not isinstance(x, torch.Tensor):
            return
        if isinstance(module, torch.nn.Embedding):
            self.of[module.num_embeddings] += x.numel()
        elif isinstance(module, torch.nn.Conv2d) and module.in_channels <= 3 and x.dim() == 4:
            self.images += len(x)


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def cut(run_class: Any, steps: int, phases: dict[str, Phase], flops: bool) -> Iterator[None]:
    """Inside the block a phase of a run ends after `steps` steps: one to warm up, the others timed,
    the last counted."""
    whole = run_class.phase

    def phase(self: Any, name: str, asked: int, work: Any = None) -> Iterator[int]:
        from torch.utils.flop_counter import FlopCounterMode

        now = phases[name] = Phase(asked)
        took: list[float] = []
        last = min(asked, steps) - 1
        for step in whole(self, name, min(asked, steps), work):
            counter, reads = FlopCounterMode(display=False), Reads()
            synchronize()
            begun = time.perf_counter()
            if step == last and flops and step > 0:
                with counter, reads.counting():
                    yield step
                now.flops = float(counter.get_total_flops())
                now.tokens, now.images = reads.tokens, reads.images
            else:
                yield step
            synchronize()
            took.append(time.perf_counter() - begun)
            timed = sorted(took[1:-1] or took[1:] or took)
            now.taken, now.seconds = len(took), timed[len(timed) // 2]

    run_class.phase = phase
    try:
        yield
    finally:
        run_class.phase = whole


def measure(paper: Protocol, scale: str, node: Node, module: Any, steps: int) -> Short:
    """One cut run; where its step cannot be counted (forward-mode derivatives), timed alone."""
    from shared import inputs, machine, runs

    settings = paper.config(scale, node)
    precision = str(settings.get("precision", "fp32"))
    short = Short(node.arm, node.task, node.stage, precision, [key[0] for key in node.uses])
    for flops in (True, False):
        begun, short.error, short.phases = time.perf_counter(), "", {}
        try:
            with cut(runs.Run, steps, short.phases, flops):
                module.run(module.Config(**settings))
        except runs.Stopped:
            raise
        except (inputs.MissingInput, runs.BadInput, runs.Diverged) as error:
            short.error = str(error)
            break
        except Exception:
            short.error = traceback.format_exc()
        else:
            break
        finally:
            short.seconds = time.perf_counter() - begun
            machine.free_memory()
    return short


def main() -> int:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("paper")
    parser.add_argument("scale")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0, help="no run is begun after these")
    asked = parser.parse_args()
    end = time.monotonic() + asked.seconds
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REPRO_RUNS"] = folder
        paper = Protocol(ROOT / asked.paper)
        module = importlib.import_module(f"{asked.paper}.train")
        broken: set[str] = set()
        for node in order(paper, asked.scale):
            if time.monotonic() > end:
                break
            if broken.intersection(key[0] for key in node.uses):
                continue
            short = measure(paper, asked.scale, node, module, asked.steps)
            broken |= {node.arm} if short.error else set()
            with open(asked.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(short)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
