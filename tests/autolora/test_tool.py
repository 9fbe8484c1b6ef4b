"""The method on models of transformers as they come: which maps, peft's config, an export."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel
from torch import nn

from autolora import adapters, maps, method, tool
from shared import runs

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "vocab_size": 50, "num_labels": 3, "pad_token_id": 0}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 50}
GROUPED = SIZES | {"num_key_value_heads": 1}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
# architecture -> (sizes, head, number of maps, what the warning says)
MODELS: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "Bert": (SIZES, "classifier", 4, ""),
    "Roberta": (SIZES, "classifier", 4, ""),
    "DebertaV2": (SIZES, "classifier", 4, ""),
    "DistilBert": (DISTIL | {"num_labels": 3}, "classifier", 4, ""),
    "Albert": (SIZES | {"embedding_size": 8}, "classifier", 2, "2 blocks share 1 query and value"),
    "GPT2": (GPT2 | {"num_labels": 3, "pad_token_id": 0}, "score", 2, "are one map (c_attn)"),
    "Llama": (GROUPED, "score", 4, ""),
    "Qwen2": (GROUPED, "score", 4, ""),
    "ModernBert": (SIZES | TOKENS, "classifier", 2, "are one map (Wqkv)"),
}
IDS, LABELS = torch.arange(24).view(4, 6) + 3, torch.tensor([0, 1, 2, 0])


@pytest.fixture(params=MODELS)
def stock(request) -> Callable[[], Any]:
    """Makes the stock classifier of one architecture, the same every time, without dropout."""
    name = request.param
    config = getattr(transformers, f"{name}Config")(**MODELS[name][0])
    config.architecture = name

    def make() -> Any:
        torch.manual_seed(0)
        return getattr(transformers, f"{name}ForSequenceClassification")(config).eval()

    return make


def train(model: nn.Module, steps: int = 3) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        F.cross_entropy(model(input_ids=IDS).logits, LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()


def searched(model: Any, head: str) -> dict[str, int]:
    """Ranks after two steps of the search."""
    layers = method.attach(model, 4, head)
    w, beta = method.variables(model)
    inner, outer = torch.optim.AdamW(w, lr=1e-2), torch.optim.Adam(beta, lr=0.5)
    levels = method.Levels(w, beta, inner, outer, 1e-2)

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(input_ids=IDS).logits, LABELS)

    for _ in range(2):
        method.search_step(levels, loss, loss)
    assert all(layer.beta.std() > 0 for layer in layers.values())
    return {name: method.count(layer.alpha.detach()) for name, layer in layers.items()}


def test_ranks_of_a_stock_model_become_an_adapter_that_loads_on_it(stock, tmp_path):
    name = stock().config.architecture
    _, head, number, warning = MODELS[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ranks = searched(stock(), head)
    messages = [str(w.message) for w in said if "rank" in str(w.message)]
    assert len(ranks) == number and all(1 <= r <= 4 for r in ranks.values())
    assert [warning in m for m in messages] == ([True] if warning else []), messages
    config = method.lora_config(ranks, 4, head)
    wrapped = method.with_peft(stock(), config)
    assert maps.ranks_read_back(wrapped) == ranks
    train(wrapped)
    wrapped.eval()
    wrapped.save_pretrained(tmp_path)
    loads_on(stock(), tmp_path, wrapped)


def loads_on(model: Any, folder: Any, wrapped: nn.Module) -> None:
    """The adapter of `folder` on the stock `model` predicts what `wrapped` does, and is not 0."""
    before = model(input_ids=IDS).logits.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft warns of weights that it did not find
        warnings.simplefilter("ignore", FutureWarning)
        loaded = PeftModel.from_pretrained(model, folder).eval()
    after = loaded(input_ids=IDS).logits
    assert torch.allclose(after, wrapped(input_ids=IDS).logits, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3)


@pytest.mark.parametrize("stock", ["GPT2", "ModernBert"], indirect=True)
def test_a_fused_projection_split_in_three_exports_to_the_stock_model(stock, tmp_path):
    model = stock()
    whole = model(input_ids=IDS).logits
    maps.split_fused(model)
    assert torch.allclose(model(input_ids=IDS).logits, whole, atol=1e-6)
    head = MODELS[model.config.architecture][1]
    found = list(method.adapted_maps(model))
    assert [name.rpartition(".")[2] for name in found] == ["query", "value"] * 2
    ranks = dict(zip(found, (1, 3, 2, 4), strict=True))
    wrapped = method.lora(model, ranks, 4, head, lambda name: runs.stream(0, name), dropout=0.0)
    train(wrapped)
    adapters.save(wrapped.eval(), tmp_path)
    loads_on(stock(), tmp_path, wrapped)


def test_other_maps_by_pattern_and_what_cannot_be_adapted(tiny_bert):
    dense = r"attention\.output\.dense$"
    assert len(method.adapted_maps(tiny_bert, dense)) == 12
    with pytest.raises(ValueError, match=r"matches 'nothing'; it has .*dense \(37\).*pattern"):
        method.adapted_maps(tiny_bert, "nothing")
    t5 = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = transformers.T5EncoderModel(t5)
    with pytest.raises(ValueError, match=r"is called query or value; it has .*q \(1\)"):
        method.attach(model, 2)
    assert all(p.requires_grad for p in model.parameters())  # refused before anything is frozen
    layers = method.attach(model, 2, pattern=r"\.(q|v)$")
    assert next(iter(layers)).endswith("SelfAttention.q")


def test_quantised_maps_and_grouped_fused_ones_are_refused(tiny_bert, tiny_gpt2):
    name = next(iter(method.adapted_maps(tiny_bert)))
    base = tiny_bert.get_submodule(name)
    base.weight = nn.Parameter(base.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="is quantised"):
        method.attach(tiny_bert, 2)
    attention = tiny_gpt2.transformer.h[0].attn
    attention.c_attn = nn.Linear(16, 32)
    with pytest.raises(ValueError, match="not three maps of one size"):
        maps.split_fused(tiny_gpt2)


def test_a_head_that_the_model_does_not_have_is_refused():
    config = transformers.BertConfig(**SIZES)
    model = transformers.BertForSequenceClassification(config)
    examples = {"input_ids": IDS, "labels": LABELS}
    with pytest.raises(runs.BadInput, match=r"head='clasifier': .* did you mean 'classifier'\?"):
        tool.learn_ranks(model, examples, head="clasifier")
