"""Detect the watermark in a text, without a language model and without the prompt.

    python -m ts_watermark.detect FILE --generators DIR [--html OUT]

FILE holds plain text, or JSON: a list of token ids. DIR is a folder that `Watermark.save` wrote,
e.g. the export/ of a run. Prints z, the p-value and the decision; --html writes the text with every
token coloured.
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from shared import tables
from shared.protocol import BadInput
from ts_watermark.data import KNOWN_SHARE, Codec, load_codec
from ts_watermark.hashing import checked_ids, p_value, z_from_counts
from ts_watermark.watermark import Converter, Watermark

Z_THRESHOLD = 4.0  # the default decision: one false alarm in 31,600 under the normal approximation


class Evidence(NamedTuple):
    """Position by position, entry t for token t + 1: (n - 1,) each.

    previous: id that chose the list. green: the token is in it. gamma: share of the list. counted:
    False where a position was skipped."""

    previous: np.ndarray
    green: np.ndarray
    gamma: np.ndarray
    counted: np.ndarray

    def z_of_windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """z of each window of `length` tokens (length - 1 pairs); -inf where nothing is counted."""

        def total(x: np.ndarray) -> np.ndarray:
            sums = np.concatenate([[0.0], np.cumsum(np.where(self.counted, x, 0.0))])
            return sums[starts + length - 1] - sums[starts]

        excess = total(self.green) - total(self.gamma)
        variance = total(self.gamma * (1 - self.gamma))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(variance > 1e-12, excess / np.sqrt(variance), -np.inf)


@dataclass(frozen=True)
class Detection:
    """z, its p-value (upper tail; Bonferroni over the windows), counts of the best window.

    ids: (n,) scored text. start: first token of the best window."""

    z: float
    p_value: float
    green_count: int
    scored: int
    ids: np.ndarray
    evidence: Evidence
    windows: int = 1
    start: int = 0

    @property
    def watermarked(self) -> bool:
        return self.z > Z_THRESHOLD


class Detector:
    """Scores texts or ids against one watermark. Each call is a pure function of the text.

    codec: encodes text into the ids that the language model would see (`data.Codec`); needed for
    text only. converter: for text of another vocabulary's model.
    """

    def __init__(
        self,
        watermark: Watermark,
        codec: Codec | None = None,
        device: torch.device | str = "cpu",
        converter: Converter | None = None,
    ):
        if converter is None and len(watermark.gamma) < watermark.vocab_size:
            sizes = f"{len(watermark.gamma)} tokens steer lists of {watermark.vocab_size}"
            raise BadInput(f"{sizes}: the text is of another vocabulary; give a converter")
        self.watermark, self.codec, self.converter = watermark, codec, converter
        self.lists = watermark.green_lists(device)
        self.gamma = watermark.gamma.double().numpy()

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> Detector:
        """From a folder that `Watermark.save` wrote, with the tokenizer in it if there is one."""
        watermark = Watermark.load(folder)
        tokenizer = Path(folder) / "tokenizer"
        return cls(watermark, load_codec(tokenizer) if tokenizer.is_dir() else None, device)

    def encode(self, text_or_ids: str | ArrayLike) -> np.ndarray:
        """(n,) ids, special tokens removed; BadInput for a text that cannot be scored."""
        if isinstance(text_or_ids, str):
            if not text_or_ids.strip():
                need = "at least 2 tokens are needed (the first is not scored)"
                raise BadInput(f"the text is empty; {need}")
            if self.codec is None:
                remedy = "give token ids instead of text"
                raise BadInput(f"this watermark folder has no tokenizer/: {remedy}")
            text_or_ids = self.codec.encode(text_or_ids)
        ids = checked_ids(text_or_ids, self.watermark.vocab_size)
        bos = self.codec.bos if self.codec else None
        if bos is not None and ids[0] == bos:  # it is the tokenizer's, not the model's
            ids = checked_ids(ids[1:], self.watermark.vocab_size)
        return ids

    def evidence(self, ids: np.ndarray, unique_bigrams: bool = False) -> Evidence:
        """What each of the positions 2..n of one text says."""
        if self.converter is None:
            previous = ids[:-1]
        else:
            windows = [ids[max(0, t - Converter.WINDOW) : t].tolist() for t in range(1, len(ids))]
            previous = np.array([self.converter(window) for window in windows])
        counted = previous >= 0
        if unique_bigrams:
            pairs = np.stack([previous, ids[1:]], axis=1)
            first = np.unique(pairs, axis=0, return_index=True)[1]
            counted = counted & np.isin(np.arange(len(previous)), first)
        tokens = torch.from_numpy(np.maximum(previous, 0))
        following = torch.from_numpy(ids[1:])
        green = np.zeros(len(tokens), dtype=bool)
        for part in torch.arange(len(tokens)).split(256):  # never a (n, V) table for a long text
            masks = self.lists.masks(tokens[part])
            picked = masks.gather(1, following[part].to(masks.device)[:, None])[:, 0]
            green[part.numpy()] = picked.cpu().numpy()
        return Evidence(previous, green & counted, self.gamma[tokens.numpy()], counted)

    def z_all(
        self, rows: Sequence[Sequence[int]], counts: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """z of many id lists at once, (n,); nan for one that cannot be scored.

        As `score(ids).z`, without checks. counts: for each text a (len,) bool array, True where a
        position counts (SWEET)."""
        lengths = np.array([len(row) for row in rows])
        z = np.full(len(rows), np.nan)
        if lengths.sum() < 2:
            return z
        owner = np.repeat(np.arange(len(rows)), lengths)
        if self.converter is None:  # as one long text, for speed
            ids = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
            _, green, gamma, counted = self.evidence(ids)
            counted = counted & (owner[1:] == owner[:-1])  # no pair across two texts
            owner = owner[1:]
        else:
            parts = [self.evidence(np.asarray(row)) for row in rows if len(row) > 1]
            _, green, gamma, counted = (np.concatenate(column) for column in zip(*parts))
            owner = np.repeat(np.arange(len(rows)), np.maximum(lengths - 1, 0))
        if counts is not None:
            inside = np.concatenate([np.asarray(k, dtype=bool) for k in counts])
            counted = counted & (inside[1:] if self.converter is None else inside)

        def total(x: np.ndarray) -> np.ndarray:
            return np.bincount(owner[counted], x[counted], minlength=len(rows))

        variance = total(gamma * (1 - gamma))
        scored = variance > 0
        z[scored] = (total(green * 1.0) - total(gamma))[scored] / np.sqrt(variance[scored])
        return z

    def score(
        self,
        text_or_ids: str | ArrayLike,
        unique_bigrams: bool = False,
        window: int | None = None,
        stride: int = 10,
    ) -> Detection:
        """z of the text; with `window`, the largest z over windows of so many tokens.

        Windows start at 0, stride, 2 stride, ...; they find a watermarked piece inside other text
        (copy-paste). A text not longer than the window is scored whole. unique_bigrams counts each
        (previous, next) pair once (off in the paper).
        """
        ids = self.encode(text_or_ids)
        evidence = self.evidence(ids, unique_bigrams)
        if isinstance(text_or_ids, str) and self.codec is not None:
            share = self.codec.known_share(text_or_ids)
            if share < KNOWN_SHARE:
                what = (
                    f"only {share:.0%} of the text's word pieces are in the watermark's vocabulary"
                )
                raise BadInput(f"{what}: it was not written by this model")
        if not evidence.counted.any():
            raise BadInput("no position of this text can be scored: no token of it converts")
        length = len(ids) if window is None or len(ids) <= window else window
        if length < 2:
            need = "at least 2 tokens are needed (the first is not scored)"
            raise BadInput(f"window={window}: {need}")
        starts = np.arange(0, len(ids) - length + 1, stride)
        best = int(evidence.z_of_windows(starts, length).argmax())
        inside = slice(starts[best], starts[best] + length - 1)
        _, green, gamma, counted = (column[inside] for column in evidence)
        coins = gamma[counted]
        z = z_from_counts(green.sum(), coins.sum(), (coins * (1 - coins)).sum())
        return Detection(
            z=z,
            p_value=min(1.0, p_value(z) * len(starts)),
            green_count=int(green.sum()),
            scored=int(counted.sum()),
            ids=ids,
            evidence=evidence,
            windows=len(starts),
            start=int(starts[best]),
        )


# --- the coloured view ----------------------------------------------------------------------------

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Watermark: {verdict}</title>
<style>
body {{ font: 16px/1.9 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b }}
.t {{ padding: 2px 0; border-bottom: 3px solid transparent; white-space: pre-wrap }}
.g {{ background: #d7f0dd; border-color: #1b7a3d }}
.r {{ background: #fbe0de; border-color: #b3372f }}
.s {{ color: #777 }}
dt {{ float: left; clear: left; width: 11rem; color: #555 }} dd {{ margin-left: 12rem }}
</style>
<h1>{verdict}</h1><dl><dt>z</dt><dd>{z:.3f}</dd><dt>p-value</dt><dd>{p:.3g}</dd>
<dt>green tokens</dt><dd>{green} of {scored} (expected {expected:.1f} without a watermark)</dd>
<dt>window</dt><dd>{window}</dd></dl>
<p><span class="t g">green</span> <span class="t r">red</span> <span class="t s">not scored</span>;
point at a token to see its list's share gamma.</p><p>{tokens}</p></html>
"""


def to_html(detection: Detection, pieces: list[str]) -> str:
    """One page, no script, no outside file. pieces: (n,) printable text of each token."""
    evidence = detection.evidence
    first = "the first token has no list"
    spans = [f'<span class="t s" title="{first}">{html.escape(pieces[0])}</span>']
    for t, piece in enumerate(pieces[1:]):
        color, word = ("g", "green") if evidence.green[t] else ("r", "red")
        title = f"{word}; gamma {evidence.gamma[t]:.3f}"
        if not evidence.counted[t]:
            color, title = "s", "not scored"
        spans.append(f'<span class="t {color}" title="{title}">{html.escape(piece)}</span>')
    after = slice(detection.start, None)
    gamma = evidence.gamma[after][evidence.counted[after]]
    window = f"best of {detection.windows}, from token {detection.start}"
    return PAGE.format(
        verdict=verdict(detection),
        z=detection.z,
        p=detection.p_value,
        green=detection.green_count,
        scored=detection.scored,
        expected=float(gamma[: detection.scored].sum()),
        window="the whole text" if detection.windows == 1 else window,
        tokens="".join(spans),
    )


def verdict(detection: Detection) -> str:
    return "watermark found" if detection.watermarked else "no watermark found"


def main() -> None:
    about = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m ts_watermark.detect", description=about)
    parser.add_argument("file", type=Path, help="text, or a JSON list of token ids")
    parser.add_argument("--generators", type=Path, required=True, help="folder of the watermark")
    parser.add_argument("--html", type=Path, help="write the coloured text into this file")
    parser.add_argument("--window", type=int, help="largest z over windows of so many tokens")
    once = "count each pair of tokens once"
    parser.add_argument("--unique-bigrams", action="store_true", help=once)
    options = parser.parse_args()
    try:
        if options.html and not options.html.parent.is_dir():
            what = f"--html {options.html}: {options.html.parent} is no folder"
            raise BadInput(f"{what}. Remedy: make it first")
        detector = Detector.load(options.generators)
        detection = detector.score(_content(options.file), options.unique_bigrams, options.window)
        if options.html:
            codec = detector.codec
            pieces = codec.pieces(detection.ids) if codec else [f"{i} " for i in detection.ids]
            options.html.write_text(to_html(detection, pieces), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{verdict(detection)} (threshold z > {Z_THRESHOLD:g})")
    counts = f"green {detection.green_count} of {detection.scored}"
    print(f"z = {detection.z:.3f}   p = {detection.p_value:.3g}   {counts}")
    if options.html:
        print(f"coloured text: {options.html}")


def _content(path: Path) -> str | list[int]:
    """Text, or token ids of a file whose name ends in .json."""
    if path.suffix != ".json":
        return tables.text(path)
    ids = tables.json_document(path)
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        what = f"{str(ids)[:40]!r} is not a list of whole numbers"
        raise BadInput(f"{path}: {what}. Remedy: give token ids")
    return ids


if __name__ == "__main__":
    main()
