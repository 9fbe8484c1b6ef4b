"""Detection: windows, the command, the coloured page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from watermark_toys import V, random_watermark

from shared.protocol import BadInput
from ts_watermark import detect, hashing
from ts_watermark.detect import Detector, to_html

ROOT = Path(__file__).resolve().parents[2]


def test_windowed_maximum():
    watermark, rng = random_watermark(), np.random.default_rng(3)
    detector = Detector(watermark)
    ids = rng.integers(0, V, 400)
    for t in range(110, 300):  # a watermarked block of 200 tokens, all green
        sizes = hashing.list_sizes(watermark.gamma, V)
        ids[t] = hashing.permutation_of(int(ids[t - 1]), V)[rng.integers(int(sizes[ids[t - 1]]))]
    result = detector.score(ids, window=200)
    direct = [detector.score(ids[s : s + 200]).z for s in range(0, 201, 10)]
    assert (
        result.z == pytest.approx(max(direct))
        and result.start == 10 * int(np.argmax(direct))
        and result.windows == 21
    )
    short = ids[:150]
    assert (
        detector.score(short, window=200).z == detector.score(short).z
    )  # documented: scored whole
    repeated = np.array([5, 6] * 30)
    assert detector.score(repeated, unique_bigrams=True).scored == 2
    assert detector.z_all([ids.tolist(), short.tolist(), [7]])[:2] == pytest.approx(
        [detector.score(ids).z, detector.score(short).z]
    )


def test_detect_command_and_html(tmp_path, word_codec):
    folder = random_watermark(len(word_codec)).save(tmp_path / "w", word_codec)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(word_codec.pieces(range(2, 30))))
    command = [sys.executable, "-m", "ts_watermark.detect", text, "--generators", folder]
    quiet = {"cwd": ROOT, "capture_output": True, "text": True}
    done = subprocess.run([*command, "--html", tmp_path / "o.html"], **quiet)
    assert done.returncode == 0 and re.search(r"z = -?\d", done.stdout), done.stderr
    page = (tmp_path / "o.html").read_text()
    assert page.count('class="t ') >= 28 and "<script" not in page
    ids, nowhere = tmp_path / "ids.json", tmp_path / "no" / "o.html"
    ids.write_text(json.dumps({"ids": [1]}), encoding="utf-8")
    for content, words, said in (
        (b"", [], "empty"),
        (b"caf\xe9", [], r"text.txt row 1: byte 0xe9 .* not UTF-8"),
        (b"word", ["--html", nowhere], "no is no folder"),
    ):
        text.write_bytes(content)
        failed = subprocess.run([*command, *words], **quiet)
        assert failed.returncode == 2 and re.search(said, failed.stderr), failed.stderr
        assert "Traceback" not in failed.stderr
    with pytest.raises(BadInput, match="not a list of whole numbers"):
        detect._content(ids)
    detection = Detector(random_watermark()).score([1, 2, 3])
    assert "&lt;b&gt;" in to_html(detection, ["<b>", "x", "y"])
