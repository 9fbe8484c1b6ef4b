"""Cost of a cycle of TapWeight over a plain continued-pretraining step, for each mode.

    python -m benchmarks.methods.tapweight [--rounds 7] [--device cpu] [--json FILE]

Encoder of 4 blocks of width 256, 8,000 word pieces, micro-batches of 16 texts of 32 tokens; three
losses (pair, masked pair, order). A cycle is Level I (1 or 4 micro-batches), Level II, and Level
III with the last micro-batch. The plain step is Level I with one micro-batch and Adam, with the MLM
head on masked places only, as in the cycle; row `plain, word scores everywhere` has them at every
place, as the official code. Beside the cost: the cosine of the gradient of the weights with the
exact one, for this batch. CPU: one thread, CPU seconds.
"""

from __future__ import annotations

import typing

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.methods import cost
from shared import vectors
from tapweight import encoders, method, objectives, optimizers
from tapweight.config import Mode
from tapweight.dropout import SharedMasks

V, D, BATCH, TOKENS = 8000, 256, 16, 32
MODES: tuple[Mode, ...] = typing.get_args(Mode)
MICRO_BATCHES = (1, 4)
EVERYWHERE = "plain, word scores everywhere"


class Work:
    """Networks and one batch of each level; every variant has networks of its own."""

    def __init__(self, device: torch.device, micro: int, mode: Mode):
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=V,
            hidden_size=D,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=4 * D,
        )
        self.encoder = encoders.Whole(BertModel(config, add_pooling_layer=False)).to(device).train()
        self.phi = encoders.Whole(BertModel(config, add_pooling_layer=False)).to(device).train()
        self.phi.load_state_dict(self.encoder.state_dict())
        contrast = nn.Sequential(nn.Linear(D, D), nn.Tanh())
        heads = {
            "CL": contrast,
            "MLM": encoders.MLMHead(D, V),
            "SOP": encoders.two_layers(D, 2, 0.1),
        }
        self.heads = nn.ModuleDict(heads).to(device)
        self.w = encoders.two_layers(D, 2, 0.1).to(device)
        g = torch.Generator().manual_seed(1)

        def tokens() -> Tensor:
            return torch.randint(4, V, (BATCH, TOKENS), generator=g).to(device)

        everywhere = torch.ones(BATCH, TOKENS, dtype=torch.bool)
        self.batches = []
        for _ in range(micro):
            text, pieces = tokens().cpu(), torch.arange(4, V)
            masked = [objectives.mask_tokens(text, everywhere, 3, pieces, g) for _ in range(2)]
            on_device = [[t.to(device) for t in tensors] for tensors in masked]
            self.batches.append((text.to(device), on_device, tokens()))
        self.labelled = [tokens() for _ in range(2)]
        self.y = torch.randint(2, (BATCH,), generator=g).to(device)
        alpha = method.start_logits(3)
        theta = [*self.encoder.parameters(), *self.heads.parameters()]
        lower = [*self.phi.parameters(), *self.w.parameters()]
        self.optimizers = [
            optimizers.make("adam", theta, 2e-5, 0.0),
            optimizers.make("adam", lower, 2e-5, 0.0),
            optimizers.make("adam", [alpha], 2e-3, 0.0),
        ]
        pair, prox = method.matched(self.phi, self.encoder), method.SquaredDistance(1e-2)
        self.levels = method.Levels(*pair, alpha, self.optimizers, prox, mode)

    def losses(self, i: int, everywhere: bool = False, again: bool = False) -> method.Losses:
        """again: they are evaluated more than once, with the same masks, as in a cycle."""
        text, masked, halves = self.batches[i]
        masks = SharedMasks(on=again)

        def values() -> list[Tensor]:
            torch.manual_seed(i)
            with masks.evaluation():
                return losses()

        def losses() -> list[Tensor]:
            a, b = self.heads["CL"](self.encoder({"input_ids": torch.cat([text, text])})).chunk(2)
            states, targets = [], []
            for ids, at, target in masked:
                if everywhere:
                    places = torch.arange(TOKENS, device=ids.device).expand(BATCH, -1)
                    states.append(self.encoder({"input_ids": ids}, places).flatten(0, 1))
                    all_targets = torch.full_like(ids, objectives.IGNORED).scatter(1, at, target)
                    targets.append(all_targets.flatten())
                    continue
                real = target != objectives.IGNORED
                states.append(self.encoder({"input_ids": ids}, at)[real])
                targets.append(target[real])
            logits = self.heads["MLM"](torch.cat(states), self.encoder.embedding())
            order = objectives.order(self.heads["SOP"](self.encoder({"input_ids": halves})), self.y)
            words = objectives.masked_lm(logits, torch.cat(targets))
            return [objectives.contrastive(a, b), words, order]

        return values

    def task(self, i: int) -> Tensor:
        return F.cross_entropy(self.w(self.phi({"input_ids": self.labelled[i]})), self.y)

    def plain(self, everywhere: bool = False) -> None:
        losses, even = self.losses(0, everywhere), torch.full((3,), 1 / 3)
        method.level_one_step(self.optimizers[0], [losses], even)

    def cycle(self) -> None:
        last = len(self.batches) - 1
        micro = [self.losses(i, again=i == last) for i in range(last + 1)]
        level_three = (lambda: self.task(1)), micro[-1:]
        method.cycle(self.levels, [micro], [lambda: self.task(0)], level_three)

    def agreement(self) -> float:
        """Cosine of the mode's gradient of the weights with K backward passes."""
        v, _ = method.validation_gradient(lambda: self.task(1), self.levels.phi)
        batch = [self.losses(0)]
        h = method.gradient_of_weights(self.levels, batch, v).h.double()
        exact = method.gradient_of_weights(self.levels, batch, v, "exact-dot").h.double()
        return vectors.cosine([h], [exact])


def measure(rounds: int, device: str) -> dict[str, cost.Row]:
    """Rows mode/micro-batches (with the cosine), the plain step, and the costlier plain step."""
    place = torch.device(device)
    plain = Work(place, 1, MODES[0])
    todo = {f"{mode}/{n}": Work(place, n, mode) for mode in MODES for n in MICRO_BATCHES}
    cosines = {name: {"cosine": work.agreement()} for name, work in todo.items()}
    kinds = {name: work.cycle for name, work in todo.items()} | {
        EVERYWHERE: lambda: plain.plain(True)
    }
    rows = cost.measure(plain.plain, kinds, rounds, device)
    return {name: row | cosines.get(name, {}) for name, row in rows.items()}


def main() -> None:
    options = cost.parser(__doc__, rounds=7)
    cost.device_option(options)
    asked = options.parse_args()
    torch.set_num_threads(1)
    rows = measure(asked.rounds, asked.device)
    cost.show("tapweight: a cycle over a plain continued-pretraining step", rows)
    for name in (name for name, row in rows.items() if "cosine" in row):
        over = rows[name]["ratio"] / rows[EVERYWHERE]["ratio"]
        print(f"  {name:34} cosine {rows[name]['cosine']:.6f}   over scores everywhere {over:.2f}")
    cost.write(asked.json, "tapweight", rows, device=asked.device, rounds=asked.rounds)


if __name__ == "__main__":
    main()
