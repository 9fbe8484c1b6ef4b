"""A model of one's own and a rule of one's own; the ten lines of README as they stand there."""

from __future__ import annotations

import copy
import re
import runpy

import pytest
import torch

from ppo_nlu import models, tool
from shared.protocol import BadInput

README = re.compile(r"## On a model of your own.*?```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_the_lines_of_readme_train_two_architectures(family, root, tmp_path, monkeypatch):
    """The rule pays for words that are no grey level: answers earn more after training than before,
    and the export loads in peft on the base model and answers alike."""
    from peft import PeftModel

    (lines,) = README.findall((root / "ppo_nlu/README.md").read_text(encoding="utf-8"))
    assert len([line for line in lines.splitlines() if line.strip()]) <= 12
    torch.manual_seed(0)
    tokenizer = models.digits_tokenizer()
    lm = models.tiny(family, len(tokenizer))
    lm.lm_head.weight.data *= 20  # so that states can choose words; a trained head is as far from 0
    base, folder = copy.deepcopy(lm), tmp_path / "folder"
    models.save(lm, tokenizer, folder)
    monkeypatch.chdir(tmp_path)
    lines = lines.replace('"a-folder-or-hub-id"', repr(str(folder)))
    lines = re.sub(r"(questions = ).*", r"\1['g1 g2', 'g3 g4', 'g5 g6', 'g7 g8'] * 4", lines)
    lines = lines.replace("steps=100", "steps=40").replace("lr=3e-4", "lr=5e-3")
    lines = re.sub(r"return .*", "return 1.0 - answer.count('g') / 4", lines)
    (tmp_path / "example.py").write_text(lines, encoding="utf-8")
    space = runpy.run_path(str(tmp_path / "example.py"))
    policy = space["policy"]
    asked = [models.encode(tokenizer, q)[0] for q in space["questions"]]
    u = torch.rand(16, 4, generator=torch.Generator().manual_seed(9))
    after = policy.answers(tokenizer, asked, 4, u).texts
    with policy.lm.disable_adapter():
        before = policy.answers(tokenizer, asked, 4, u).texts
    earned = [sum(1 - answer.count("g") / 4 for answer in texts) for texts in (before, after)]
    assert earned[1] > earned[0] + 2, earned
    again = type(policy)(PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval())
    assert again.answers(tokenizer, asked, 4, u).texts == after


def test_what_the_tool_cannot_use_is_refused():
    tokenizer = models.digits_tokenizer()
    lm = models.tiny("llama", len(tokenizer))
    with pytest.raises(BadInput, match="do not fill one batch"):
        tool.train(lm, tokenizer, ["g1"], lambda q, a: 0.0, steps=1)
    tokenizer.eos_token = None
    with pytest.raises(BadInput, match="no token that ends a text"):
        tool.train(lm, tokenizer, ["g1"] * 16, lambda q, a: 0.0, steps=1)
