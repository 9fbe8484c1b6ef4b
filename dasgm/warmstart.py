"""The stage before a search: a generator warm-started on D_tr, the classifier that reads its labels, the fidelity gate."""

from __future__ import annotations

from typing import Any

import torch

from shared import runs
from shared.processes import shard

from . import data, generators


def new_gan(config: Any, problem: data.Problem, device: torch.device) -> generators.GAN:
    return generators.GAN(
        config.gan,
        problem.classes,
        problem.shape,
        config.seed,
        config.gan_lr,
        config.gan_lr_D,
        device,
        config.gan_width,
    )


def train_generator(
    config: Any, run: runs.Run, problem: data.Problem, device: torch.device
) -> None:
    images = data.gan_images(problem, config.gan_data)
    gan = new_gan(config, problem, device)
    saved = run.resume()
    if saved:
        gan.load(saved["gan"])
    for step in run.steps(
        saved["step"] if saved else 0, config.gan_steps, lambda: {"gan": gan.state()}, "generator"
    ):
        rows = shard(
            data.batch(len(images), config.gan_batch, gan.steps, config.seed, "gan batches")
        ).to(device)
        losses = gan.step(problem.signed(images.pixels[rows]), images.labels[rows])
        run.finite(losses["loss_G"], level="generator", step=step, batch=rows.cpu())
        if step % 50 == 0:
            run.log(step=step, **losses)

    reference = train_reference(config, problem, device)
    value = label_fidelity(config, problem, gan, reference, "fidelity", 2000)
    v = problem.validation
    with torch.no_grad():
        right = (
            torch.cat([reference(problem.normalise(p)).argmax(1) for p in v.pixels.split(500)])
            == v.labels
        )
    warning = (
        generators.fidelity_gate(value, problem.classes)
        if config.fidelity_gate
        else "fidelity gate switched off"
    )
    if warning:
        run.say(f"warning: {warning}")
    run.gate(
        "label-fidelity",
        not config.fidelity_gate or value >= 3 / problem.classes,
        f"{value:.3f} of 2,000 images",
    )
    inside = set(images.ids.tolist()) <= set(problem.train.ids.tolist())
    run.gate(
        "generator-data", inside or config.gan_data == "trainval", f"{len(images)} images of D_tr"
    )
    runs.write_bytes(
        run.directory / "generator.pt",
        runs.pack({"gan": gan.state(), "reference": reference.state_dict()}),
    )
    write_samples(run, problem, gan)
    run.finish(
        state=gan.G.parameters(),
        gradient_evaluations=config.gan_steps * (6 if config.gan == "dcgan" else 2),
        validation={"fidelity": value, "reference_accuracy": float(right.float().mean())},
    )


def train_reference(config: Any, problem: data.Problem, device: torch.device) -> torch.nn.Module:
    """The classifier of the fidelity gate; it has seen D_tr and nothing else."""
    runs.seed_global(config.seed, "reference")
    net = generators.reference_classifier(problem.shape[0], problem.classes).to(device)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for t in range(config.reference_steps):
        rows = data.batch(len(problem.train), config.batch, t, config.seed, "reference batches").to(
            device
        )
        x = problem.view(problem.train.pixels[rows], runs.stream(config.seed, "reference view", t))
        optimiser.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(net(x), problem.train.labels[rows]).backward()
        optimiser.step()
    return net.eval()


def label_fidelity(
    config: Any,
    problem: data.Problem,
    gan: generators.GAN,
    reference: torch.nn.Module,
    name: str,
    n: int,
) -> float:
    def view(images: torch.Tensor) -> torch.Tensor:
        return problem.normalise((images + 1) * 127.5)

    return generators.fidelity(lambda size, part: gan.sample(size, name, part), reference, view, n)


def write_samples(run: runs.Run, problem: data.Problem, gan: generators.GAN, each: int = 8) -> None:
    """`each` generated images of at most ten classes, for the figure."""
    y = torch.arange(min(10, problem.classes), device=gan.device).repeat_interleave(each)
    with torch.no_grad():
        images = gan.ema(gan.draw(len(y), "samples")[0], y)
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
    runs.save_arrays(run.directory / "samples.npz", {"pixels": pixels, "label": y.cpu().numpy()})
