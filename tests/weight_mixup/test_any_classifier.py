"""Gates on stock classifiers of many architectures: which maps, what it computes, what is saved."""

import functools
import re

import pytest
import torch

from shared import vectors
from shared.hypergrad import FiniteDifference
from weight_mixup import gates, method

WIDTH = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 24, "num_labels": 3, "pad_token_id": 0,
}  # fmt: skip
SMALL = {"vocab_size": 60, "num_labels": 3, "pad_token_id": 0}
DECODER = WIDTH | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
# class of the configuration, its settings, number of gated maps, one of their names
STOCK = {
    "bert": ("BertConfig", WIDTH, 13, "bert.encoder.layer.1.attention.self.query"),
    "roberta": ("RobertaConfig", WIDTH, 12, "roberta.encoder.layer.0.output.dense"),
    "deberta": ("DebertaV2Config", WIDTH, 12, "deberta.encoder.layer.0.attention.self.query_proj"),
    "distilbert": (
        "DistilBertConfig",
        {
            "vocab_size": 60,
            "dim": 16,
            "hidden_dim": 24,
            "n_layers": 2,
            "n_heads": 2,
            "num_labels": 3,
        },
        12,
        "distilbert.transformer.layer.1.ffn.lin1",
    ),
    "albert": (
        "AlbertConfig",
        WIDTH | {"embedding_size": 8},
        7,
        "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query",
    ),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": 60,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "pad_token_id": 0,
            "num_labels": 3,
        },
        8,
        "transformer.h.0.attn.c_attn",
    ),
    "llama": ("LlamaConfig", DECODER, 14, "model.layers.1.mlp.down_proj"),
    "qwen2": ("Qwen2Config", DECODER, 14, "model.layers.0.self_attn.v_proj"),
    "modernbert": (
        "ModernBertConfig",
        WIDTH | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        8,
        "model.layers.0.attn.Wqkv",
    ),
}


def stock(name):
    import transformers

    kind, sizes, *_ = STOCK[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**sizes)
    make = transformers.AutoModelForSequenceClassification.from_config
    return make(config, attn_implementation="eager").eval()


def batch():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 60, (4, 7), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_classifier_is_gated_trained_and_saved(tmp_path, name):
    from transformers import AutoModelForSequenceClassification

    model, (inputs, labels) = stock(name), batch()
    before, names = model(**inputs).logits, set(model.state_dict())
    gated = gates.attach(model)
    assert len(gated) == STOCK[name][2] and STOCK[name][3] in gated
    assert not any(re.search("embed|norm|classifier|score|head", part.lower()) for part in gated)
    assert (model(**inputs).logits - before).abs().max() < 1e-5

    w, alpha = list(gates.w_of(model).values()), gates.alpha_of(model)
    levels = method.levels_of(w, alpha, weight_decay=0.01, alpha_weight_decay=0.0)
    method.begin_search(levels, vectors.clone(w), 0.1, torch.Generator().manual_seed(1))
    method.set_rate(levels.opt_w, 1e-2)
    method.set_rate(levels.opt_alpha, 0.1)
    loss = lambda: torch.nn.functional.cross_entropy(model(**inputs).logits, labels)  # noqa: E731
    estimate = functools.partial(method.hypergradient, estimator=FiniteDifference(radius=0.01))
    moved = vectors.clone(alpha)
    g, _ = method.search_step(levels, loss, loss, 1e-2, 5.0, estimate)
    assert vectors.norm(g.implicit) > 0 and vectors.norm(vectors.minus(alpha, moved)) > 0.1

    with torch.no_grad():
        trained = model(**inputs).logits
    assert (trained - before).abs().max() > 1e-4
    again = stock(name)  # the gated state, read into a new gated model
    gates.attach(again)
    torch.save(model.state_dict(), tmp_path / "gated.pt")
    again.load_state_dict(torch.load(tmp_path / "gated.pt"))
    gates.merge(model)
    model.save_pretrained(tmp_path)  # the plain checkpoint, read by its class alone
    load = AutoModelForSequenceClassification.from_pretrained
    plain = load(tmp_path, attn_implementation="eager").eval()
    assert set(plain.state_dict()) == names
    with torch.no_grad():
        assert all(torch.equal(m(**inputs).logits, trained) for m in (again, model, plain))


def test_a_pooler_alone_is_refused():
    holder = torch.nn.ModuleDict({"pooler": torch.nn.Linear(3, 3)})
    with pytest.raises(ValueError, match=r"only pooler\): nothing to gate"):
        gates.attach(holder)
    assert not gates.gates_of(holder)


def test_a_model_without_matrices_of_floats_is_refused():
    quantised = torch.nn.Linear(3, 3)
    quantised.weight = torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="nothing to gate"):
        gates.attach(torch.nn.Sequential(quantised))
