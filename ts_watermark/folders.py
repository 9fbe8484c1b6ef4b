"""Trained generators as folders: two vectors, a tokenizer, and the mean values in use.

start/ holds the pairs before training, export/ after it, one folder for each init.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import torch

from shared import runs
from shared.runs import Run
from ts_watermark import measure, models
from ts_watermark.config import Config
from ts_watermark.data import Passages
from ts_watermark.method import Generators
from ts_watermark.models import Base
from ts_watermark.watermark import Watermark, WatermarkLogitsProcessor, tabulate

USE = "`Watermark.load(folder)`, `WatermarkLogitsProcessor`"
COMMAND = "`python -m ts_watermark.detect FILE --generators .`"


def export(
    config: Config,
    run: Run,
    base: Base,
    untrained: list[Generators],
    trained: list[Generators],
    validation: Passages,
) -> None:
    """Save the pair of each init with the mean gamma_t and delta_t that it shows on texts after
    validation prompts (the control `matched` is made of them)."""
    (embedding,) = base.model.get_input_embeddings().parameters()
    V, size = len(embedding), config.eval_batch
    watermarks: dict[str, Watermark] = {}
    for init, before, after in zip(config.inits, untrained, trained):
        about = {"arm": config.arm, "scale": config.scale, "seed": config.seed, "init": init}
        for kind, generators in (("start", before), ("export", after)):
            watermarks[f"{kind}/{init}"] = tabulate(
                generators,
                embedding,
                key=measure.hash_key(config),
                size_rounding=config.size_rounding,
                about=about,
            )

    @functools.lru_cache(maxsize=1)
    def processor(name: str) -> WatermarkLogitsProcessor:
        return WatermarkLogitsProcessor(watermarks[name], base.model.device)

    counts = {name: torch.zeros(V, dtype=torch.long) for name in watermarks}
    plan = list(itertools.product(watermarks, range(0, len(validation), size)))
    for step in run.phase("values in use", len(plan), runs.Parts(counts=counts)):
        name, first = plan[step]
        prompts = validation.prompts[first : first + size]
        texts = models.generate(config, base, prompts, first // size, processor(name))
        counts[name] += torch.bincount(texts[:, :-1].flatten(), minlength=V)
    for name, watermark in watermarks.items():
        usage = counts[name].double() / counts[name].sum()
        gamma, delta = watermark.gamma.double(), watermark.delta.double()
        means = {"mean_gamma": float(usage @ gamma), "mean_delta": float(usage @ delta)}
        watermark = replace(watermark, about=watermark.about | means)
        folder = watermark.save(run.directory / name, base.codec)
        origin = f"arm {config.arm}, scale {config.scale}, seed {config.seed}, {name}"
        (folder / "README.md").write_text(
            f"Token-specific watermark of `{config.model}` ({config.corpus}), {origin}. Text in it "
            "comes from the tokenizer's own distribution and licence; the two vectors are "
            f"Apache-2.0.\nUse: {USE}, {COMMAND}\n",
            encoding="utf-8",
        )
        if name.startswith("export") and delta.min() < 0:
            what = f"{int((delta < 0).sum())} of {V} tokens have delta < 0"
            remark = f"(lowest {delta.min():.2f}); the paper leaves delta unconstrained"
            run.say(f"warning: {name}: {what} {remark}")
