"""A convolutional cell for images of one's own: the search, then the cell trained from scratch.

architecture = tool.search(images, labels)  # uint8 (n, c, h, w), int64 (n,)
architecture.network(images.float())  # logits (n, classes)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shared import cifar, runs
from shared.glue import level_split
from shared.protocol import BadInput

from . import data, generators, method, networks
from .config import Config

LARGEST = 4096  # values of an image that the plain generator draws


@dataclass(frozen=True)
class OwnProblem(data.Problem):
    """Images of a user's: normalised by their own mean and sd (c,), mirrored only if asked."""

    mean: tuple[float, ...] = ()
    sd: tuple[float, ...] = ()
    mirror: bool = False

    def normalise(self, pixels: Tensor) -> Tensor:
        mean, sd = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in self._both)
        return (pixels.float() / 255 - mean) / sd

    @property
    def _both(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.mean, self.sd

    def view(self, pixels: Tensor, stream: torch.Generator) -> Tensor:
        """Moved by up to an eighth of the height, mirrored where asked, normalised."""
        pixels = cifar.random_crop(pixels, stream, max(1, pixels.shape[-2] // 8))
        return self.normalise(cifar.random_flip(pixels, stream) if self.mirror else pixels)


class Normalised(nn.Module):
    """The derived network with the normalisation of its images: 0-255 (n, c, h, w) -> logits."""

    mean: Tensor
    sd: Tensor

    def __init__(self, network: nn.Module, problem: OwnProblem):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(problem.mean).view(1, -1, 1, 1))
        self.register_buffer("sd", torch.tensor(problem.sd).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network((pixels / 255 - self.mean) / self.sd)


@dataclass(frozen=True)
class Architecture:
    """What a search gives. cell: text of NAS-Bench-201; network: trained; fidelity: share of 500
    generated images in which a classifier trained on real ones reads the label they were made for
    (0 without a generator): below 0.5 do not trust a search on them."""

    cell: str
    network: Normalised
    fidelity: float
    config: Config
    problem: OwnProblem

    def save(self, folder: str | Path) -> None:
        """genotype.json, weights.pt, README.md: `dasgm.networks.load(folder)` gives the network,
        which takes normalised images."""
        derived: networks.Derived = self.network.network  # type: ignore[assignment]
        networks.export(Path(folder), self.config, self.problem, self.cell, derived)


def search(
    images: Tensor,
    labels: Tensor,
    *,
    lam: float = 1.0,
    epochs: int = 10,
    generator_steps: int = 3000,
    training_epochs: int = 20,
    channels: int = 16,
    nodes: int = 4,
    batch: int = 64,
    mirror: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Architecture:
    """The cell that a network should repeat on these images, and that network, trained.

    images: (n, c, h, w) uint8; labels: (n,) int64 from 0. lam: share of generated images in the
    loss of the architecture (1: the abstract's reading, 0: DARTS, which needs no generator).
    epochs: of the search, on one half of the images; training_epochs: of the derived network, on
    all. mirror: an image and its mirror image mean the same.

    Photographs of 3 x 32 x 32 get a residual generator, others of at most 4,096 values a plain
    one. Raises BadInput for images or labels that cannot be used, GeneratorFailed where generated
    images do not show their class: then train it longer, or take lam = 0."""
    problem = problem_of(images, labels, seed, mirror)
    photographs = problem.shape == (3, 32, 32)
    if lam and not photographs and images[0].numel() > LARGEST:
        remedy = "resize them to 3 x 32 x 32, or take lam=0"
        raise BadInput(f"images of {' x '.join(map(str, problem.shape))} are too large; {remedy}")
    # rates of the plain generator and of the search: those of scale cpu (protocol.yaml)
    plain: dict[str, Any] = {"gan": "mlp", "gan_batch": 64, "gan_lr": 1e-3, "gan_lr_D": 1e-3}
    config = Config(
        scale="own", arm="tool", task="own", seed=seed, data="cifar10" if photographs else "digits",
        job="joint" if lam else "darts", lam=lam, epochs=epochs, batch=batch, nodes=nodes,
        channels=channels, pool_norm=True, lr=0.1, nesterov=True, arch_lr=3e-3,
        gan_steps=generator_steps, judge="retrain", retrain_epochs=training_epochs,
        retrain_batch=batch, retrain_lr=0.1, cutout=0, **({} if photographs else plain),
    )  # fmt: skip
    device = images.device
    views, fidelity = data.Views(config, problem), 0.0
    gan = trained_generator(config, problem, views, say) if lam else None
    if gan is not None:
        fidelity = gan.labels_read(problem, "fidelity", 0) / 500
        lowest = min(3 / problem.classes, (1 + 1 / problem.classes) / 2)  # of few classes: half way
        if fidelity < lowest:
            chance = f"chance is {1 / problem.classes:.0%}"
            what = f"{fidelity:.0%} of the generated images show their label, {chance}"
            raise generators.GeneratorFailed(f"{what}; raise generator_steps, or take lam=0")
        say(f"generator: {fidelity:.0%} of its images show their label")
    stage = networks.stages(config)[0]
    f = networks.new_supernet(config, problem, stage, None, device)
    per_epoch = max(1, len(problem.train) // batch)
    for t in range(epochs * per_epoch):
        networks.begin_step(config, f, t, t // per_epoch)
        facts = method.cycle(f, gan, views, t)
        _finite(facts["loss_W"], t)
        if (t + 1) % per_epoch == 0:
            cell = networks.derive(config, f.A, None)
            say(f"epoch {t // per_epoch + 1} of {epochs}: loss {facts['loss_W']:.3f}, {cell}")
    cell = networks.derive(config, f.A, None)
    student = networks.new_student(config, problem, cell, device)
    for t in range(student.steps):
        _finite(loss := float(networks.retrain_step(student, t)), t)
        if t == student.steps - 1 or (t + 1) % (5 * student.batches.per_epoch) == 0:
            say(f"training step {t + 1} of {student.steps}: loss {loss:.3f}")
    network = Normalised(student.network, problem).to(device).eval()
    return Architecture(cell, network, fidelity, config, problem)


def problem_of(images: Tensor, labels: Tensor, seed: int = 0, mirror: bool = False) -> OwnProblem:
    """Two stratified halves: of the weights and the generator, and of the architecture."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        what = f"images are {images.dtype} of shape {tuple(images.shape)}"
        raise BadInput(f"{what}; give uint8 (n, c, h, w) with values 0 to 255")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.min() < 0:
        what = f"labels are {labels.dtype} of shape {tuple(labels.shape)}"
        raise BadInput(f"{what}; give int64 ({len(images)},) from 0")
    counts = torch.bincount(labels.cpu())
    if counts.min() < 2 or len(counts) < 2:
        few = int(counts.argmin())
        what = f"class {few} of {len(counts)} has {int(counts[few])} images"
        raise BadInput(f"{what}; give two classes or more, two images or more of each")
    whole = data.Images(torch.arange(len(labels), device=labels.device), images, labels)
    halves = level_split(labels.cpu().numpy(), [0.5, 0.5], runs.stream(seed, "split"))
    train, validation = (whole[torch.from_numpy(rows)] for rows in halves)
    scaled = train.pixels.float() / 255
    mean, sd = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3)).clamp(min=1e-3)
    parts = ("own", len(counts), train, validation, whole[:0])
    return OwnProblem(*parts, tuple(mean.tolist()), tuple(sd.tolist()), mirror)


def trained_generator(
    config: Config, problem: OwnProblem, views: data.Views, say: Callable[[str], None]
) -> generators.GAN:
    """The warm start of level 2, and the classifier that reads the labels of its images."""
    device = problem.train.pixels.device
    gan = generators.GAN(config, problem.classes, problem.shape, device)
    for step in range(config.gan_steps):
        losses = method.generator_step(gan, views)
        _finite(losses["loss_G"], step)
        if (step + 1) % 500 == 0:
            say(f"generator step {step + 1} of {config.gan_steps}")
    optimizer = torch.optim.Adam(gan.reference.parameters(), 2e-3, fused=True)
    for step in range(min(config.reference_steps, config.gan_steps)):
        images = views.batch(problem.train, "reference batches", step)
        x = problem.view(images.pixels, runs.stream(config.seed, "reference view", step))
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(gan.reference(x), images.labels).backward()
        optimizer.step()
    gan.reference.eval()
    return gan


def _finite(loss: float, step: int) -> None:
    if not abs(loss) < float("inf"):
        raise FloatingPointError(f"the loss is {loss} at step {step}; lower the rates")
