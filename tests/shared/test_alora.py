"""Cached prompts change nothing: logits, gradients and answers are those of the uncached model."""

from __future__ import annotations

import pytest
import torch

from shared import alora
from shared.alora import PromptCache

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

OPENING = [5, 6, 7]
STOP = 99
LENGTHS = (3, 9, 1, 6, 17)  # of prompts without the opening
ANSWERS = [[11, 12], [13, 14, 15, 16], [17], [18, 19, 20], [21]]
ROWS = [4, 1, 0, 2, 3]


def adapted(lm, targets, layers, **options):
    config = peft.LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=targets,
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
        alora_invocation_tokens=OPENING,
        **options,
    )
    lm = peft.get_peft_model(lm, config).eval()
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return lm


SIZE = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}


def llama(layers):
    config = transformers.LlamaConfig(**SIZE, num_key_value_heads=2, intermediate_size=64)
    return adapted(transformers.LlamaForCausalLM(config), ["q_proj", "v_proj"], layers)


def gpt2(layers):
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=4, n_head=4, **ends)
    lm = transformers.GPT2LMHeadModel(config)
    return adapted(lm, ["c_attn"], layers, fan_in_fan_out=True)


def neox(layers):
    config = transformers.GPTNeoXConfig(**SIZE, intermediate_size=64)
    return adapted(transformers.GPTNeoXForCausalLM(config), ["query_key_value"], layers)


MODELS = {
    "upper layers": (llama, [2, 3]),
    "one layer": (llama, [1]),
    "all layers": (llama, None),
    "learned positions": (gpt2, [2, 3]),
    "another family": (neox, [2, 3]),
}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path))


@pytest.fixture
def prompts():
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(8, 99, (n,), generator=draw).tolist() + OPENING for n in LENGTHS]


def uncached(lm, prompt, answer):
    """(T, V) of the whole text in one pass, as peft does it."""
    logits = lm(input_ids=torch.tensor([prompt + answer])).logits[0]
    return logits[len(prompt) - 1 : -1]


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_the_whole_text(kind, prompts):
    torch.manual_seed(0)
    make, layers = MODELS[kind]
    lm = make(layers)
    cache = PromptCache(lm, prompts)
    for _ in range(2):  # the second time from what is remembered of the answers
        logits = cache.logits(ROWS, [ANSWERS[row] for row in ROWS])
        assert logits.shape == (5, 4, 100)
        for row, cached in zip(ROWS, logits):
            whole = uncached(lm, prompts[row], ANSWERS[row])
            assert (cached[: len(whole)] - whole).abs().max() < 1e-3
            with lm.disable_adapter():
                assert (whole - uncached(lm, prompts[row], ANSWERS[row])).abs().max() > 0.05


@pytest.mark.parametrize("kind", MODELS)
def test_answers_are_those_of_the_whole_text(kind, prompts):
    torch.manual_seed(0)
    make, layers = MODELS[kind]
    lm = make(layers)
    uniforms = torch.rand(5, 6, generator=torch.Generator().manual_seed(2))
    cache = PromptCache(lm, prompts)
    for drawn in (None, uniforms):
        answers = cache.generate(ROWS, 6, [STOP, 50], drawn)
        for number, row in enumerate(ROWS):
            expected: list[int] = []
            while len(expected) < 6 and not {STOP, 50} & set(expected):
                with torch.no_grad():
                    p = lm(torch.tensor([prompts[row] + expected])).logits[0, -1].softmax(-1)
                if drawn is None:
                    expected.append(int(p.argmax()))
                else:
                    u = drawn[number, len(expected)]
                    expected.append(int(torch.searchsorted(p.cumsum(0), u, right=True)))
            assert answers[number] == expected


def test_gradients_are_those_of_the_whole_text(prompts):
    torch.manual_seed(0)
    lm = llama([2, 3])

    def gradient(logits):
        lm.zero_grad()
        loss = sum(
            torch.nn.functional.cross_entropy(part[: len(ANSWERS[row])], torch.tensor(ANSWERS[row]))
            for row, part in zip(ROWS, logits)
        )
        loss.backward()
        return torch.cat([p.grad.flatten() for p in lm.parameters() if p.requires_grad])

    cached = gradient(PromptCache(lm, prompts).logits(ROWS, [ANSWERS[row] for row in ROWS]))
    whole = gradient([uncached(lm, prompts[row], ANSWERS[row]) for row in ROWS])
    assert whole.abs().max() > 0.05 and (cached - whole).abs().max() < 1e-3


def test_adapters_of_one_model_share_a_cache_and_other_weights_do_not(prompts, monkeypatch):
    passes = []
    whole = PromptCache._prompt_pass
    monkeypatch.setattr(
        PromptCache, "_prompt_pass", lambda *words: passes.append(1) or whole(*words)
    )
    for seed, made in ((0, 1), (1, 1)):
        torch.manual_seed(3)
        lm = llama([2, 3])
        torch.nn.init.normal_(next(p for n, p in lm.named_parameters() if "lora_B" in n), seed)
        PromptCache(lm, prompts)
        assert len(passes) == made
    PromptCache(lm, prompts[:3])
    assert len(passes) == 2
    with torch.no_grad():
        lm.get_base_model().model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    PromptCache(lm, prompts)
    assert len(passes) == 3


def test_half_a_cache_is_made_again(prompts, monkeypatch):
    torch.manual_seed(0)
    lm = llama([2, 3])
    with monkeypatch.context() as patch:
        patch.setattr(alora.os, "rename", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            PromptCache(lm, prompts)
    logits = PromptCache(lm, prompts).logits([1], [ANSWERS[1]])[0]
    assert (logits - uncached(lm, prompts[1], ANSWERS[1])).abs().max() < 1e-3


def test_what_cannot_be_cached_is_refused(prompts):
    lm = llama([2, 3])
    with pytest.raises(ValueError, match=r"prompt 1: it must end in the invocation tokens"):
        PromptCache(lm, [prompts[0], [8, 9, 10]])
    next(p for n, p in lm.named_parameters() if "norm" in n).requires_grad_(True)
    with pytest.raises(ValueError, match=r"norm.*is trained"):
        PromptCache(lm, prompts)
    config = transformers.LlamaConfig(**SIZE, num_key_value_heads=2, intermediate_size=64)
    plain = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="alora_invocation_tokens"):
        PromptCache(peft.get_peft_model(transformers.LlamaForCausalLM(config), plain), prompts)
