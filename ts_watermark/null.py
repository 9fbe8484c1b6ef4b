"""The test on human text, over many keys: does it call as many texts watermarked as it says?

No language model: only texts, keys and the detector. One key cannot answer. Its lists are fixed, so
that all texts that hold a frequent pair of tokens rise or fall together (the mean z of one key has
an sd of about 0.2): the claim is about the test, averaged over keys.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from shared import bundled, runs
from shared.runs import Run
from ts_watermark import data, evaluate
from ts_watermark.config import Config
from ts_watermark.data import Codec
from ts_watermark.detect import Detector
from ts_watermark.hashing import p_value
from ts_watermark.watermark import Watermark

SPREAD = 0.5  # sd of logit gamma over tokens: about that of untrained networks


def evaluate_keys(config: Config, run: Run, device: torch.device) -> None:
    """Score the human texts under `null_keys` keys, of other gammas for each seed.

    device: not used, the detector needs none."""
    tokenizer = bundled.minilm()[1]
    codec, n = Codec(tokenizer), config.test_prompts
    texts, _ = data.cut(data.corpus(config.corpus), codec, config.new_tokens, 1, 1, n)
    run.splits(test=texts.ids)
    sums: dict[str, Tensor] = {}  # over keys, (n,) each
    for k in run.phase("keys", config.null_keys, runs.Parts(sums=sums)):
        key = config.key + 2 * (config.seed * config.null_keys + k)
        detector = Detector(unequal_coins(len(codec), config.seed, key))
        for name, value in of_key(detector, texts.human).items():
            sums[name] = sums.get(name, torch.zeros(n, dtype=torch.float64)) + value
    columns = {name: value.numpy() for name, value in sums.items()}
    keys = {"_keys": np.array(config.null_keys)}
    run.predictions(id=np.array(texts.ids), **keys, **columns)
    run.finish(metrics=evaluate.score(keys | columns), state=[torch.stack(list(sums.values()))])


def unequal_coins(vocab_size: int, seed: int, key: int) -> Watermark:
    """A watermark whose gamma differs between tokens as it does before training."""
    draws = torch.randn(vocab_size, generator=runs.stream(seed, "gamma"))
    gamma = torch.sigmoid(torch.logit(torch.tensor(0.25)) + SPREAD * draws)
    return Watermark(gamma, torch.ones(vocab_size), vocab_size, key)


def of_key(detector: Detector, rows: list[list[int]]) -> dict[str, Tensor]:
    """z, its square and what exceeds each level: of all pairs and of the distinct ones by the
    normal tail, and by the exact law of the distinct ones, (n,) each."""
    z = {"all": detector.z_all(rows), "distinct": detector.z_all(rows, unique_bigrams=True)}
    p = {name: np.array([p_value(v) for v in values]) for name, values in z.items()}
    p["exact"] = detector.p_all(rows)
    columns = {f"{name}_z": values for name, values in z.items()}
    columns |= {f"{name}_z2": values**2 for name, values in z.items()}
    for test, values in p.items():
        columns |= {f"{test}_{name}": values <= level for name, level in evaluate.LEVELS.items()}
    return {name: torch.from_numpy(column).double() for name, column in columns.items()}
