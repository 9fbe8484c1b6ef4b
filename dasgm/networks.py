"""The networks of a search, whichever its space: relaxed, derived, exported, trained from scratch.

A cell is text in both spaces: NAS-Bench-201's string `|op~0|+...`, or a genotype of DARTS' space as
JSON. An export gives a plain network, with trained weights where the run trained them:

    network = networks.load("runs/.../export")
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from shared import cifar, processes, runs
from shared.protocol import BadInput

from . import darts_space, nasbench
from .config import Config, Retraining
from .data import Problem
from .generators import GAN
from .imagenet import ImageNet

MOMENTUM, CLIP = 0.9, 5.0  # of the SGD of W and of its gradient's norm, as in DARTS
TEST_BATCH = 256
Derived = nasbench.Network | darts_space.DerivedNetwork


# --- relaxed --------------------------------------------------------------------------------------


@dataclass
class Supernet:
    """f(x; A, W): W are the parameters of the relaxed network `net`, A is an argument of it.

    class_losses: (C,) running mean of each class's loss, nan before its first image; only the
    `weighted` job moves it."""

    net: nn.Module
    A: list[Tensor]
    opt_W: Optimizer
    opt_A: Optimizer
    class_losses: Tensor
    W: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.W = list(self.net.parameters())

    def __call__(self, x: Tensor) -> Tensor:
        """x (n, c, h, w) -> logits (n, C)."""
        return self.net(x, self.A)

    def drift(self, weight_decay: float) -> list[Tensor]:
        """mu m + wd W: what the next step of SGD without Nesterov adds to the gradient."""
        pull = list(torch._foreach_mul([p.detach() for p in self.W], weight_decay))
        for x, p in zip(pull, self.W):
            m = self.opt_W.state.get(p, {}).get("momentum_buffer")  # none before the first step
            if m is not None:
                x.add_(m, alpha=MOMENTUM)
        return pull

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        modules = {"net": self.net, "opt_W": self.opt_W, "opt_A": self.opt_A}
        return {**modules, "A": self.A, "class_losses": [self.class_losses]}


@dataclass(frozen=True)
class Stage:
    """A stretch of the search with one relaxed network: P-DARTS has three, the others one."""

    name: str
    number: int
    layers: int
    operations: int  # of an edge
    skip_dropout: float


def stages(config: Config) -> list[Stage]:
    if config.space != "pdarts":
        return [Stage("search", 0, config.layers, 8, 0.0)]
    operations, dropout = (8, 5, 3), (0.1, 0.4, 0.7)  # P-DARTS
    plan = enumerate(zip(config.pdarts_layers, operations, dropout, strict=True))
    return [Stage(f"search {i + 1}", i, *columns) for i, columns in plan]


def new_supernet(
    config: Config,
    problem: Problem,
    stage: Stage,
    choices: darts_space.Choices | None,
    device: torch.device,
) -> Supernet:
    """The same start for every arm of a seed. choices: the operations of each edge; None: all."""
    c = config
    net: nn.Module
    runs.seed_global(c.seed, "supernet", stage.number)
    stream = runs.stream(c.seed, "A", stage.number)
    if c.space == "nasbench":
        net = nasbench.Network(None, **nasbench_network(c, problem), pool_norm=c.pool_norm)
        A = nasbench.initial(c.nodes, stream)
    else:
        choices = choices or darts_space.everything()
        partial = darts_space.PARTIAL if c.space == "pcdarts" else 1
        net = darts_space.RelaxedNetwork(
            c.channels, stage.layers, problem.classes, choices, partial, stage.skip_dropout
        )
        A = darts_space.initial(choices, partial, stream)
    net.to(device)
    A = [a.to(device).requires_grad_() for a in A]
    opt_W = torch.optim.SGD(net.parameters(), c.lr, MOMENTUM, 0.0, c.weight_decay, c.nesterov)
    decay = 1e-3  # as DARTS has it
    opt_A = torch.optim.Adam(A, c.arch_lr, betas=(0.5, 0.999), weight_decay=decay, fused=True)
    return Supernet(net, A, opt_W, opt_A, torch.full((problem.classes,), torch.nan))


def begin_step(config: Config, f: Supernet, t: int, epoch: int) -> None:
    """Dropout's draws of step t, and W's rate in an epoch of a stage."""
    runs.seed_global(config.seed, "dropout", t)
    cosine = runs.schedule("cosine", epoch, config.epochs)
    f.opt_W.param_groups[0]["lr"] = config.lr_min + (config.lr - config.lr_min) * cosine


@contextmanager
def levels_apart(run: runs.Run, f: Supernet, gan: GAN | None) -> Iterator[None]:
    """Gate of a cycle: a step of an optimiser moves its own variables alone."""
    variables: dict[Optimizer, list[Tensor]] = {f.opt_W: f.W, f.opt_A: f.A}
    if gan is not None:
        variables |= {gan.opt_G: list(gan.G.parameters()), gan.opt_H: list(gan.H.parameters())}
    before = {o: [x.detach().clone() for x in v] for o, v in variables.items()}
    apart = []

    def check(optimizer: Optimizer, *_: Any) -> None:
        pairs = {o: zip(v, before[o]) for o, v in variables.items()}
        moved = {o for o, both in pairs.items() if any(not torch.equal(a, b) for a, b in both)}
        apart.append(moved == {optimizer})
        before.update({o: [x.detach().clone() for x in variables[o]] for o in moved})

    handles = [optimizer.register_step_post_hook(check) for optimizer in variables]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    said = "each update of the first whole cycle moved its own variables alone"
    run.gate("levels-apart", all(apart), said)


# --- cells ----------------------------------------------------------------------------------------


def derive(config: Config, A: Sequence[Tensor], choices: darts_space.Choices | None) -> str:
    """The discrete cell of A. choices: the operations of each edge, its columns of A; None: all."""
    A = [a.detach().cpu() for a in A]
    if config.space == "nasbench":
        return nasbench.derive(A[0], config.nodes, config.exclude_none)
    limit = config.most_skips if config.most_skips >= 0 else None
    return darts_space.derive(A, choices, limit).to_json()


def random_cell(config: Config) -> str:
    """One uniform draw, named by the seed."""
    stream = runs.stream(config.seed, "random cell")
    if config.space != "nasbench":
        return darts_space.random_genotype(stream).to_json()
    cells = nasbench.all_cells(config.nodes, config.exclude_none)
    return cells[int(torch.randint(len(cells), (1,), generator=stream))]


def skips(cell: str) -> int:
    """Skip connections in the (normal) cell."""
    if cell.startswith("|"):
        return nasbench.from_string(cell).count("skip_connect")
    return darts_space.Genotype.from_json(cell).skips()


def epoch_line(config: Config, f: Supernet, choices: darts_space.Choices | None) -> dict[str, Any]:
    """What is watched at the end of an epoch; entropy: 1 undecided, 0 decided."""
    cell = derive(config, f.A, choices)
    p = [a.detach().softmax(-1) for a in f.A[:2]]
    entropy = [-(q * q.clamp(min=1e-12).log()).sum(-1) / math.log(q.shape[-1]) for q in p]
    line = {"cell": cell, "skips": skips(cell), "entropy": float(torch.cat(entropy).mean())}
    return {**line, "softmax": [q.cpu().tolist() for q in p]}


def early(config: Config, history: list[dict[str, Any]]) -> str:
    """The cell of the last epoch before skips filled more than half of the (normal) cell; the final
    one if they never did. history: a line per epoch."""
    nasbench_edges = config.nodes * (config.nodes - 1) // 2
    most = nasbench_edges / 2 if config.space == "nasbench" else darts_space.NODES
    full = [i for i, line in enumerate(history) if line["skips"] > most]
    return history[max(0, full[0] - 1) if full else -1]["cell"]


# --- derived --------------------------------------------------------------------------------------


def describe(config: Config, problem: Problem, cell: str, classes: int) -> dict[str, Any]:
    """What `build` needs to make the derived network: JSON values alone."""
    if config.space == "nasbench":
        return {"space": "nasbench", "cell": cell, "network": nasbench_network(config, problem)}
    size = {"channels": config.retrain_channels, "layers": config.retrain_layers}
    heads = {"classes": classes, "auxiliary": config.auxiliary > 0}
    imagenet = config.retrain_on == "imagenet"
    return {**json.loads(cell), "network": {**size, **heads, "imagenet": imagenet}}


def nasbench_network(config: Config, problem: Problem) -> dict[str, Any]:
    """Arguments of nasbench.Network, relaxed or derived; the digits test bed is smaller."""
    digits = problem.name == "digits"
    return {
        "channels": config.channels,
        "N": config.cells_per_stage,
        "stages": 2 if digits else 3,
        "nodes": config.nodes,
        "classes": problem.classes,
        "c_in": problem.shape[0],
        "reduction": "conv" if digits else "residual",
    }


def build(description: dict[str, Any]) -> Derived:
    """genotype.json's content -> the derived network, weights drawn from torch's global state."""
    space = description.get("space")
    if space == "nasbench":
        return nasbench.Network(description["cell"], **description["network"])
    if space == "darts":
        genotype = darts_space.Genotype.from_json(json.dumps(description))
        return darts_space.DerivedNetwork(genotype, **description["network"])
    raise ValueError(f"genotype.json: space is {space!r}, expected nasbench or darts")


def load(directory: str | Path) -> Derived:
    """An export as a plain network."""
    weights = Path(directory) / "weights.pt"
    try:
        network = build(json.loads((Path(directory) / "genotype.json").read_text("utf-8")))
        if weights.exists():
            network.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    except Exception as error:  # whatever json, torch.load and load_state_dict trip over
        what = f"{directory} is no whole export ({' '.join(repr(error).split())[:300]})"
        raise BadInput(f"{what}; write it again with --export") from error
    return network


def export(
    directory: Path, config: Config, problem: Problem, cell: str, trained: Derived | None
) -> None:
    """genotype.json, README.md, and weights.pt of a network that was trained."""
    classes, weights = problem.classes, "no weights: the cell was looked up in a table"
    directory.mkdir(exist_ok=True)
    if trained is not None:
        classes, weights = trained.head.out_features, "trained weights in weights.pt"
        torch.save(trained.state_dict(), directory / "weights.pt")
    description = describe(config, problem, cell, classes)
    (directory / "genotype.json").write_text(
        json.dumps(description, indent=1) + "\n", encoding="utf-8"
    )
    (directory / "README.md").write_text(
        f"# A derived cell\n\nFound by arm `{config.arm}` (job {config.job}) of dasgm (after arXiv"
        f" 2112.00171), task `{config.task}`, scale `{config.scale}`, seed {config.seed}. Licence:"
        " that of the repository; the terms of the data apply to trained weights.\n\n"
        f"`genotype.json`: the cell and the network around it; {weights}.\n"
        "`from dasgm import networks; network = networks.load(DIR)` gives a plain `nn.Module`.\n",
        encoding="utf-8",
    )


# --- from scratch ---------------------------------------------------------------------------------


class OwnImages:
    """The search's images for the retraining: D_tr and D_val to train on, D_te to test on."""

    def __init__(self, problem: Problem, cutout: int):
        self.problem, self.cutout, self.classes = problem, cutout, problem.classes
        self.images = problem.train + problem.validation
        self.rows, self.ids = len(self.images), problem.test.ids

    def training(self, rows: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        pixels = self.problem.view(self.images.pixels[rows], stream)
        if self.cutout:
            pixels = cifar.cutout(pixels, stream, self.cutout)
        return pixels, self.images.labels[rows]

    def testing(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        test = self.problem.test
        return self.problem.normalise(test.pixels[rows]), test.labels[rows]


@dataclass
class Student:
    """A derived network that learns: its images, its recipe and its optimiser."""

    network: Derived
    images: OwnImages | ImageNet
    recipe: Retraining
    seed: int
    device: torch.device

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.network.to(self.device)
        self.W = list(self.network.parameters())
        self.optimizer = torch.optim.SGD(
            self.W,
            recipe.retrain_lr,
            momentum=MOMENTUM,
            weight_decay=recipe.retrain_weight_decay,
            nesterov=recipe.retrain_nesterov,
        )
        rows = torch.arange(self.images.rows)
        self.batches = runs.Batches(rows, recipe.retrain_batch, self.seed, "retrain batches")
        self.steps = recipe.retrain_epochs * self.batches.per_epoch
        self.test_batches = torch.arange(len(self.images.ids)).split(TEST_BATCH)


def new_student(config: Config, problem: Problem, cell: str, device: torch.device) -> Student:
    """The same start for every arm of a seed that derived this cell."""
    own = config.retrain_on == "own"
    images = OwnImages(problem, config.cutout) if own else ImageNet(size=config.image_size)
    runs.seed_global(config.seed, "retrain network")
    network = build(describe(config, problem, cell, images.classes))
    return Student(network, images, config, config.seed, device)


def retrain_step(student: Student, t: int) -> Tensor:
    """One SGD step; the loss, detached. All draws are named by the step."""
    r, network, device = student.recipe, student.network, student.device
    epoch = t // student.batches.per_epoch
    cosine = runs.schedule("cosine", epoch, r.retrain_epochs)
    factor = r.retrain_decay**epoch if r.retrain_decay else cosine
    student.optimizer.param_groups[0]["lr"] = r.retrain_lr * factor
    stream = runs.stream(student.seed, "retrain augment", t, *processes.noise_names())
    x, y = student.images.training(processes.shard(student.batches(t)), stream)
    x, y = x.to(device), y.to(device)
    network.train()
    if isinstance(network, darts_space.DerivedNetwork):
        network.drop_path = r.drop_path * epoch / r.retrain_epochs
    runs.seed_global(student.seed, "drop path", t)
    out = network(x)
    logits, second = out if isinstance(out, tuple) else (out, None)
    loss = cross_entropy(logits, y, label_smoothing=r.smoothing)
    if second is not None:  # the auxiliary head
        loss = loss + r.auxiliary * cross_entropy(second, y, label_smoothing=r.smoothing)
    student.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    processes.mean_gradients(student.W)
    torch.nn.utils.clip_grad_norm_(student.W, CLIP)
    student.optimizer.step()
    return loss.detach()


@torch.no_grad()
def answers(student: Student, k: int) -> Tensor:
    """Test images of batch k -> (n, 3): label, prediction, whether the label is in the top 5."""
    student.network.eval()
    x, y = student.images.testing(student.test_batches[k])
    logits, y = student.network(x.to(student.device)).cpu(), y.cpu()
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return torch.stack([y, logits.argmax(1), (best == y[:, None]).any(1)], dim=1)


def predictions(student: Student, cell: str, rows: list[Tensor]) -> dict[str, np.ndarray]:
    """rows: all `answers`, in order."""
    label, prediction, top5 = torch.cat(rows).T.numpy()
    named = student.network.named_parameters()
    size = sum(
        p.numel() for name, p in named if "auxiliary" not in name
    )  # it is dropped after training
    columns = {"id": student.images.ids.numpy(), "label": label, "prediction": prediction}
    top = {"top5": top5.astype(bool)} if isinstance(student.images, ImageNet) else {}
    numbers = {"_parameters": np.array(size), "_skips": np.array(float(skips(cell)))}
    return {**columns, **top, **numbers}
