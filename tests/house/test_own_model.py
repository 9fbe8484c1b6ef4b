"""The examples of the READMEs' sections on a model or on images of one's own, run as they stand.

Names of pretrained models lead to tiny random ones of several architectures, and numbers of steps
are made small; nothing else is changed."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import PAPERS

ROOT = Path(__file__).resolve().parents[2]
SECTION = r"^## On (?:a model|images) of your own\n(.*?)(?=^## |\Z)"
# what takes long -> what the test has in its place
SHORT = {
    "steps": 3, "epochs": 1, "searches": 2, "training_epochs": 1, "generator_steps": 400,
    "size": 16, "img_size": 16, "patch": 4, "patch_size": 4,
}  # fmt: skip
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 40}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
GROUPED = SIZES | {"num_key_value_heads": 1, "max_position_embeddings": 256}
NEOX = SIZES | {"max_position_embeddings": 256}
CLASSIFIERS = {
    "Bert": SIZES, "Roberta": SIZES, "DebertaV2": SIZES, "DistilBert": DISTIL, "ModernBert": SIZES
}  # fmt: skip
CAUSAL = {"Llama": GROUPED, "Qwen2": GROUPED, "GPT2": GPT2, "GPTNeoX": NEOX}
MODELS = {
    "autolora": CLASSIFIERS,
    "weight_mixup": CLASSIFIERS,
    "tapweight": {name: CLASSIFIERS[name] for name in ("Bert", "Roberta", "DistilBert")},
    "ppo_nlu": CAUSAL,
    "ts_watermark": CAUSAL,
}
CASES = [(paper, model) for paper in PAPERS for model in MODELS.get(paper, {"": {}})]


def blocks(paper: str) -> list[str]:
    """The Python of the section, block by block, with small numbers of steps."""
    text = (ROOT / paper / "README.md").read_text(encoding="utf-8")
    section = re.search(SECTION, text, re.DOTALL | re.MULTILINE)
    if section is None:
        pytest.skip(f"{paper}/README.md has no section on a model of one's own yet")
    code = re.findall(r"^```python\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    for name, value in SHORT.items():
        code = [re.sub(rf"\b{name}=\d+", f"{name}={value}", block) for block in code]
    return code


def tokenizer() -> Any:
    """Words of letters, with every special token that an example may ask for."""
    import tokenizers
    import transformers

    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    words = [*special.values(), "a", "fine", "dull", "film", "Is", "prime", "Answer", "Yes", "No"]
    words += [f"w{i}" for i in range(60 - len(words))]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]")
    fast = tokenizers.Tokenizer(model)
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name}_token": token for name, token in special.items()} | {"eos_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **names)


def tiny(kind: str, model: str) -> Any:
    """A random model of 60 words: of class Auto`kind`, architecture `model`, the same each time."""
    import transformers

    ids = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    ids |= {"cls_token_id": 2, "sep_token_id": 3} if model == "ModernBert" else {}
    sizes = MODELS["autolora"].get(model) or CAUSAL[model]
    config = getattr(transformers, f"{model}Config")(**sizes, **ids)
    torch.manual_seed(0)
    made = getattr(transformers, kind).from_config(config)
    if kind == "AutoModelForCausalLM":
        made.generation_config.eos_token_id = None  # texts of full length from random weights
    return made


@pytest.fixture
def packaged(monkeypatch):
    """from_pretrained of the Auto classes gives tiny models of an architecture that is set here."""
    import transformers

    chosen: list[str] = []
    for kind in ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM"):

        def load(name: str, *_: Any, kind: str = kind, **__: Any) -> Any:
            return tiny(kind, chosen[0])

        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", load)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer())
    return chosen


@pytest.mark.parametrize(("paper", "model"), CASES)
def test_the_example_runs_as_it_stands(paper, model, packaged, tmp_path, monkeypatch):
    packaged.append(model)
    monkeypatch.chdir(tmp_path)
    if paper == "mlo_mae":
        folder_of_images(tmp_path / "images")
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fused maps, shared maps: tested beside each method
        for block in blocks(paper):
            if "import timm" not in block:
                names |= executed(block, tmp_path / "example.py", names)
    CHECKS[paper](names, model, tmp_path)


def executed(block: str, file: Path, names: dict[str, Any]) -> dict[str, Any]:
    """The names after a block of README, which runs as a script would."""
    file.write_text(block, encoding="utf-8")
    return runpy.run_path(str(file), init_globals=names)


def folder_of_images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for label in ("birds", "boats"):
        (folder / label).mkdir(parents=True)
        for i in range(6):
            pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")


# --- what an example leaves: usable without this repository -----------------------------------


def adapter_loads(names: dict[str, Any], model: str, folder: Path) -> None:
    """The configuration is peft's, a rank for each map; its adapter loads on the stock model."""
    import peft

    config = names["config"]
    assert isinstance(config, peft.LoraConfig)
    assert config.rank_pattern and all(1 <= r <= 8 for r in config.rank_pattern.values())
    stock = tiny("AutoModelForSequenceClassification", model).eval()
    inputs = {"input_ids": names["examples"]["input_ids"][:4]}
    loaded = peft.PeftModel.from_pretrained(stock, folder / "adapter").eval()
    ours = names["adapter"].eval()
    assert torch.allclose(loaded(**inputs).logits, ours(**inputs).logits, atol=1e-6)


def stock_checkpoint(names: dict[str, Any], model: str, folder: Path) -> None:
    """Another process would load it by its class alone; it moved, and its gates are fractions."""
    import transformers

    kind = getattr(transformers, f"{model}ForSequenceClassification")
    start, inputs = tiny("AutoModelForSequenceClassification", model).eval(), names["examples"]
    inputs = {"input_ids": inputs["input_ids"][:4]}
    again = kind.from_pretrained(folder / "finetuned").eval()
    logits = names["model"].eval()(**inputs).logits
    assert torch.equal(again(**inputs).logits, logits)
    assert not torch.equal(start(**inputs).logits, logits)
    assert set(again.state_dict()) == set(start.state_dict())
    assert all(0 <= gate["min"] <= gate["mean"] <= 1 for gate in names["gates"].values())


def weights_of_objectives(names: dict[str, Any], model: str, folder: Path) -> None:
    weights = names["weights"]
    assert set(weights) == {"masked", "contrast"} and abs(sum(weights.values()) - 1) < 1e-6
    assert max(weights.values()) > 0.5  # they moved
    start = tiny("AutoModel", model)
    again = type(start).from_pretrained(folder / "pretrained")
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), again.parameters())]
    assert sum(moved) > len(moved) / 2


def adapter_of_a_policy(names: dict[str, Any], model: str, folder: Path) -> None:
    import peft

    loaded = peft.PeftModel.from_pretrained(tiny("AutoModelForCausalLM", model), folder / "adapter")
    ids = torch.arange(6)[None] + 5
    ours = names["policy"].lm.eval()(input_ids=ids).logits
    assert torch.allclose(loaded.eval()(input_ids=ids).logits, ours, atol=1e-5)


def a_watermark(names: dict[str, Any], model: str, folder: Path) -> None:
    assert names["detection"].z > 4


def a_network(names: dict[str, Any], model: str, folder: Path) -> None:
    from dasgm import networks

    found = names["found"]
    assert names["logits"].shape == (8, 10) and found.fidelity > 0.3
    plain = networks.load(folder / "cell").eval()
    images = names["images"][:8]
    normalised = found.problem.normalise(images)
    assert torch.allclose(plain(normalised), found.network(images.float()), atol=1e-4)


def an_encoder(names: dict[str, Any], model: str, folder: Path) -> None:
    try:
        import timm  # noqa: F401
    except Exception as error:  # not installed, or beside a torchvision that does not fit torch
        pytest.skip(f"timm cannot be imported: {type(error).__name__}")
    (block,) = (block for block in blocks("mlo_mae") if "import timm" in block)
    names["images"] = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    names |= executed(block, folder / "example.py", names)
    ours = names["encoder"].features(names["images"])
    assert torch.allclose(names["features"], ours, atol=1e-5)


CHECKS = {
    "autolora": adapter_loads,
    "weight_mixup": stock_checkpoint,
    "tapweight": weights_of_objectives,
    "ppo_nlu": adapter_of_a_policy,
    "ts_watermark": a_watermark,
    "dasgm": a_network,
    "mlo_mae": an_encoder,
}
