"""One run: the language model and its prompts, the generators, or an arm's texts and scores.

What to expect. Scale `cpu`: 11 seeds of a small decoder in about 14 minutes on 2 cores, and 5 of
keys and sampling on SmolLM2 in 11; TS traces KGW's frontier closely (cosine within about 0.01 at
equal evidence), and any gain comes with its interval. Scale `gpu`: 20 minutes on an H200. Scale
`paper`: OPT-1.3B and C4, 220 GPU hours. See README.md.

    python -m ts_watermark.train --tiny                          # under a minute, no download
    python -m ts_watermark.train --scale cpu --arm ts --seed 0   # base and generators first
    python -m benchmarks.reproduce ts_watermark                  # everything, with verdicts
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared import bundled, processes, protocol, runs
from shared.runs import BadInput, Run
from ts_watermark import baselines, data, evaluate, folders, language_model, measure, method, models
from ts_watermark.config import Config
from ts_watermark.data import Codec, Passages
from ts_watermark.method import Generators
from ts_watermark.models import Base
from ts_watermark.null import evaluate_keys

WEIGHT_DECAY = 1e-5  # of the generators' Adam; official code


def run(config: Config) -> Path:
    jobs = {"base": prepare_base, "generators": train_generators, "evaluate": evaluate_arm}
    with runs.start(config, __file__) as run:
        if not run.finished:
            job = jobs.get(config.job, evaluate_keys)
            job(config, run, runs.device(config))
    return run.directory


def models_sha256(config: Config, run: Run) -> str:
    """Of the models and prompts: what stage `base` made, and all that was read since."""
    made = protocol.record_sha256(protocol.read_record(Path(config.uses["base"])) or {})
    return protocol.sha256_json([made, *(entry["sha256"] for entry in run.read.values())])


# --- stage base: the language model and the prompts -----------------------------------------------


def prepare_base(config: Config, run: Run, device: torch.device) -> None:
    """Cut prompts from the corpus; a small language model is trained on what is left."""
    root, texts = None, None
    if config.corpus not in ("c4", "sample"):
        texts = data.corpus(config.corpus)
    if config.corpus == "sample" or config.model.startswith("tiny:"):
        from ts_watermark import stand_ins

        root = stand_ins.make(config, run.directory)
    if config.model != "small":
        codec = data.load_codec(models.named(config.model, run.directory))
    else:
        if texts is None:
            raise BadInput("a small language model learns from --corpus english or documentation")
        tokenizer, size = bundled.minilm()[1], config.vocab_size
        codec = Codec(tokenizer, data.frequent_pieces(tokenizer, texts, size) if size else None)
        codec.save(run.directory / "tokenizer")
    cut = data.cut_all(config, codec, texts, root)
    parts = cut.parts(config)
    run.splits(**{name: part.ids for name, part in parts.items() if len(part)})
    data.save_passages(parts, run.directory)
    state: list[Tensor] = []
    if config.model == "small":
        model = language_model.train(config, run, device, codec, cut.left, parts["validation"])
        model.save_pretrained(run.directory / "model")
        state = list(model.state_dict().values())
    run.finish(
        state=state,
        gradient_evaluations=config.lm_steps if state else 0,
        chosen_step=config.lm_steps,
        exports=["model"] if state else [],
    )


# --- stage generators -----------------------------------------------------------------------------


def train_generators(config: Config, run: Run, device: torch.device) -> None:
    """One pair of networks per init, each a phase; the last step of each is taken."""
    base = models.load(config, device)
    train, validation = (data.load_passages(config, part) for part in ("train", "validation"))
    run.splits(train=train.ids, validation=validation.ids)
    reference = references(config, run, base, train)
    batches = runs.Batches(torch.arange(len(train)), config.batch, config.seed, "batches")
    descents: dict[str, method.Descent] = {
        "moo": functools.partial(method.mgda, cap=config.mgda_cap),
        "moo_normalised": baselines.normalised_mgda,
        "weighted_sum": baselines.weighted_sum,
    }
    pairs, in_range = [], {"gamma": True}
    for init in config.inits:
        generators, optimizer = fresh(config, base, init)
        work = runs.Parts(generators=generators, optimizer=optimizer, in_range=in_range)
        for step in run.phase(f"generators {init}", config.train_steps, work):
            rows = processes.shard(batches(step)).tolist()
            prompt = models.left_padded([train.prompts[i] for i in rows], device)
            noise = mask_noise(config, step, device)
            done = method.training_step(
                base,
                generators,
                optimizer,
                prompt,
                reference[rows],
                noise,
                descents[config.objective],
                config,
            )
            run.finite(done.loss_D + done.loss_S, level="generators", step=step, batch=rows)
            run.finite(done.gradient, level="generators' gradient", step=step, batch=rows)
            gamma, delta = done.text.gamma, done.text.delta
            assert gamma is not None and delta is not None
            in_range["gamma"] &= bool(((gamma > 0) & (gamma < 1)).all())
            run.log(
                step=step,
                init=init,
                zhat=-done.loss_D.item(),
                cosine=-done.loss_S.item(),
                **done.seen,
                gamma=gamma.mean().item(),
                delta=delta.mean().item(),
            )
        pairs.append(generators)
    run.gate("gamma-in-range", in_range["gamma"], "gamma inside (0, 1) at every training step")
    untrained = [fresh(config, base, init)[0] for init in config.inits]
    folders.export(config, run, base, untrained, pairs, validation)
    passes = 1 if config.objective == "weighted_sum" else 2
    run.finish(
        state=[t for pair in pairs for t in pair.state_dict().values()],
        gradient_evaluations=passes * config.train_steps * len(config.inits),
        chosen_step=config.train_steps,
        exports=[f"export/{init}" for init in config.inits],
    )


def fresh(config: Config, base: Base, init: str) -> tuple[Generators, torch.optim.Adam]:
    """Untrained networks, the same draw for all inits and arms, and their optimiser."""
    (table,) = base.model.get_input_embeddings().parameters()
    gamma0, delta0 = measure.init_values(init)
    draw = runs.stream(config.seed, "generators")
    pair = Generators(table.shape[1], config.hidden, gamma0, delta0, generator=draw).to(
        table.device
    )
    parameters, decay = pair.parameters(), WEIGHT_DECAY
    return pair, torch.optim.Adam(parameters, lr=config.lr, weight_decay=decay, fused=True)


def mask_noise(config: Config, step: int, device: torch.device) -> method.Noise:
    """Logistic noise of a step, drawn on the device; other rows of a shared batch, other noise."""
    draws = runs.stream(config.seed, "mask noise", step, *processes.noise_names())
    if device.type != "cpu":
        draws = torch.Generator(device).manual_seed(draws.initial_seed())
    return lambda shape: method.logistic_noise(shape, draws)


@torch.no_grad()
def references(config: Config, run: Run, base: Base, train: Passages) -> Tensor:
    """Enc(F_no) of every training prompt, (n, d_out): decoded softly without watermark, once."""
    rows: list[Tensor] = []
    size, device = 4 * config.batch, base.sim.device
    decoding = (len(train), config.batch, config.train_tokens, config.mix)
    models_used = (models_sha256(config, run), config.encoder, config.precision, device.type)
    for k in run.phase("references", -(-len(train) // size), runs.Parts(rows=rows)):
        prompt = models.left_padded(train.prompts[k * size : (k + 1) * size], device)

        def make(prompt: dict[str, Tensor] = prompt) -> Tensor:
            steps, mix = config.train_tokens, config.mix
            text = method.soft_decode(base.model, prompt, steps, base.sim, mix=mix)
            return method.meaning(base, prompt, text).cpu()

        rows.append(runs.cached(("references", models_used, decoding, k), make))
    return torch.cat(rows).to(device)


# --- an arm: texts and scores ---------------------------------------------------------------------


def evaluate_arm(config: Config, run: Run, device: torch.device) -> None:
    """Write with every watermark of the arm, attack, detect on the text, compare meanings."""
    base, test = models.load(config, device), data.load_passages(config, "test")
    arm = measure.prepare(config, base, unwatermarked(config, run, base, test))
    run.splits(test=test.ids)
    names, size = list(arm.watermarks), config.eval_batch
    measurements = measure.measurements(config)
    draws = {name: torch.Generator() for name in measure.attacked_by(config)}
    texts = torch.zeros(len(test), config.new_tokens, dtype=torch.long)
    columns: dict[str, Tensor] = {}  # (n, strengths) each
    work = runs.Parts(texts=[texts], columns=columns, **draws)
    plan = list(itertools.product(names, range(0, len(test), size), ["write", *measurements]))
    for step in run.phase("test", len(plan), work):
        name, first, action = plan[step]
        rows, batch = slice(first, first + size), first // size
        if action == "write":
            processor = arm.processor(name, batch)
            texts[rows] = models.generate(config, base, test.prompts[rows], batch, processor)
            continue
        values = measurements[action](arm, measure.Batch(texts[rows], rows, name, batch, draws))
        for key, value in values.items():
            column = columns.setdefault(key, torch.zeros(len(test), len(names)))
            column[rows, names.index(name)] = torch.from_numpy(np.nan_to_num(value)).float()
    passes = len(test) * len(names) if config.family == "sweet" else 0
    predictions = {
        "id": np.array(test.ids),
        "_strengths": np.array(names),
        "_detection_model_passes": np.array(passes),
        **{key: column.numpy() for key, column in columns.items()},
    }
    run.predictions(**predictions)
    T = config.new_tokens
    exact = bool((predictions["length"] == T).all())
    run.gate("exact-length", exact, f"every text has {T} new tokens")
    deltas = [watermark.delta for watermark in arm.watermarks.values()]
    run.finish(metrics=evaluate.score(predictions), state=[*deltas, torch.tensor([config.seed])])


def unwatermarked(config: Config, run: Run, base: Base, test: Passages) -> tuple[Tensor, Tensor]:
    """The unwatermarked texts (n, T) of this seed and their embeddings (n, d_out), for all arms."""
    pairs: list[list[Tensor]] = []
    size, device = config.eval_batch, base.sim.device
    sampling = (config.seed, config.new_tokens, config.top_k, config.greedy, size)
    names = (config.model, config.encoder, config.precision, device.type)
    models_used = (models_sha256(config, run), *names)
    for k in run.phase("unwatermarked", -(-len(test) // size), runs.Parts(pairs=pairs)):
        prompts = test.prompts[k * size : (k + 1) * size]

        def make(prompts: list[list[int]] = prompts, k: int = k) -> list[Tensor]:
            texts = models.generate(config, base, prompts, k, None)
            return [texts, models.encoded(base, prompts, texts).cpu()]

        pairs.append(runs.cached(("unwatermarked", models_used, sampling, k), make))
    texts, embeddings = (torch.cat(column) for column in zip(*pairs))
    return texts, embeddings.to(device)


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
