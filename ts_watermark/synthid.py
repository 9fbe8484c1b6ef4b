"""SynthID-Text, an opponent: transformers' own processor, and the test over its g-values.

Dathathri et al., Nature 2024. At each step a tournament of `depth` rounds moves probability to
tokens whose pseudo-random bits g, which the last four tokens and a key choose, are 1. On other text
the bits are fair coins, so that their number is binomial.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from shared import runs
from ts_watermark.detect import normal_scores

if TYPE_CHECKING:
    from transformers import SynthIDTextWatermarkLogitsProcessor

NGRAM = 5  # the token and four before it; the default of transformers


@dataclass(frozen=True)
class SynthID:
    """depth: rounds of the tournament, its strength. key: the secret, from which the keys of the
    rounds are drawn."""

    depth: int
    key: int

    @property
    def delta(self) -> Tensor:
        return torch.tensor([float(self.depth)])

    def processor(self, device: torch.device | str = "cpu") -> SynthIDTextWatermarkLogitsProcessor:
        """A fresh one for each batch: it remembers the contexts that it has seen."""
        from transformers import SynthIDTextWatermarkLogitsProcessor

        keys = torch.randint(2**31, (self.depth,), generator=runs.stream(self.key, "synthid"))
        return SynthIDTextWatermarkLogitsProcessor(
            ngram_len=NGRAM,
            keys=keys.tolist(),
            sampling_table_size=2**16,
            sampling_table_seed=0,
            context_history_size=1024,
            device=torch.device(device),
        )

    @functools.lru_cache(maxsize=8)  # noqa: B019  the tests of a batch follow each other
    def _coins(self, row: tuple[int, ...]) -> tuple[int, int]:
        """Bits that are 1, of how many: contexts that came before are left out."""
        if len(row) < NGRAM:
            return 0, 0
        processor: Any = self.processor()
        ids = torch.tensor([row])
        fresh = processor.compute_context_repetition_mask(ids)[0].bool()
        bits = processor.compute_g_values(ids)[0][fresh]
        return int(bits.sum()), bits.numel()

    def _counts(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        return np.array([self._coins(tuple(row)) for row in rows], dtype=float).reshape(-1, 2).T

    def z_all(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """z of the number of ones, (n,); nan where a text is too short."""
        ones, n = self._counts(rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(n > 0, (ones - n / 2) / np.sqrt(n / 4), np.nan)

    def evidence_all(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Normal scores of the exact mid-p-values, as `Detector.evidence_all`."""
        from scipy import stats

        ones, n = self._counts(rows)
        return normal_scores(stats.binom.sf(ones - 1, n, 0.5), stats.binom.sf(ones, n, 0.5))
