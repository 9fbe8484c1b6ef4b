"""Detect the watermark in a text, without a language model and without the prompt.

    python -m ts_watermark.detect FILE --generators DIR [--html OUT]

FILE holds plain text; `.json`: a list of token ids; `.jsonl`: rows {"text": ...}, a line each. DIR
is a folder that `Watermark.save` wrote, e.g. the export/ of a run. --html writes a page with every
token coloured.

Decides by the exact law of the number of green tokens over the distinct (previous, token) pairs: a
pair that comes again is the same coin, not a second one. Beside it stands the paper's z, which
counts every pair and reads a normal tail: it calls repeated human text watermarked.
"""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from shared import tables
from shared.protocol import BadInput
from ts_watermark import page
from ts_watermark.data import KNOWN_SHARE, Codec, load_codec
from ts_watermark.hashing import checked_ids, exact_tail, exact_tails
from ts_watermark.watermark import Converter, Watermark

LEVEL = 1e-5  # false alarms that the decision allows: one text in 100,000

# What copying and word processors leave in a text: it means nothing and splits tokens.
SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u205f]")
LINE_ENDS = re.compile("\r\n|[\r\u0085\u2028\u2029]")
LATIN = "[\x00-\u024f]"  # elsewhere joiners are letters' own
INVISIBLE = re.compile(
    f"[\u00ad\u200b\u2060\ufeff]|(?<={LATIN})[\u200c\u200d]|[\u200c\u200d](?={LATIN})"
)


class Evidence(NamedTuple):
    """Position by position, entry t for token t + 1: (n - 1,) each.

    previous: id that chose the list. green: the token is in it. gamma: share of the list. counted:
    False where a position was skipped. first: counted, and the first time of this pair."""

    previous: np.ndarray
    green: np.ndarray
    gamma: np.ndarray
    counted: np.ndarray
    first: np.ndarray


@dataclass(frozen=True)
class Detection:
    """What one text says, over its distinct pairs; of its best window, if windows were asked for.

    p_value: exact chance of as many green pairs without the watermark (Bonferroni over the
    windows); least_p: that of the most telling outcome. z: the paper's, over all pairs (the largest
    of all windows). z_unique: over the distinct ones. green_count, expected: green pairs of the
    `scored` ones, and how many chance gives. repeats: share of the pairs that came before. ids:
    (n,). start, length: tokens of the best window."""

    p_value: float
    least_p: float
    level: float
    z: float
    z_unique: float
    green_count: int
    expected: float
    scored: int
    repeats: float
    ids: np.ndarray
    evidence: Evidence
    windows: int
    start: int
    length: int

    @property
    def decision(self) -> Literal["found", "not found", "too short"]:
        if self.p_value <= self.level:
            return "found"
        return "not found" if self.least_p <= self.level else "too short"


class Detector:
    """Scores texts or ids against one watermark. Each call is a pure function of the text.

    codec: encodes text into the ids that the language model would see (`data.Codec`); needed for
    text only. converter: for text of another vocabulary's model.
    """

    def __init__(
        self, watermark: Watermark, codec: Codec | None = None, converter: Converter | None = None
    ):
        if converter is None and len(watermark.gamma) < watermark.vocab_size:
            sizes = f"{len(watermark.gamma)} tokens steer lists of {watermark.vocab_size}"
            raise BadInput(f"{sizes}: the text is of another vocabulary; give a converter")
        self.watermark, self.codec, self.converter = watermark, codec, converter
        self.is_green = watermark.green_pairs()
        self.gamma = watermark.gamma.double().numpy()

    @classmethod
    def load(cls, folder: str | Path) -> Detector:
        """From a folder that `Watermark.save` wrote, with the tokenizer in it if there is one."""
        watermark = Watermark.load(folder)
        tokenizer = Path(folder) / "tokenizer"
        return cls(watermark, load_codec(tokenizer) if tokenizer.is_dir() else None)

    def encode(self, text_or_ids: str | ArrayLike) -> np.ndarray:
        """(n,) ids, special tokens removed; BadInput for a text that cannot be scored."""
        if isinstance(text_or_ids, str):
            text_or_ids = self._encode_text(as_written(text_or_ids))
        ids = checked_ids(text_or_ids, self.watermark.vocab_size)
        bos = self.codec.bos if self.codec else None
        if bos is not None and ids[0] == bos:  # it is the tokenizer's, not the model's
            ids = checked_ids(ids[1:], self.watermark.vocab_size)
        return ids

    def _encode_text(self, text: str) -> list[int]:
        if not text.strip():
            need = "at least 2 tokens are needed (the first is not scored)"
            raise BadInput(f"the text is empty; {need}")
        if "\0" in text:
            what = "the text has NUL characters: a binary file, or UTF-16"
            raise BadInput(f"{what}. Remedy: save it as UTF-8 text")
        if self.codec is None:
            remedy = "give token ids instead of text"
            raise BadInput(f"this watermark folder has no tokenizer/: {remedy}")
        share = self.codec.known_share(text)
        if share < KNOWN_SHARE:
            what = f"only {share:.0%} of the text's word pieces are in the watermark's vocabulary"
            raise BadInput(f"{what}: it was not written by this model")
        return self.codec.encode(text)

    def evidence(self, ids: np.ndarray) -> Evidence:
        """What each of the positions 2..n of one text says."""
        if self.converter is None:
            previous = ids[:-1]
        else:
            windows = [ids[max(0, t - Converter.WINDOW) : t].tolist() for t in range(1, len(ids))]
            previous = np.array([self.converter(window) for window in windows])
        counted, token = previous >= 0, np.maximum(previous, 0)
        green = self.is_green(token, ids[1:]) & counted
        first = first_of(previous * self.watermark.vocab_size + ids[1:], counted)
        return Evidence(previous, green, self.gamma[token], counted, first)

    # --- many texts -------------------------------------------------------------------------------

    def z_all(
        self,
        rows: Sequence[Sequence[int]],
        counts: Sequence[np.ndarray] | None = None,
        unique_bigrams: bool = False,
    ) -> np.ndarray:
        """The paper's z of many id lists at once, (n,); nan for one that cannot be scored.

        As `score(ids).z`, without checks. counts: for each text a (len,) bool array, True where a
        position counts (SWEET). unique_bigrams: as `score(ids).z_unique`."""
        owner, green, gamma = self._coins(rows, counts, unique_bigrams)

        def total(x: np.ndarray) -> np.ndarray:
            return np.bincount(owner, x, minlength=len(rows))

        variance = total(gamma * (1 - gamma))
        z, scored = np.full(len(rows), np.nan), variance > 0
        z[scored] = (total(green * 1.0) - total(gamma))[scored] / np.sqrt(variance[scored])
        return z

    def p_all(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Exact p-values of many id lists, (n,): as `score(ids).p_value`, without checks; 1 for a
        text without a pair."""
        return self._tails(rows, None)[0]

    def evidence_all(
        self, rows: Sequence[Sequence[int]], counts: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """Normal scores of the exact mid-p-values, (n,): of mean 0 and sd 1 on human text whatever
        the gammas, unlike z, whose law is skewed where gamma is small."""
        return normal_scores(*self._tails(rows, counts))

    def _tails(
        self, rows: Sequence[Sequence[int]], counts: Sequence[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Chance of as many green pairs, and of more: (n,) each."""
        owner, green, gamma = self._coins(rows, counts, unique_bigrams=True)
        scored = np.bincount(owner, minlength=len(rows))
        place = np.arange(len(owner)) - np.repeat(np.cumsum(scored) - scored, scored)
        coins = np.zeros((len(rows), max(1, scored.max(initial=0))))
        coins[owner, place] = gamma
        count = np.bincount(owner, green, minlength=len(rows))
        return exact_tails(coins, count)

    def _coins(
        self,
        rows: Sequence[Sequence[int]],
        counts: Sequence[np.ndarray] | None,
        unique_bigrams: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, colour and gamma of every position that counts, text after text: (m,) each."""
        lengths = np.array([len(row) for row in rows])
        if lengths.sum() < 2:
            return np.zeros(0, int), np.zeros(0, bool), np.zeros(0)
        owner = np.repeat(np.arange(len(rows)), lengths)
        if self.converter is None:  # as one long text, for speed
            ids = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
            previous, green, gamma, counted, _ = self.evidence(ids)
            counted = counted & (owner[1:] == owner[:-1])  # no pair across two texts
            owner, following = owner[1:], ids[1:]
        else:
            scored = [np.asarray(row) for row in rows if len(row) > 1]
            columns = zip(*(self.evidence(row) for row in scored))
            previous, green, gamma, counted, _ = map(np.concatenate, columns)
            following = np.concatenate([row[1:] for row in scored])
            owner = np.repeat(np.arange(len(rows)), np.maximum(lengths - 1, 0))
        if counts is not None:
            inside = np.concatenate([np.asarray(k, dtype=bool) for k in counts])
            counted = counted & (inside[1:] if self.converter is None else inside)
        if unique_bigrams:
            pairs = (owner * len(self.gamma) + previous) * self.watermark.vocab_size + following
            counted = first_of(pairs, counted)
        return owner[counted], green[counted], gamma[counted]

    # --- one text ---------------------------------------------------------------------------------

    def score(
        self,
        text_or_ids: str | ArrayLike,
        window: int | None = None,
        stride: int = 10,
        level: float = LEVEL,
    ) -> Detection:
        """Is the watermark in the text, or in one of its windows of so many tokens?

        Windows start at 0, stride, 2 stride, ...; they find a watermarked piece inside other text
        (copy-paste). A text not longer than the window is scored whole. A pair counts where it
        first comes in the text. level: false alarms that the decision allows.
        """
        if not 0 < level < 1:
            raise BadInput(f"level = {level} must lie inside (0, 1): 1e-5 is one text in 100,000")
        ids = self.encode(text_or_ids)
        evidence = self.evidence(ids)
        if not evidence.counted.any():
            raise BadInput("no position of this text can be scored: no token of it converts")
        length = len(ids) if window is None or len(ids) <= window else window
        if length < 2:
            need = "at least 2 tokens are needed (the first is not scored)"
            raise BadInput(f"window={window}: {need}")
        starts = np.arange(0, len(ids) - length + 1, stride)

        def total(x: np.ndarray, counted: np.ndarray) -> np.ndarray:
            """Sum over the counted positions of each window."""
            sums = np.concatenate([[0.0], np.cumsum(np.where(counted, x, 0.0))])
            return sums[starts + length - 1] - sums[starts]

        def z_of(counted: np.ndarray) -> np.ndarray:
            _, green, gamma, *_ = evidence
            excess, variance = total(green - gamma, counted), total(gamma * (1 - gamma), counted)
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.where(variance > 1e-12, excess / np.sqrt(variance), -np.inf)

        z_unique = z_of(evidence.first)
        best = int(z_unique.argmax())
        inside = slice(starts[best], starts[best] + length - 1)
        _, green, gamma, counted, first = (column[inside] for column in evidence)
        coins, count = gamma[first], int(green[first].sum())
        most_telling = total(np.log(evidence.gamma), evidence.first).min()
        return Detection(
            p_value=min(1.0, exact_tail(coins, count) * len(starts)),
            least_p=min(1.0, float(np.exp(most_telling)) * len(starts)),
            level=level,
            z=float(z_of(evidence.counted).max()),
            z_unique=float(z_unique[best]),
            green_count=count,
            expected=float(coins.sum()),
            scored=len(coins),
            repeats=1 - len(coins) / max(1, int(counted.sum())),
            ids=ids,
            evidence=evidence,
            windows=len(starts),
            start=int(starts[best]),
            length=length,
        )

    def pieces(self, ids: np.ndarray) -> list[str]:
        """Printable text of each token."""
        return self.codec.pieces(ids) if self.codec else [f"{i} " for i in ids]


def normal_scores(as_many: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Normal quantiles of mid-p-values: half the chance of exactly this outcome is left out."""
    from scipy import stats

    mid = np.clip((as_many + more) / 2, 1e-290, 1 - 1e-16)
    return np.asarray(stats.norm.isf(mid))


def first_of(pairs: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(m,) bool: counted, and no equal pair is counted before. pairs: (m,) a number for each."""
    index = np.flatnonzero(counted)
    first = np.zeros(len(pairs), dtype=bool)
    first[index[np.unique(pairs[index], return_index=True)[1]]] = True
    return first


def as_written(text: str) -> str:
    """The text without what copying adds: other spaces, line ends, invisible characters."""
    text = INVISIBLE.sub("", LINE_ENDS.sub("\n", SPACES.sub(" ", text)))
    return unicodedata.normalize("NFC", text)


# --- the command ----------------------------------------------------------------------------------


def main() -> None:
    about, *_, rule = (__doc__ or "").strip().split("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m ts_watermark.detect", description=about, epilog=rule
    )
    what = "text, a .json list of token ids, or .jsonl rows with a text"
    parser.add_argument("file", type=Path, help=what)
    parser.add_argument("--generators", type=Path, required=True, help="folder of the watermark")
    parser.add_argument("--html", type=Path, help="write the coloured text into this file")
    parser.add_argument("--window", type=int, help="the best window of so many tokens")
    level = f"false alarms that the decision allows (default: {LEVEL:g})"
    parser.add_argument("--level", type=float, default=LEVEL, help=level)
    options = parser.parse_args()
    try:
        report(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def report(options: argparse.Namespace) -> None:
    """Print what the options ask for."""
    many = options.file.suffix == ".jsonl"
    if options.html and (many or not options.html.parent.is_dir()):
        why = "for one text only" if many else f"{options.html.parent} is no folder"
        raise BadInput(f"--html {options.html}: {why}. Remedy: give another place, or one text")
    detector = Detector.load(options.generators)
    how = {"window": options.window, "level": options.level}
    if many:
        print("row\tdecision\tp\tz of all pairs\tgreen\tscored\trepeats")
        for number, (at, row) in enumerate(tables.json_lines(options.file), 1):
            d = detector.score(tables.text_in(row, "text", at), **how)
            counts = f"{d.green_count}\t{d.scored}\t{d.repeats:.2f}"
            print(f"{number}\t{d.decision}\t{d.p_value:.3g}\t{d.z:.2f}\t{counts}")
        return
    detection = detector.score(_content(options.file), **how)
    print(page.sentence(detection))
    for name, value in page.numbers(detection).items():
        print(f"  {name:22} {value}")
    if options.html:
        html = page.write(detection, detector.pieces(detection.ids))
        options.html.write_text(html, encoding="utf-8")
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
