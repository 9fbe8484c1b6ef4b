"""Detection: windows, the command, the coloured page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from watermark_toys import V, random_watermark

from shared import bundled
from shared.protocol import BadInput
from ts_watermark import data, detect, hashing, page
from ts_watermark.baselines import kgw
from ts_watermark.detect import Detector

ROOT = Path(__file__).resolve().parents[2]


def green_text(watermark, n, seed=0, tokens=None):
    """n ids, each green after the one before it; `tokens`: the ids to choose from."""
    size = watermark.vocab_size
    rng, sizes = np.random.default_rng(seed), hashing.list_sizes(watermark.gamma, size)
    ids = [int(tokens[0]) if tokens is not None else 7]
    while len(ids) < n:
        green = hashing.permutation_of(ids[-1], size)[: int(sizes[ids[-1]])]
        choice = green if tokens is None else np.intersect1d(green, tokens)
        ids.append(int(rng.choice(choice)))
    return ids


def test_windows():
    watermark, rng = random_watermark(), np.random.default_rng(3)
    detector = Detector(watermark)
    ids = rng.integers(0, V, 400)
    ids[110:300] = green_text(watermark, 190)
    result = detector.score(ids, window=200)
    direct = [detector.score(ids[s : s + 200]) for s in range(0, 201, 10)]
    assert result.z == pytest.approx(max(d.z for d in direct)) and result.windows == 21
    assert result.start in (100, 110) and result.decision == "found"
    assert result.p_value > direct[result.start // 10].p_value  # Bonferroni
    short = ids[:150]
    assert detector.score(short, window=200).z == detector.score(short).z  # as documented


def test_repeats_count_once():
    """A short phrase forty times is no evidence, and a page 200 times is that of one page."""
    watermark = random_watermark()
    detector = Detector(watermark)
    phrase = green_text(watermark, 3)[1:]
    again = detector.score(phrase * 40)
    assert again.scored == 2 and again.decision == "too short" and again.repeats > 0.97
    assert again.z > 6  # what the paper's count makes of it
    page = np.random.default_rng(1).integers(0, V, 100).tolist()
    once, often = detector.score(page), detector.score(page * 200)
    assert often.scored <= once.scored + 1 and often.decision == once.decision == "not found"
    rows = [page, page * 3, phrase * 40, [5], []]
    unique = detector.z_all(rows, unique_bigrams=True)
    assert unique[:3] == pytest.approx([detector.score(row).z_unique for row in rows[:3]])
    assert detector.z_all(rows)[:3] == pytest.approx([detector.score(row).z for row in rows[:3]])
    assert detector.p_all(rows)[:3] == pytest.approx(
        [detector.score(row).p_value for row in rows[:3]]
    )
    assert np.isnan(unique[3:]).all() and (detector.p_all(rows)[3:] == 1).all()
    assert detector.p_all([]).shape == (0,)


def test_decision_is_exact_and_says_when_a_text_is_too_short():
    watermark = kgw(0.25, 2.0, V)
    detector = Detector(watermark)
    words = green_text(watermark, 12)
    eight = detector.score(words[:8])
    assert eight.p_value == pytest.approx(0.25**7)  # the normal tail gives 2.3e-6
    assert eight.least_p == pytest.approx(0.25**7)
    assert eight.decision == "too short"
    assert detector.score(words[:8], level=1e-4).decision == "found"
    assert detector.score(words).decision == "found"
    with pytest.raises(BadInput, match="level = 2"):
        detector.score(words, level=2)


def test_copying_does_not_hide_a_watermark():
    """150 green words, after what mail programs, browsers and word processors do to them."""
    tokenizer, watermark = bundled.minilm()[1], kgw(0.25, 2.0, 30_522)
    detector = Detector(watermark, data.Codec(tokenizer))
    words = [i for w, i in tokenizer.vocab.items() if w.isalpha() and w.isascii() and len(w) > 3]
    text = tokenizer.decode(green_text(watermark, 150, tokens=np.sort(words)))
    plain = detector.score(text)
    assert plain.decision == "found" and plain.green_count == plain.scored == 149
    half = len(text) // 2
    for changed in (
        text.replace(" ", "\r\n", 40),
        text.replace(" ", "\u00a0"),
        text.replace(" ", "\u202f"),
        "\ufeff" + text.replace("e", "e\u200b"),
        text.replace("a", "a\u00ad\u200d"),
        text.title(),
        text.upper(),
        text[:half] + "\u2028" + text[half:],
    ):
        assert detector.score(changed).p_value < 1e-20, changed[:60]
    joined = "\u0915\u094d\u200d\u0937"  # a joiner that belongs to its script
    assert detect.as_written(joined) == joined


def detected(monkeypatch, capsys, *words):
    """Exit status, output and errors of the command with these words."""
    monkeypatch.setattr(sys, "argv", ["detect", *map(str, words)])
    status = 0
    try:
        detect.main()
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def test_detect_command_and_html(tmp_path, word_codec, monkeypatch, capsys):
    folder = random_watermark(len(word_codec)).save(tmp_path / "w", word_codec)
    text, page_of = tmp_path / "text.txt", tmp_path / "o.html"
    text.write_text(" ".join(word_codec.pieces(range(2, 30))))
    command = [text, "--generators", folder]
    status, out, _ = detected(monkeypatch, capsys, *command, "--html", page_of)
    assert status == 0 and re.search(r"z of the paper +-?\d", out)
    html = page_of.read_text("utf-8")
    assert html.count('class="t ') >= 28 and "<script" not in html and "<svg" in html
    ids, rows = tmp_path / "ids.json", tmp_path / "rows.jsonl"
    ids.write_text(json.dumps({"ids": [1]}), encoding="utf-8")
    for content, words, said in (
        (b"", [], "empty"),
        (b"caf\xe9", [], r"text.txt row 1: byte 0xe9 .* not UTF-8"),
        ("ba be".encode("utf-16"), [], "not UTF-8"),
        ("ba be".encode("utf-16-le"), [], "a NUL"),
        ("\u4eca\u5929".encode(), [], "0% of the text's word pieces are in the watermark's"),
        (b"word", ["--html", tmp_path / "no" / "o.html"], "no is no folder"),
    ):
        text.write_bytes(content)
        status, _, errors = detected(monkeypatch, capsys, *command, *words)
        assert status == 2 and re.search(said, errors), errors
    status, _, errors = detected(monkeypatch, capsys, ids, "--generators", folder)
    assert status == 2 and "not a list of whole numbers" in errors
    status, _, errors = detected(
        monkeypatch, capsys, rows, "--generators", folder, "--html", page_of
    )
    assert status == 2 and "for one text only" in errors
    done = subprocess.run(
        [sys.executable, "-m", "ts_watermark.detect", "--help"], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0 and b"--generators" in done.stdout


def test_many_texts_in_one_file(tmp_path, word_codec, monkeypatch, capsys):
    folder = random_watermark(len(word_codec)).save(tmp_path / "w", word_codec)
    rows = tmp_path / "rows.jsonl"
    texts = [" ".join(word_codec.pieces(range(a, a + 20))).strip() for a in (2, 30)]
    rows.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    _, out, _ = detected(monkeypatch, capsys, rows, "--generators", folder)
    printed = [line.split("\t") for line in out.splitlines()]
    detections = [Detector.load(folder).score(text) for text in texts]
    assert [row[:3] for row in printed[1:]] == [
        [str(n), d.decision, f"{d.p_value:.3g}"] for n, d in enumerate(detections, 1)
    ]


def test_page_says_where_the_watermark_is_missing():
    """Half a text is somebody else's: its parts are hollow, the verdict a sentence."""
    watermark = random_watermark()
    detector = Detector(watermark)
    theirs = np.random.default_rng(5).integers(0, V, 100).tolist()
    d = detector.score(green_text(watermark, 100) + theirs)
    assert d.decision == "found" and "come by chance in one of" in page.sentence(d)
    html = page.write(d, ["<b>", *detector.pieces(d.ids)[1:]])
    signs = re.findall('class="(sign|none)"', html)
    assert len(signs) == 7 and signs[:3] == ["sign"] * 3 and signs[-2:] == ["none"] * 2
    assert "&lt;b&gt;" in html and "prefers-color-scheme: dark" in html
    for n, said in ((3, "Too short to decide"), (100, "No watermark found")):
        assert said in page.sentence(detector.score(theirs[:n]))
    assert [page.odds(p) for p in (0.43, 1e-5, 0.0)] == [
        "43 of 100 texts",
        "one of 100,000 texts",
        "one of 10^290 texts",
    ]
