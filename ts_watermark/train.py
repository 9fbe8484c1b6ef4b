"""One run: the frozen language model and its prompts, a pair of generators, or an arm's texts and scores.

Expect at scale `cpu`: about 8 minutes on 2 cores for 5 seeds; TS traces KGW's frontier closely (cosine within
about 0.01 at equal z); any clear gain or loss is printed with its interval. At `paper`: OPT-1.3B, see README.md.

    python -m ts_watermark.train --tiny                                # under a minute, no download
    python -m ts_watermark.train --scale cpu --arm ts --seed 0         # trains `base` and `generators` first
    python -m benchmarks.reproduce ts_watermark                        # everything, with verdicts
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from shared import processes, protocol, runs
from ts_watermark import baselines, data, method, models
from ts_watermark.arms import evaluate_arm, init_values
from ts_watermark.config import Config
from ts_watermark.generate import generate, hash_key, left_padded, passages_of
from ts_watermark.watermark import WatermarkLogitsProcessor, tabulate

# floor, or fp16 as in the official runs


# ---- stage: the language model and the prompts ---------------------------------------------------------------------


def make_base(config: Config, run: runs.Run, device) -> None:
    """Cut prompts from the corpus; at `cpu` and `gpu` train the language model on the remaining texts."""
    n_null = config.null_texts * config.test_prompts
    held = {
        "tokens": config.new_tokens,
        "min_prompt": config.min_prompt,
        "max_prompt": config.max_prompt,
    }
    training = {"tokens": config.train_tokens, "min_prompt": config.train_min_prompt,
                    "max_prompt": config.train_max_prompt, "limit": config.train_prompts}  # fmt: skip
    held_n = config.validation_prompts + config.test_prompts + n_null
    if config.corpus in ("c4", "sample"):
        root = None
        if config.corpus == "sample":
            root = data.sample(
                config.task, 4 * held_n, runs.stream(config.seed, "sample"), run.directory
            )
            texts = list(data.c4("train", root))
            models.write_stand_ins(run.directory, texts, config.seed)
        codec = data.load_codec(models.hub_folder(config.model, run.directory))
        train, _ = data.cut(data.c4("train", root), codec, **training,
                            max_total=config.train_max_prompt + config.train_tokens)  # fmt: skip
        passages, _ = data.cut(data.c4("validation", root), codec, **held, limit=held_n,
                               max_total=config.max_prompt + config.new_tokens)  # fmt: skip
        state: list[torch.Tensor] = []
    else:
        texts = data.corpus(config.corpus)
        tokenizer = models.bundled.minilm()[1]
        keep = (
            data.frequent_pieces(tokenizer, texts, config.vocab_size) if config.vocab_size else None
        )
        codec = data.Codec(tokenizer, keep)
        passages, seen = data.cut(texts, codec, **held, limit=held_n)
        rest = [t for t in texts if data.name_of(t) not in seen]
        train, more = data.cut(rest, codec, **training)
        codec.save(run.directory / "tokenizer")
        state = train_language_model(config, run, device, codec, [t for t in rest if data.name_of(t) not in more],
                                     passages[: config.validation_prompts])  # fmt: skip
    v, t = config.validation_prompts, config.validation_prompts + config.test_prompts
    parts = {
        "train": train,
        "validation": passages[:v],
        "test": passages[v:t],
        "null": passages[t:],
    }
    run.splits(**{k: p.ids for k, p in parts.items() if len(p)})
    stored = {k: {"ids": p.ids, "prompts": p.prompts, "human": p.human} for k, p in parts.items()}
    (run.directory / "passages.json").write_text(json.dumps(stored))
    run.finish(state=state, gradient_evaluations=config.lm_steps if state else 0, chosen_step=config.lm_steps,
               exports=["model"] if state else [])  # fmt: skip


def train_language_model(config, run, device, codec, texts, validation) -> list[torch.Tensor]:
    """Train, check against the unigram model, save under model/. Returns the weights."""
    separator = codec.encode_all(["[SEP]"])[0][0]
    stream = models.stream_of(codec.encode_all(texts), separator)
    held = models.stream_of(
        [p + h for p, h in zip(validation.prompts, validation.human)], separator
    )
    _, _, sim = models.minilm_encoder(codec.keep)
    runs.seed_global(config.seed, "language model")
    model = models.small_language_model(len(codec), config.lm_d, config.lm_layers, config.lm_heads,
                                        config.lm_context, sim).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lm_lr, weight_decay=0.01, betas=(0.9, 0.98)
    )
    warm = max(1, config.lm_steps // 20)
    rate = lambda s: min(1.0, (s + 1) / warm) * (1 - 0.95 * s / config.lm_steps)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start, saved = 0, run.resume()
    if saved:
        start = saved["step"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])

    def save() -> dict:
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }

    for step in run.steps(start, config.lm_steps, save, name="language model"):
        places = torch.randint(len(stream) - config.lm_length, (config.lm_batch,),
                               generator=runs.stream(config.seed, "blocks", step))  # fmt: skip
        places = processes.shard(places)
        blocks = stream[places[:, None] + torch.arange(config.lm_length)].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = models.language_model_loss(model, blocks)
        run.finite(loss, level="language model", step=step, batch=places)
        optimizer.zero_grad()
        loss.backward()
        processes.mean_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            run.log(step=step, lm_loss=loss.item())
    ppl = models.perplexity(model.eval(), held, config.lm_length, 64)
    unigram = models.unigram_perplexity(stream, held, len(codec))
    run.say(
        f"language model: validation perplexity {ppl:.1f}, unigram {unigram:.1f}, {len(stream):,} tokens of text"
    )
    run.log(lm_perplexity=ppl, unigram_perplexity=unigram)
    models.refuse_weak_model(ppl, unigram)
    model.save_pretrained(run.directory / "model")
    return list(model.state_dict().values())


# ---- stage: the generators -----------------------------------------------------------------------------------------


@torch.no_grad()
def references(config: Config, base: models.Base, train: data.Passages, device) -> torch.Tensor:
    """Enc(F_no) of every training prompt, (n, d_out): decoded softly without watermark, once, and kept on disk."""

    def make() -> torch.Tensor:
        found = []
        for start in range(0, len(train), 4 * config.batch):
            prompts = train.prompts[start : start + 4 * config.batch]
            text = method.soft_decode(base.model, left_padded(prompts, device), config.train_tokens, base.sim,
                                      mix=config.mix)  # fmt: skip
            found.append(sentence_of(config, base, prompts, text).cpu())
        return torch.cat(found)

    used = protocol.record_sha256(protocol.read_record(Path(config.uses["base"])) or {})
    key = ("references", used, len(train), config.train_tokens, config.mix, config.encoder, config.precision,
           config.context_tokens, device.type)  # fmt: skip
    return runs.cached(key, make).to(device)


def sentence_of(config: Config, base: models.Base, prompts, text: method.SoftText) -> torch.Tensor:
    """Enc of the last 5 prompt tokens and the soft tokens: (B, d_out)."""
    tail = torch.tensor([p[-config.context_tokens :] for p in prompts], device=base.sim.device)
    return method.sentence_embedding(
        base.encoder, torch.cat([base.sim[tail], text.sentence.float()], 1), base.pooling
    )


def train_generators(config: Config, run: runs.Run, device) -> None:
    """One pair of networks per init, one after another; the last checkpoint of each is taken."""
    base = models.load(config, Path(config.uses["base"]), device)
    train, validation = passages_of(config, "train"), passages_of(config, "validation")
    run.splits(train=train.ids, validation=validation.ids)
    reference = references(config, base, train, device)
    embedding = base.model.get_input_embeddings().weight
    total = config.train_steps * len(config.inits)

    def fresh(which: int):
        gamma0, delta0 = init_values(config.inits[which])
        pair = method.Generators(embedding.shape[1], config.hidden, gamma0, delta0, config.zero_last_layer,
                                 generator=runs.stream(config.seed, "generators")).to(device)  # fmt: skip
        return pair, torch.optim.Adam(
            pair.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )

    def finished(generators) -> dict[str, torch.Tensor]:
        return {k: v.detach().cpu().clone() for k, v in generators.state_dict().items()}

    trained: list[dict] = []
    start, saved = 0, run.resume()
    generators, optimizer = fresh(min(saved["which"] if saved else 0, len(config.inits) - 1))
    if saved:
        start, trained = saved["step"], saved["trained"]
        generators.load_state_dict(saved["generators"])
        optimizer.load_state_dict(saved["optimizer"])

    def save() -> dict:
        which = min((step + 1) // config.train_steps, len(config.inits) - 1)
        return {
            "trained": trained,
            "generators": generators.state_dict(),
            "optimizer": optimizer.state_dict(),
            "which": which,
        }

    in_range = True
    for step in run.steps(start, total, save, name="generators"):
        which, turn = divmod(step, config.train_steps)
        if turn == 0:
            generators, optimizer = fresh(which)
        per_epoch = len(train) // config.batch
        order = torch.randperm(
            len(train), generator=runs.stream(config.seed, "batches", turn // per_epoch)
        )
        rows = processes.shard(order[turn % per_epoch * config.batch :][: config.batch]).tolist()
        prompts = [train.prompts[i] for i in rows]
        draws = runs.stream(config.seed, "mask noise", turn, *processes.noise_names())
        if device.type != "cpu":
            draws = torch.Generator(device).manual_seed(draws.initial_seed())
        text = method.soft_decode(base.model, left_padded(prompts, device), config.train_tokens, base.sim, generators,
                                  lambda shape: method.logistic_noise(shape, draws, device), config.tau, config.mix)  # noqa: B023  # fmt: skip
        loss_S = method.semantic_loss(sentence_of(config, base, prompts, text), reference[rows])
        loss_D = method.detection_loss(text)
        run.finite(loss_D + loss_S, level="generators", step=step, batch=rows)
        parameters = list(generators.parameters())
        if config.objective == "moo":
            g_D, g_S = processes.all_mean(method.two_gradients(loss_D, loss_S, parameters))
            lam = method.mgda_weight(g_D, g_S, config.mgda_cap)
            gradient = lam * g_D + (1 - lam) * g_S
        else:
            lam = float("nan")
            grads = torch.autograd.grad(baselines.weighted_sum_loss(text, loss_S), parameters)
            gradient = torch.cat([g.reshape(-1) for g in grads])
        run.finite(gradient, level="generators' gradient", step=step, batch=rows)
        method.set_gradient(parameters, gradient)
        optimizer.step()
        in_range &= bool(((text.gamma > 0) & (text.gamma < 1)).all())
        run.log(step=step, init=config.inits[which], zhat=-loss_D.item(), cosine=-loss_S.item(), lam=lam,
                gamma=text.gamma.mean().item(), delta=text.delta.mean().item())  # fmt: skip
        if turn + 1 == config.train_steps:
            trained.append(finished(generators))
    run.gate("gamma-in-range", in_range, "gamma inside (0, 1) at every training step")
    for i, (name, state) in enumerate(zip(config.inits, trained, strict=True)):
        untrained, _ = fresh(i)
        generators, _ = fresh(i)
        generators.load_state_dict(state)
        export(config, run, base, "start", name, untrained, validation, device)
        export(config, run, base, "export", name, generators, validation, device)
    evaluations = total * (2 if config.objective == "moo" else 1)
    run.finish(state=[t for s in trained for t in s.values()], gradient_evaluations=evaluations, selection="last",
               chosen_step=config.train_steps, exports=[f"export/{n}" for n in config.inits])  # fmt: skip


def export(
    config: Config,
    run: runs.Run,
    base: models.Base,
    kind: str,
    name: str,
    generators,
    validation,
    device,
) -> None:
    """Save a pair as a watermark folder, with the mean gamma_t and delta_t it shows on validation prompts."""
    embedding = base.model.get_input_embeddings().weight
    watermark = tabulate(generators, embedding, key=hash_key(config), size_rounding=config.size_rounding,
                         about={"arm": config.arm, "scale": config.scale, "seed": config.seed, "init": name})  # fmt: skip
    texts = generate(config, base, validation.prompts, WatermarkLogitsProcessor(watermark, device))
    usage = torch.bincount(texts[:, :-1].flatten(), minlength=len(embedding)).double()
    usage = usage / usage.sum()
    means = {
        "mean_gamma": float(usage @ watermark.gamma.double()),
        "mean_delta": float(usage @ watermark.delta.double()),
    }
    if kind == "export" and watermark.delta.min() < 0:
        run.say(f"warning: init {name}: {int((watermark.delta < 0).sum())} of {len(embedding)} tokens have delta < 0 "
                f"(lowest {watermark.delta.min():.2f}); the paper leaves delta unconstrained")  # fmt: skip
    watermark = replace(watermark, about={**watermark.about, **means})
    folder = watermark.save(run.directory / kind / name, base.codec)
    (folder / "README.md").write_text(
        f"Token-specific watermark of `{config.model}` ({config.corpus}), arm {config.arm}, scale {config.scale}, seed "
        f"{config.seed}, init {name}. Text in it comes from the tokenizer's own distribution and licence; the two vectors "
        "are Apache-2.0.\nUse: `Watermark.load(folder)`, `WatermarkLogitsProcessor`, "
        "`python -m ts_watermark.detect FILE --generators .`\n")  # fmt: skip


JOBS = {"base": make_base, "generators": train_generators, "evaluate": evaluate_arm}


def run(config: Config) -> Path:
    """Carry out one run and return its directory."""
    if config.job not in JOBS:
        raise runs.BadInput(f"job={config.job!r}: choose one of {', '.join(JOBS)}")
    with runs.start(config, __file__) as run:
        if not run.finished:
            JOBS[config.job](config, run, runs.device(config))
    return run.directory


if __name__ == "__main__":
    runs.command_line(Config, run, __doc__, __file__)
