"""What a run of dasgm can be told, in sections.

Help names its source: [abstract] of the paper; [DARTS], [P-DARTS], [PC-DARTS], [NB201] the public
code of these methods; [decided] by this project, because nothing was read (docs/papers/dasgm.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.protocol import BadInput, RunConfig


@dataclass(frozen=True)
class Data:
    """The images of a search and how they are shared out."""

    # images of the search
    data: Literal["digits", "cifar10", "cifar100"] = "digits"
    # 0: all; else the first n images of each half and of the test set (rehearsals)
    n: int = 0
    # halves of the training images for W and A: stratified by the seed [decided], or darts: first
    # and second half [DARTS]
    split: Literal["stratified", "darts"] = "stratified"
    # images of A's half that level 3 may see, stratified by the seed, the fewer among the more; the
    # rest of it is set aside, so that W learns the same whatever their number; 0: all [decided]
    held_out: int = 0


@dataclass(frozen=True)
class Levels:
    """What the three levels see, and how the architecture is differentiated."""

    # darts: level 3 on held-out images; static, joint, weighted, adversarial: on generated ones
    # (joint is what the abstract states [abstract, inferred], weighted and adversarial are
    # interpretations [decided]); train_as_val, aug_val: controls; random: no search; generator: the
    # stage that warm-starts the generator
    job: Literal[
        "darts",
        "static",
        "joint",
        "weighted",
        "adversarial",
        "train_as_val",
        "aug_val",
        "random",
        "generator",
    ] = "darts"
    # share of the generated loss in level 3; 1: the abstract's reading [abstract], below 1: `mixed`
    # [decided]
    lam: float = 1.0
    # adversarial: how much the generator hunts for the classifier's weakness, at most 0.1 [decided]
    eta: float = 0.1
    # of generated images: own; controls: permuted within the batch, or classes: each class has the
    # images of another one throughout the search [decided]
    labels: Literal["own", "permuted", "classes"] = "own"
    # W also learns from D_val, which lam = 1 leaves free; off, so that all arms have equal data
    # [decided]
    full_data_weights: bool = False
    # 1: first order, xi = 0; 2: second order, xi = the rate of W [DARTS offers both]
    order: Literal[1, 2] = 1
    # of the mixed second derivative: exact, by double backward [decided]; finite_difference [DARTS]
    estimator: Literal["exact", "finite_difference"] = "exact"

    @property
    def generated(self) -> bool:
        """Whether level 3 sees generated images."""
        return self.lam > 0 and self.job in ("static", "joint", "weighted", "adversarial")


@dataclass(frozen=True)
class Space:
    """The cells that are searched, and the relaxed network around them."""

    # nasbench: the cell of NAS-Bench-201 [NB201]; darts: DARTS' cells [DARTS]; pdarts, pcdarts: the
    # same cells, searched in three stages [P-DARTS] or on a quarter of the channels [PC-DARTS]
    space: Literal["nasbench", "darts", "pdarts", "pcdarts"] = "nasbench"
    # nodes of a nasbench cell: 4 [NB201]; 3 in the digits test bed
    nodes: int = 4
    # cells per stage N of a nasbench network
    cells_per_stage: int = 1
    # cells of a darts or pcdarts network while searching [DARTS]
    layers: int = 8
    # cells in the three stages of pdarts [P-DARTS]
    pdarts_layers: tuple[int, ...] = (5, 11, 17)
    # initial channels [DARTS, NB201]
    channels: int = 16
    # `none` may not be derived in nasbench; the benchmark's own rule allows it [NB201]
    exclude_none: bool = False
    # batch norm without affine part after the average pooling of the relaxed nasbench network, as
    # in DARTS' space [DARTS]; the derived network has none; the benchmark has none at all [NB201]
    pool_norm: bool = False
    # most skips in the normal cell [P-DARTS]; -1: no limit
    most_skips: int = -1


@dataclass(frozen=True)
class Search:
    """Levels 1 and 3: how W and A are trained."""

    # passes over D_tr, per stage [DARTS: 50]
    epochs: int = 50
    # of them without architecture steps [DARTS: 0, P-DARTS: 10, PC-DARTS: 15]
    warmup: int = 0
    # images of each level in a step [DARTS]
    batch: int = 64
    # first rate of W, whose SGD has momentum 0.9; cosine to lr_min [DARTS]
    lr: float = 0.025
    # last rate of W [DARTS]
    lr_min: float = 0.001
    # Nesterov's momentum for W [NB201]; plain [DARTS]
    nesterov: bool = False
    # of W [DARTS]
    weight_decay: float = 3e-4
    # rate of A, whose Adam has betas (0.5, 0.999) and weight decay 1e-3 [DARTS]
    arch_lr: float = 3e-4
    # largest norm of the gradient of A: 5 [P-DARTS]; 0: any [DARTS]
    arch_clip: float = 0.0


@dataclass(frozen=True)
class Generator:
    """Level 2: the class-conditional generator and its warm start."""

    # mlp for digits, residual for photographs, dcgan after a public prototype by others [decided]
    gan: Literal["mlp", "residual", "dcgan"] = "residual"
    # warm start K0: steps of each of phi and theta before the search [decided]
    gan_steps: int = 6000
    # images of level 2 in a step [decided]
    gan_batch: int = 128
    # rate of theta (Adam), also xi_theta of the adversarial job's second order [decided]
    gan_lr: float = 1e-4
    # rate of phi (Adam) [decided]
    gan_lr_D: float = 4e-4
    # channels or units of both networks; 0: the kind's own [decided]
    gan_width: int = 0
    # steps of the classifier that reads labels of generated images [decided]
    reference_steps: int = 2000
    # stop below 3 times chance [decided]; off only in rehearsals, where nothing is learned
    fidelity_gate: bool = True


@dataclass(frozen=True)
class Retraining:
    """How the derived network is trained from scratch; defaults are DARTS' for CIFAR."""

    # passes over D_tr and D_val [DARTS: 600; ImageNet: 250]
    retrain_epochs: int = 600
    # images in a step [DARTS: 96; P-DARTS and ImageNet: 128]
    retrain_batch: int = 96
    # rate of SGD with momentum 0.9, cosine to 0 unless retrain_decay [DARTS]
    retrain_lr: float = 0.025
    # factor of the rate per epoch [DARTS, ImageNet: 0.97]; 0: cosine
    retrain_decay: float = 0.0
    # Nesterov's momentum [NB201]; plain [DARTS]
    retrain_nesterov: bool = False
    # of all weights [DARTS]
    retrain_weight_decay: float = 3e-4
    # side of the square that is cut out of a training image [DARTS]; 0: none
    cutout: int = 16
    # weight of the auxiliary head's loss [DARTS]; 0: no such head
    auxiliary: float = 0.4
    # probability to drop a path in the last epoch, linear from 0 [DARTS: 0.2; P-, PC-DARTS: 0.3]
    drop_path: float = 0.2
    # of labels [DARTS, ImageNet: 0.1]
    smoothing: float = 0.0


@dataclass(frozen=True)
class Judge:
    """What says how good the cell is."""

    # table: looked up among cells trained before; retrain: trained from scratch on real images
    judge: Literal["table", "retrain"] = "table"
    # images of the retraining: the search's own, or imagenet (mobile setting) [DARTS]
    retrain_on: Literal["own", "imagenet"] = "own"
    # cells of the derived network in DARTS' space [DARTS: 20; ImageNet: 14]
    retrain_layers: int = 20
    # its initial channels [DARTS: 36; ImageNet: 48]
    retrain_channels: int = 36
    # side of an ImageNet image [DARTS]
    image_size: int = 224


@dataclass(frozen=True)
class Config(RunConfig, Data, Levels, Space, Search, Generator, Judge, Retraining):
    """One run: a generator that is warm-started, or a search and what its cell is worth."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant together, before anything is loaded."""
        if not 0 <= self.lam <= 1:
            raise BadInput(f"lam {self.lam} is outside [0, 1]: it is a share; take 1 or --lam 0.5")
        if not 0 < self.eta <= 0.1:
            raise BadInput(
                f"eta {self.eta} is outside (0, 0.1]: above, generated images leave their class;"
                " for 0 take --job joint"
            )
        if self.job == "adversarial" and self.labels != "own":
            raise BadInput(
                f"job adversarial with labels {self.labels}: the generator would hunt for noise;"
                " take --job joint"
            )
        if self.judge == "table" and self.space != "nasbench":
            raise BadInput(f"there is no table of the space {self.space}; take --judge retrain")
        if self.gan == "mlp" and self.data != "digits":
            raise BadInput(
                f"gan mlp is for digits; for {self.data} take --gan residual or --gan dcgan"
            )
