"""SmolLM2 as a folder: noticed when damaged; slow tests dequantise it, load it and ask it."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import model_folders
import pytest
import torch

from shared import bundled, package_data, smollm2, sources
from shared.alora import PromptCache


def write_folder(folder, weights=b"weights"):
    """What `smollm2` leaves in the cache, in small; returns the sha256 of its weights."""
    folder.mkdir(parents=True)
    for name in smollm2._SMALL:
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    sha = sources.file_sha256(folder / "model.safetensors")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    marker = {"sha256": sha, "stamp": smollm2._stamp(folder / "model.safetensors"), "sizes": sizes}
    (folder / "complete.json").write_text(json.dumps(marker))
    return sha


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """An empty cache, and a dequantiser that writes the small folder."""
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path))
    monkeypatch.delenv("REPRO_MODELS", raising=False)
    monkeypatch.setattr(package_data, "path_of", lambda name: tmp_path / name)
    calls = []

    def dequantise(gguf, folder):
        calls.append(gguf.name)
        smollm2.shutil.rmtree(folder, ignore_errors=True)
        return write_folder(folder)

    monkeypatch.setattr(smollm2, "_dequantise", dequantise)
    return calls


def test_made_once_and_noted(fake):
    with sources.recording() as log:
        assert bundled.smollm2() == bundled.smollm2()
    assert fake == [smollm2.GGUF]
    entry = log[f"{smollm2.SMOLLM2}/model.safetensors"]
    assert entry["path"] == "bundled" and len(entry["sha256"]) == 64
    assert f"{smollm2.SMOLLM2}/tokenizer.json" in log


DAMAGES = {
    "weights cut short": lambda folder: (folder / "model.safetensors").write_bytes(b"wei"),
    "weights changed": lambda folder: (folder / "model.safetensors").write_bytes(b"WEIGHTS"),
    "tokenizer missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "marker missing": lambda folder: (folder / "complete.json").unlink(),
    "marker damaged": lambda folder: (folder / "complete.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_made_again(fake, damage):
    DAMAGES[damage](bundled.smollm2())
    folder = bundled.smollm2()
    assert len(fake) == 2
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_a_copied_cache_is_hashed_and_used(fake):
    folder = bundled.smollm2()
    weights = folder / "model.safetensors"
    weights.unlink()
    weights.write_bytes(b"weights")  # another inode, another time, the same content
    bundled.smollm2()
    assert len(fake) == 1


def test_a_folder_of_the_user_wins(fake, tmp_path, monkeypatch):
    folder = model_folders.write(tmp_path / "models" / smollm2.SMOLLM2)
    model_folders.shard(folder)
    monkeypatch.setenv("REPRO_MODELS", str(tmp_path / "models"))
    with sources.recording() as log:
        assert bundled.smollm2() == folder
    shards = [name for name in log if name.endswith(".safetensors")]
    assert fake == [] and len(shards) == 3 and log[shards[0]]["path"] == "folder"


# --- the model itself -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder():
    pytest.importorskip("gguf")
    try:
        return bundled.smollm2()
    except sources.MissingInput as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.mark.slow
def test_the_pinned_weights_answer_paris_and_are_found_in_two_seconds(folder):
    transformers = pytest.importorskip("transformers")
    assert sources.file_sha256(folder / "model.safetensors") == smollm2.SMOLLM2_SHA256
    begun = time.monotonic()
    code = "from shared import bundled; print(bundled.smollm2())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - begun < 2 and done.stdout.strip() == str(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lm = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert lm.dtype == torch.float32 and tokenizer.pad_token_id == lm.config.pad_token_id == 2
    text = "A film of 12 minutes,  she said: it's café\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = lm.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked.input_ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer) and answer[-1] == tokenizer.eos_token_id


@pytest.mark.slow
def test_cached_prompts_are_within_a_hundredth_of_a_logit(folder):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    opening = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    config = peft.LoraConfig(
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=list(range(18, 30)),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=opening,
    )
    lm = peft.get_peft_model(base, config).eval()
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    texts = ["Is water wet?", "Name three primes below ten, and say why they are.", "Hello!"]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in texts
    ]
    answers = [tokenizer.encode(text) for text in ("Yes, it is.", "2, 3, 5", "Hi")]
    with torch.no_grad():
        logits = PromptCache(lm, prompts).logits([0, 1, 2], answers)
        for row, cached in enumerate(logits):
            whole = lm(torch.tensor([prompts[row] + answers[row]])).logits[0]
            whole = whole[len(prompts[row]) - 1 : -1]
            assert (cached[: len(whole)] - whole).abs().max() < 1e-2
