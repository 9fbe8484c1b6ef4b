"""Detect the watermark in a text, without a language model and without the prompt.

    python -m ts_watermark.detect FILE --generators DIR [--html OUT]

FILE holds plain text, or JSON: a list of token ids. DIR is a folder that `Watermark.save` wrote, e.g. the
export/ of a run. Prints z, the p-value and the decision; --html writes the text with every token coloured.
"""

from __future__ import annotations

import argparse
import html
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ts_watermark.data import KNOWN_SHARE, load_codec
from ts_watermark.hashing import checked_ids, p_value, z_from_counts
from ts_watermark.watermark import Converter, Watermark

Z_THRESHOLD = 4.0  # the default decision: one false alarm in 31,600 under the normal approximation


@dataclass(frozen=True)
class Detection:
    """z, p-value (upper tail; for a windowed maximum Bonferroni over the windows), counts, and the evidence.

    ids: (n,) scored text. previous: (n-1,) id that chose each list. green, gamma, counted: (n-1,), entry t for
    token t+1; counted is False where a position was skipped. start: of the best window.
    """

    z: float
    p_value: float
    green_count: int
    scored: int
    ids: np.ndarray
    previous: np.ndarray
    green: np.ndarray
    gamma: np.ndarray
    counted: np.ndarray
    windows: int = 1
    start: int = 0

    @property
    def watermarked(self) -> bool:
        return self.z > Z_THRESHOLD


class Detector:
    """Scores texts or ids against one watermark. Each call is a pure function of the text.

    codec: encodes text into the ids that the language model would see (`data.Codec`); needed for text only.
    converter: for text of another vocabulary's model (3.9).
    """

    def __init__(
        self, watermark: Watermark, codec=None, device="cpu", converter: Converter | None = None
    ):
        self.watermark, self.codec, self.converter = watermark, codec, converter
        self.lists = watermark.green_lists(device)
        self.gamma = watermark.gamma.double().numpy()

    @classmethod
    def load(cls, folder: str | Path, device="cpu") -> Detector:
        """From a folder that `Watermark.save` wrote, with the tokenizer in it if there is one."""
        watermark = Watermark.load(folder)
        tokenizer = Path(folder) / "tokenizer"
        return cls(watermark, load_codec(tokenizer) if tokenizer.is_dir() else None, device)

    def encode(self, text_or_ids) -> np.ndarray:
        """(n,) ids, special tokens removed; ValueError for a text that cannot be scored."""
        if isinstance(text_or_ids, str):
            if not text_or_ids.strip():
                raise ValueError(
                    "the text is empty; at least 2 tokens are needed (the first is not scored)"
                )
            if self.codec is None:
                raise ValueError(
                    "this watermark folder has no tokenizer/: give token ids instead of text"
                )
            ids = self.codec.encode(text_or_ids)
        else:
            ids = text_or_ids
        special = getattr(self.codec, "bos", None)
        ids = checked_ids(ids, self.watermark.vocab_size)
        if (
            special is not None and ids[0] == special
        ):  # a leading BOS is the tokenizer's, not the model's
            ids = checked_ids(ids[1:], self.watermark.vocab_size)
        return ids

    def evidence(self, ids: np.ndarray, unique_bigrams: bool = False):
        """previous, green, gamma, counted: (n-1,) each, for positions 2..n."""
        if self.converter is None:
            previous = ids[:-1]
        else:
            previous = np.array(
                [self.converter(ids[max(0, t - 5) : t].tolist()) for t in range(1, len(ids))]
            )
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
        return previous, green & counted, self.gamma[tokens.numpy()], counted

    def z_all(self, rows, keep=None) -> np.ndarray:
        """z of many id lists at once, (n,), nan for one that cannot be scored; as `score(ids).z`, without checks
        or evidence. keep: per text a (len,) bool array of the positions that count (SWEET)."""
        lengths = np.array([len(row) for row in rows])
        values = np.full(len(rows), np.nan)
        if lengths.sum() < 2:
            return values
        ids = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
        owner = np.repeat(np.arange(len(rows)), lengths)
        if self.converter is None:
            _, green, gamma, counted = self.evidence(ids)
            counted = counted & (owner[1:] == owner[:-1])  # no pair across two texts
            owner = owner[1:]
        else:
            parts = [self.evidence(np.asarray(row)) for row in rows if len(row) > 1]
            green, gamma, counted = (np.concatenate([p[k] for p in parts]) for k in (1, 2, 3))
            owner = np.repeat(np.arange(len(rows)), np.maximum(lengths - 1, 0))
        if keep is not None:
            inside = np.concatenate([np.asarray(k, dtype=bool) for k in keep])
            counted = counted & (inside[1:] if self.converter is None else inside)
        total = lambda x: np.bincount(owner[counted], x[counted], minlength=len(rows))  # noqa: E731
        variance = total(gamma * (1 - gamma))
        scored = variance > 0
        values[scored] = (total(green * 1.0) - total(gamma))[scored] / np.sqrt(variance[scored])
        return values

    def score(
        self, text_or_ids, unique_bigrams=False, window: int | None = None, stride: int = 10
    ) -> Detection:
        """z of the text; with `window`, the largest z over windows of so many tokens, starts 0, stride, ...

        The window finds a watermarked piece inside other text (copy-paste). A text not longer than the window is
        scored whole. unique_bigrams counts each (previous, next) pair once (off in the paper).
        """
        ids = self.encode(text_or_ids)
        previous, green, gamma, counted = self.evidence(ids, unique_bigrams)
        if isinstance(text_or_ids, str) and self.codec.known_share(text_or_ids) < KNOWN_SHARE:
            raise ValueError(f"only {self.codec.known_share(text_or_ids):.0%} of the text's word pieces are in the "
                             "watermark's vocabulary: it was not written by this model")  # fmt: skip
        if not counted.any():
            raise ValueError("no position of this text can be scored: no token of it converts")
        length = len(ids) if window is None or len(ids) <= window else window
        if length < 2:
            raise ValueError(
                f"window={window}: at least 2 tokens are needed (the first is not scored)"
            )
        starts = np.arange(0, len(ids) - length + 1, stride)
        total = lambda x: np.concatenate([[0.0], np.cumsum(np.where(counted, x, 0.0))])  # noqa: E731
        span = lambda c: c[starts + length - 1] - c[starts]  # noqa: E731  window s scores pairs s .. s+length-2
        greens, means, variances = (
            span(total(green)),
            span(total(gamma)),
            span(total(gamma * (1 - gamma))),
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            z = np.where(variances > 1e-12, (greens - means) / np.sqrt(variances), -np.inf)
        best = int(z.argmax())
        here = slice(starts[best], starts[best] + length - 1)
        value = z_from_counts(green[here].sum(), gamma[here][counted[here]].sum(),
                              (gamma * (1 - gamma))[here][counted[here]].sum())  # fmt: skip
        return Detection(value, min(1.0, p_value(value) * len(starts)), int(green[here].sum()),
                         int(counted[here].sum()), ids, previous, green, gamma, counted, len(starts),
                         int(starts[best]))  # fmt: skip


# ---- the coloured view -----------------------------------------------------------------------------------------

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Watermark: {verdict}</title>
<style>
body {{ font: 16px/1.9 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }}
.t {{ padding: 2px 0; border-bottom: 3px solid transparent; white-space: pre-wrap }}
.g {{ background: #d7f0dd; border-color: #1b7a3d }} .r {{ background: #fbe0de; border-color: #b3372f }}
.s {{ color: #777 }} dt {{ float: left; clear: left; width: 11rem; color: #555 }} dd {{ margin-left: 12rem }}
</style>
<h1>{verdict}</h1><dl><dt>z</dt><dd>{z:.3f}</dd><dt>p-value</dt><dd>{p:.3g}</dd>
<dt>green tokens</dt><dd>{green} of {scored} (expected {expected:.1f} without a watermark)</dd>
<dt>window</dt><dd>{window}</dd></dl>
<p><span class="t g">green</span> <span class="t r">red</span> <span class="t s">not scored</span>;
point at a token to see its list's share gamma.</p><p>{tokens}</p></html>
"""


def to_html(detection: Detection, pieces: list[str]) -> str:
    """One page, no script, no outside file. pieces: (n,) printable text of each token."""
    spans = [
        f'<span class="t s" title="the first token has no list">{html.escape(pieces[0])}</span>'
    ]
    for t, piece in enumerate(pieces[1:]):
        kind = "g" if detection.green[t] else "r"
        word = "green" if detection.green[t] else "red"
        title = f"{word}; gamma {detection.gamma[t]:.3f}"
        if not detection.counted[t]:
            kind, title = "s", "not scored"
        spans.append(f'<span class="t {kind}" title="{title}">{html.escape(piece)}</span>')
    scored = detection.counted[detection.start : detection.start + len(detection.ids) - 1]
    gamma = detection.gamma[detection.start : detection.start + len(scored)][: len(scored)]
    expected = float(gamma[scored][: detection.scored].sum())
    window = (
        "the whole text"
        if detection.windows == 1
        else f"best of {detection.windows}, from token {detection.start}"
    )
    return PAGE.format(verdict="watermark found" if detection.watermarked else "no watermark found", z=detection.z,
                       p=detection.p_value, green=detection.green_count, scored=detection.scored,
                       expected=expected, window=window, tokens="".join(spans))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ts_watermark.detect", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("file", type=Path, help="text, or a JSON list of token ids")
    parser.add_argument("--generators", type=Path, required=True, help="folder of the watermark")
    parser.add_argument("--html", type=Path, help="write the coloured text here")
    parser.add_argument("--window", type=int, help="largest z over windows of so many tokens")
    parser.add_argument(
        "--unique-bigrams", action="store_true", help="count each pair of tokens once"
    )
    given = parser.parse_args()
    try:
        detector = Detector.load(given.generators)
        text = given.file.read_text()
        content = json.loads(text) if given.file.suffix == ".json" else text
        detection = detector.score(content, given.unique_bigrams, given.window)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    decision = "watermark found" if detection.watermarked else "no watermark found"
    print(f"{decision} (threshold z > {Z_THRESHOLD:g})")
    print(
        f"z = {detection.z:.3f}   p = {detection.p_value:.3g}   green {detection.green_count} of {detection.scored}"
    )
    if given.html:
        codec = detector.codec
        pieces = codec.pieces(detection.ids) if codec else [f"{i} " for i in detection.ids]
        given.html.write_text(to_html(detection, pieces))
        print(f"coloured text: {given.html}")


if __name__ == "__main__":
    main()
