"""Models are loaded whole or not at all, and no tokenizer may make all texts alike."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from shared import pretrained
from shared.pretrained import Kind
from shared.protocol import BadInput

TEXTS = [f"the {a} {b} the {c} of {b}s" for a in ("old", "new") for b in "abc" for c in "xyz"]
ENCODER = Kind("an encoder", pretrained.BERT_LIKE, "FacebookAI/roberta-base")
DECODER = Kind("a language model", (), "openai-community/gpt2")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 16, "max_position_embeddings": 34}


def words(unknown=None) -> hf.PreTrainedTokenizerFast:
    """Byte-level pieces; with `unknown`, whole words and that piece for all others."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special = ["<s>", "<pad>", "</s>", *([unknown] if unknown else [])]
    if unknown:
        plain = Tokenizer(models.WordLevel(unk_token=unknown))
        plain.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=special)
    else:
        plain = Tokenizer(models.BPE())
        plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet)
    plain.train_from_iterator(TEXTS, trainer)
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=plain, **names, unk_token=unknown)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(kind) -> folder of a tiny random model and its tokenizer."""
    tokenizer = words()
    n = {"vocab_size": len(tokenizer), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    roberta = hf.RobertaConfig(**n, **SMALL, type_vocab_size=1)
    bert = hf.BertConfig(**n, **SMALL)
    gpt2 = hf.GPT2Config(**n, n_embd=16, n_layer=2, n_head=2, n_positions=34)
    deberta = {"relative_attention": True, "position_biased_input": False}
    torch.manual_seed(0)
    models = {
        "bert": lambda: hf.BertForPreTraining(bert),
        "roberta": lambda: hf.RobertaForMaskedLM(roberta),
        "gpt2": lambda: hf.GPT2LMHeadModel(gpt2),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**n, **SMALL)),
        "opt": lambda: hf.OPTForCausalLM(
            hf.OPTConfig(**n, **SMALL, ffn_dim=16, word_embed_proj_dim=16)
        ),
        "deberta": lambda: hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**n, **SMALL, **deberta)),
    }
    root = tmp_path_factory.mktemp("models")

    def make(kind: str) -> Path:
        if not (root / kind).exists():
            models[kind]().save_pretrained(root / kind)
            tokenizer.save_pretrained(root / kind)
        return root / kind

    return make


@pytest.fixture
def changed(saved, tmp_path):
    """changed(kind, settings, weights) -> a copy with another configuration or other weights."""

    def make(kind, weights=lambda state: None, **settings):
        import shutil

        folder = shutil.copytree(saved(kind), tmp_path / kind, dirs_exist_ok=True)
        content = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(content))
        state = load_file(folder / "model.safetensors")
        weights(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def classifier(folder, outputs=2):
    cls = hf.AutoModelForSequenceClassification
    return pretrained.load(folder, cls, ENCODER, "classifier", num_labels=outputs)


@pytest.mark.parametrize(("kind", "longest"), [("bert", 34), ("roberta", 32)])
def test_an_encoder_with_a_fresh_head(kind, longest, saved):
    model, tokenizer = classifier(saved(kind), 3)
    stored = load_file(saved(kind) / "model.safetensors")
    name = f"{kind}.encoder.layer.1.output.dense.weight"
    assert torch.equal(model.state_dict()[name], stored[name])
    assert model.num_labels == 3 and tokenizer.pad_token_id == 1
    assert pretrained.positions(model) == longest
    out = model(**tokenizer(["the old a"] * 2, return_tensors="pt"))
    assert out.logits.shape == (2, 3)
    pretrained.check_length(model, longest, "max_length")
    with pytest.raises(BadInput, match=f"max_length = 60: .* {kind} of {longest} positions"):
        pretrained.check_length(model, 60, "max_length")


@pytest.mark.parametrize(("kind", "longest"), [("gpt2", 34), ("llama", 34), ("opt", 34)])
def test_a_language_model(kind, longest, saved):
    model, _ = pretrained.load(saved(kind), hf.AutoModelForCausalLM, DECODER)
    assert pretrained.positions(model) == longest


def test_relative_positions_have_no_end(saved):
    kind = Kind("an encoder", ("deberta-v2",), "")
    model = pretrained.load_model(saved("deberta"), hf.AutoModel, kind)
    assert pretrained.positions(model) == 0
    pretrained.check_length(model, 10_000, "max_length")


def test_the_shape_of_a_head_does_not_matter(saved, tmp_path):
    model, tokenizer = classifier(saved("roberta"), 3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = classifier(tmp_path, 2)
    assert again.classifier.out_proj.weight.shape == (2, 16)


def test_sharded_and_half_precision_checkpoints_are_read(saved, tmp_path):
    model, tokenizer = classifier(saved("bert"))
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="8KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again, _ = classifier(tmp_path)
    for name, tensor in again.bert.state_dict().items():
        assert torch.equal(tensor.float(), model.bert.state_dict()[name].float())


def test_foreign_code_is_not_run(changed):
    code = {"AutoModelForSequenceClassification": "evil.Model", "AutoConfig": "evil.Config"}
    folder = changed("bert", auto_map=code)
    (folder / "evil.py").write_text(f"open({str(folder / 'run')!r}, 'w')")
    classifier(folder)  # as the BERT that it says it is
    with pytest.raises(BadInput, match="is a evil"):
        classifier(changed("bert", auto_map=code, model_type="evil"))
    assert not (folder / "run").exists()


BERT = "bert.encoder.layer.1.output.dense.bias"
PLACED = "bert.embeddings.position_ids"
HALF = {"num_hidden_layers": 1}
WEIGHT = "bert.encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: w[WEIGHT][0].fill_(float("nan")), f"{WEIGHT} is not finite"),
    (lambda w: w[WEIGHT][0].fill_(float("inf")), f"{WEIGHT} is not finite"),
    (lambda w: w[WEIGHT].zero_(), f"{WEIGHT} is zero"),
    *((lambda w, kind=kind: w.update({WEIGHT: w[WEIGHT].to(kind)}), f"holds {WEIGHT} as {name}")
      for kind, name in ((torch.int8, "I8"), (torch.int64, "I64"), (torch.bool, "BOOL"),
                         (torch.float8_e4m3fn, "F8_E4M3"), (torch.complex64, "C64"))),
])  # fmt: skip
def test_weights_that_are_no_weights(change, message, changed):
    with pytest.raises(BadInput, match=message):
        classifier(changed("bert", change))


def test_a_tokenizer_that_pads_with_another_id(saved, changed):
    folder = changed("roberta")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for pad, said in (("</s>", "pads with '</s>' .id 2., the model 1"), (None, "pads with None")):
        text = json.dumps(settings | {"pad_token": pad})
        (folder / "tokenizer_config.json").write_text(text)
        with pytest.raises(BadInput, match=said):
            classifier(folder)


@pytest.mark.parametrize(
    ("kind", "weights", "settings", "message"),
    [
        ("bert", lambda w: w.pop(BERT), {}, f"lacks 1 weights, the first is {BERT}"),
        ("bert", lambda w: w.update({BERT: torch.zeros(9)}), {}, rf"{BERT} is \(9,\) in the file"),
        ("bert", lambda w: None, {"num_hidden_layers": 3}, "lacks 16 weights"),
        ("bert", lambda w: None, HALF, r"no place for bert.encoder.layer.1.attention"),
        ("roberta", lambda w: None, HALF, r"no place for roberta.encoder.layer.1.attention"),
        ("bert", lambda w: None, {"vocab_size": 999}, r"tokenizer has only \d+ pieces.* 999 rows"),
        ("bert", lambda w: None, {"vocab_size": 300}, "word_embeddings.weight is"),
        ("bert", lambda w: None, {"vocab_size": 99}, r"ids up to \d+, the embedding 99 rows"),
        ("bert", lambda w: None, {"model_type": "roberta"}, "RobertaFor.* lacks 37 weights"),
        ("bert", lambda w: None, {"hidden_size": 15}, "transformers .* cannot load it"),
        ("gpt2", lambda w: None, {}, r"is a gpt2: an encoder is needed here \(bert, roberta"),
        ("llama", lambda w: None, {}, r"is a llama: .*for example FacebookAI/roberta-base"),
    ],
)
def test_what_does_not_fit_is_named(kind, weights, settings, message, changed):
    with pytest.raises(BadInput, match=message):
        classifier(changed(kind, weights, **settings))


def test_constants_of_older_checkpoints_may_be_left_over(changed):
    folder = changed("bert", lambda w: w.update({PLACED: torch.arange(34)[None]}))
    classifier(folder)
    bias = {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    folder = changed("gpt2", lambda w: w.update(bias))
    pretrained.load(folder, hf.AutoModelForCausalLM, DECODER)


@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_an_encoder_is_no_language_model(kind, saved):
    with pytest.raises(BadInput, match=r"is a .*: a language model is needed here; for example"):
        pretrained.load(saved(kind), hf.AutoModelForCausalLM, DECODER)


def test_states_of_our_own_runs(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(2, 3), "bias": torch.ones(2)}, path)
    layer = torch.nn.Linear(3, 2)
    pretrained.load_state(layer, path)
    assert layer.bias.tolist() == [1, 1]
    with pytest.raises(BadInput, match=r"weight is \(2, 3\) there, \(2, 4\) here"):
        pretrained.load_state(torch.nn.Linear(4, 2), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match="is cut"):
        pretrained.load_state(layer, path)


# --- the guard where texts are encoded


def test_special_tokens_that_are_needed():
    pretrained.need(words(), "pad_token", "eos_token")
    with pytest.raises(BadInput, match=r"has no mask_token; set it in its tokenizer_config.json"):
        pretrained.need(words(), "pad_token", "mask_token")


class Alike:
    """A tokenizer that makes the same of all texts, as transformers' empty one does."""

    name_or_path, unk_token_id = "somewhere", None

    def __init__(self, *ids):
        self.ids = list(ids)

    def __call__(self, texts, **_):
        return {"input_ids": [self.ids for _ in texts]}


@pytest.mark.parametrize(
    ("tokenizer", "texts", "message"),
    [
        (Alike(1, 2), TEXTS, "somewhere makes the same ids of 18 different texts"),
        (Alike(), ["one"], "same ids of 1 different texts"),
        (Alike(5), [("a", "b"), ("a", "c")], "same ids of 2"),
        (words("[?]"), ["quite other words", "not one that is in it"], "does not know 100%"),
        (words("[?]"), ["the old x"] * 9 + ["foreign text here"] * 4, r"does not know 31% .*20%"),
        (words("[?]"), [["foreign", "words"], ["of", "others"]] * 9, "does not know 75%"),
    ],
)
def test_texts_that_a_tokenizer_cannot_read(tokenizer, texts, message):
    with pytest.raises(BadInput, match=message):
        pretrained.check_texts(tokenizer, texts)


@pytest.mark.parametrize(
    ("tokenizer", "texts"),
    [
        (words(), TEXTS),
        (words(), ["one text"]),
        (words(), ["Ünïcödé, 漢字", "🙂"]),
        (words("[?]"), ["the unheard x"]),  # one of three: too few pieces to judge by
        (words("[?]"), ["the old x"] * 9 + ["foreign"] * 4),
        (Alike(1), ["one text"]),
        (Alike(1), ["equal", "equal"]),
        (Alike(1), ["Équal ", "equal"]),  # uncased
        (Alike(), ["", "?"]),
        (Alike(), []),
    ],
)
def test_texts_that_are_read(tokenizer, texts):
    pretrained.check_texts(tokenizer, texts)
