"""Level 2's networks: generators G(z, y), their opponents H(x, y), and the fidelity gate.

What the paper used is unknown; everything here is decided by this project, except the option
`dcgan`, whose sizes follow a public prototype by other people (docs/papers/dasgm.md, section 3.5).
Images are (n, c, h, w) in [-1, 1].

    all       min_theta  V_G = -E H(G(z, y), y)
    hinge     max_phi    -E relu(1 - H(x, y)) - E relu(1 + H(G(z, y), y))
    wgan-gp   max_phi     E H(x, y) - E H(G(z, y), y) - 10 E (|grad_x H| - 1)^2      (`dcgan`)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from shared import cifar, runs
from shared.processes import noise_names

from .config import Config
from .data import Problem


class Generator(nn.Module):
    """G(z, y): z (n, dz), y (n,) -> images (n, c, h, w)."""

    dz: int


class MLPGenerator(Generator):
    """8x8 digits: z (16) and the one-hot label, two hidden layers of 128, tanh."""

    def __init__(self, classes: int, shape: tuple[int, int, int], dz: int = 16, width: int = 128):
        super().__init__()
        self.dz, self.classes, self.shape = dz, classes, shape
        size = shape[0] * shape[1] * shape[2]
        layers: list[nn.Module] = []
        for a in (dz + classes, width):
            # Batch statistics keep labels apart; without them it draws one image for all.
            layers += [
                nn.Linear(a, width),
                nn.BatchNorm1d(width, track_running_stats=False),
                nn.ReLU(),
            ]
        self.net = nn.Sequential(*layers, nn.Linear(width, size))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        code = torch.cat([z, F.one_hot(y, self.classes).to(z.dtype)], 1)
        return torch.tanh(self.net(code)).view(-1, *self.shape)


class MLPDiscriminator(nn.Module):
    """Two hidden layers of 128; projection of the class onto the last one."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int = 128):
        super().__init__()
        size = shape[0] * shape[1] * shape[2]
        self.features = nn.Sequential(
            nn.Linear(size, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)
        )
        self.head, self.embed = nn.Linear(width, 1), nn.Embedding(classes, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.features(x.flatten(1))
        return self.head(h).squeeze(1) + (self.embed(y) * h).sum(1) / h.shape[1] ** 0.5


class ConditionalNorm(nn.Module):
    """Batch norm (batch statistics) with a gain and a bias per class."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False, track_running_stats=False)
        self.gain, self.bias = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.gain(y)[:, :, None, None] * self.norm(x) + self.bias(y)[:, :, None, None]


class UpBlock(nn.Module):
    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.n1, self.n2 = ConditionalNorm(channels, classes), ConditionalNorm(channels, classes)
        self.c1, self.c2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        up = F.interpolate(x, scale_factor=2)
        h = self.c1(F.interpolate(F.relu(self.n1(x, y)), scale_factor=2))
        return up + self.c2(F.relu(self.n2(h, y)))


class ResidualGenerator(Generator):
    """z (128) -> 4x4x256 -> three residual up-blocks -> 3x32x32."""

    def __init__(self, classes: int, shape: tuple[int, int, int], dz: int = 128, width: int = 256):
        super().__init__()
        self.dz, self.classes, self.width = dz, classes, width
        self.first = nn.Linear(dz, 16 * width)
        self.blocks = nn.ModuleList(UpBlock(width, classes) for _ in range(3))
        self.norm = nn.BatchNorm2d(width, track_running_stats=False)
        self.last = nn.Conv2d(width, shape[0], 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = self.first(z).view(-1, self.width, 4, 4)
        for block in self.blocks:
            x = block(x, y)
        return torch.tanh(self.last(F.relu(self.norm(x))))


class ResidualDiscriminator(nn.Module):
    """Four residual blocks, spectral normalisation, the class projected onto pooled features."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int = 128):
        super().__init__()

        def conv(a: int, b: int, k: int) -> nn.Module:
            return spectral_norm(nn.Conv2d(a, b, k, padding=k // 2))

        sizes = [
            (shape[0], width, True),
            (width, width, True),
            (width, width, False),
            (width, width, False),
        ]
        self.down = [d for *_, d in sizes]
        self.c1 = nn.ModuleList(conv(a, b, 3) for a, b, _ in sizes)
        self.c2 = nn.ModuleList(conv(b, b, 3) for _, b, _ in sizes)
        self.short = nn.ModuleList(conv(a, b, 1) for a, b, _ in sizes)
        self.head = spectral_norm(nn.Linear(width, 1))
        self.embed = spectral_norm(nn.Embedding(classes, width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for i, (c1, c2, short, down) in enumerate(zip(self.c1, self.c2, self.short, self.down)):
            h = c2(F.relu(c1(F.relu(x) if i else x)))
            x = h + short(x)
            x = F.avg_pool2d(x, 2) if down else x
        features = F.relu(x).sum((2, 3))
        return self.head(features).squeeze(1) + (self.embed(y) * features).sum(1)


class DCGenerator(Generator):
    """Latent and label embedding of 100, four transposed convolutions of widths 256 to 64."""

    def __init__(self, classes: int, shape: tuple[int, int, int], dz: int = 100, width: int = 16):
        super().__init__()
        self.dz, self.classes = dz, classes
        self.embed = nn.Embedding(classes, 100)
        widths = [dz + 100, 16 * width, 8 * width, 4 * width]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers += [
                nn.ConvTranspose2d(a, b, 4, 2 if i else 1, 1 if i else 0, bias=False),
                nn.BatchNorm2d(b, track_running_stats=False), nn.ReLU(),
            ]  # fmt: skip
        self.net = nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], shape[0], 4, 2, 1))
        self.apply(_small_weights)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.net(torch.cat([z, self.embed(y)], 1)[:, :, None, None]))


class DCDiscriminator(nn.Module):
    """The critic: the label is one more plane; no batch norm, which the penalty does not allow."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int = 16):
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(classes, shape[1] * shape[2])
        widths = [shape[0] + 1, 4 * width, 8 * width, 16 * width]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, shape[1] // 8))
        self.apply(_small_weights)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        plane = self.embed(y).view(-1, 1, *self.shape[1:])
        return self.net(torch.cat([x, plane], 1)).flatten()


def _small_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)


# --- one generator with its opponent --------------------------------------------------------------

NETWORKS: dict[str, tuple[Callable[..., Generator], Callable[..., nn.Module]]] = {
    "mlp": (MLPGenerator, MLPDiscriminator),
    "residual": (ResidualGenerator, ResidualDiscriminator),
    "dcgan": (DCGenerator, DCDiscriminator),
}
AVERAGE = 0.999  # of theta, over steps
PARTS = ("G", "H", "ema", "opt_G", "opt_H", "reference")


class GAN:
    """theta (G), phi (H), the moving average of theta (ema) and two Adams: `method.generator_step`
    moves them. reference: the classifier that reads the labels of the images.

    Every draw comes from a stream named by the step: continued runs draw what whole ones would."""

    def __init__(
        self, config: Config, classes: int, shape: tuple[int, int, int], device: torch.device
    ):
        self.kind, self.seed, self.device, self.classes = config.gan, config.seed, device, classes
        runs.seed_global(config.seed, "gan")
        generator, discriminator = NETWORKS[config.gan]
        size: dict[str, Any] = {"width": config.gan_width} if config.gan_width else {}
        self.G = generator(classes, shape, **size).to(device)
        self.H = discriminator(classes, shape, **size).to(device)
        self.ema = copy.deepcopy(self.G).requires_grad_(False)
        betas = (0.5, 0.9) if config.gan == "mlp" else (0.0, 0.9)
        self.opt_G = torch.optim.Adam(
            self.G.parameters(), lr=config.gan_lr, betas=betas, fused=True
        )
        self.opt_H = torch.optim.Adam(
            self.H.parameters(), lr=config.gan_lr_D, betas=betas, fused=True
        )
        runs.seed_global(config.seed, "reference")
        self.reference = reference_classifier(shape[0], classes).to(device)
        self.steps = 0
        self.critic_steps = 5 if config.gan == "dcgan" else 1

    def noise(self, *name: Any) -> torch.Generator:
        return runs.stream(self.seed, *name, *noise_names())

    def draw(self, n: int, *name: Any) -> tuple[Tensor, Tensor]:
        """z (n, dz) ~ N(0, I) and y (n,) uniform, from the stream of this name."""
        stream = self.noise("latent", *name)
        z = torch.randn(n, self.G.dz, generator=stream)
        y = torch.randint(self.classes, (n,), generator=stream)
        return z.to(self.device), y.to(self.device)

    @torch.no_grad()
    def sample(self, n: int, *name: Any) -> tuple[Tensor, Tensor]:
        """n images of the averaged generator and their labels; no gradient reaches theta."""
        z, y = self.draw(n, *name)
        return self.ema(z, y), y

    def loss_G(self, fake: Tensor, y: Tensor) -> Tensor:
        """V_G."""
        return -self.H(fake, y).mean()

    def loss_H(
        self, real: Tensor, y: Tensor, fake: Tensor, y_fake: Tensor, stream: torch.Generator
    ) -> Tensor:
        """-V. One forward for both kinds: batch statistics cannot tell them apart."""
        scores = self.H(torch.cat([real, fake]), torch.cat([y, y_fake]))
        on_real, on_fake = scores.split([len(real), len(fake)])
        if self.kind != "dcgan":
            return F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
        mix = torch.rand(len(real), 1, 1, 1, generator=stream).to(real.device)
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        slope = torch.autograd.grad(self.H(between, y).sum(), between, create_graph=True)[0]
        penalty = 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return on_fake.mean() - on_real.mean() + penalty

    def shifted(self, images: Tensor, stream: torch.Generator) -> Tensor:
        """What H sees of real and generated images, as it would learn the training half by heart:
        moved by up to an eighth of the width (black comes in), photographs also mirrored."""
        images = cifar.random_crop(images + 1, stream, max(1, images.shape[-1] // 8)) - 1
        return images if self.kind == "mlp" else cifar.random_flip(images, stream)

    @torch.no_grad()
    def follow(self) -> None:
        """After a step. The average grows with them: a short run would keep its random start."""
        self.steps += 1
        decay = min(AVERAGE, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.G.parameters()), 1 - decay)

    def labels_read(self, problem: Problem, *name: Any) -> int:
        """Of 500 images drawn by this name: how many the reference classifier gives their label."""
        images, y = self.sample(500, *name)
        self.reference.eval()
        with torch.no_grad():
            logits = self.reference(problem.normalise(problem.pixels(images)))
        return int((logits.argmax(1) == y).sum())

    @torch.no_grad()
    def samples(self, problem: Problem, each: int = 8) -> dict[str, Tensor]:
        """For the figure: `each` images (uint8) of at most ten classes, and their labels."""
        y = torch.arange(min(10, self.classes), device=self.device).repeat_interleave(each)
        pixels = problem.pixels(self.ema(self.draw(len(y), "samples")[0], y))
        return {"pixels": pixels.round().clamp(0, 255).byte().cpu(), "label": y.cpu()}

    def state_dict(self) -> dict[str, Any]:
        return {part: getattr(self, part).state_dict() for part in PARTS} | {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part in PARTS:
            getattr(self, part).load_state_dict(state[part])
        self.steps = state["steps"]


# --- the fidelity gate ----------------------------------------------------------------------------


def reference_classifier(c_in: int, classes: int, width: int = 32) -> nn.Module:
    """A small convolutional classifier, trained on D_tr alone, that reads labels of images."""

    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]

    return nn.Sequential(
        *block(c_in, width),
        nn.MaxPool2d(2),
        *block(width, 2 * width),
        nn.MaxPool2d(2),
        *block(2 * width, 2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


class GeneratorFailed(RuntimeError):
    """The images do not carry their labels: a search on them would test the generator alone."""


def fidelity_gate(fidelity: float, classes: int, warn_below: float = 0.5) -> str:
    """A warning below `warn_below`, else ''. Raises GeneratorFailed below 3 times chance.

    fidelity: share of generated images to which the reference classifier gives their label."""
    if fidelity < 3 / classes:
        raise GeneratorFailed(
            f"label fidelity {fidelity:.3f} of the generator is below 3 times chance"
            f" ({3 / classes:.3f}): its images do not show their class, so a search on them says"
            " nothing about the method; train it longer (--gan_steps) or change --gan_lr"
        )
    if fidelity < warn_below:
        artefacts = "expect artefacts of the generator in the search"
        return f"label fidelity {fidelity:.3f} is below {warn_below}: {artefacts}"
    return ""
