"""What a run can be told, section by section. The comment above a field is its help (`--help`).

Defaults are those of the official CIFAR scripts unless the comment says otherwise. "Section" means
a section of docs/papers/mlo_mae.md, "row" a row of the table of differences in README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.protocol import BadInput, RunConfig

DataName = Literal[
    "mnist", "digits", "codes", "cifar10", "cifar100", "imagenet", "cub", "cars", "inat2019"
]
Hypergradient = Literal["none", "fd_forward", "jvp", "fd_darts", "exact", "official"]
Accident = Literal["attached_scores", "index_split", "finetune_std", "best_epoch"]


@dataclass(frozen=True)
class Data:
    """Which images, and which level sees which of them (section 6.1)."""

    # mnist, digits and codes are bundled; cub, cars and inat2019 serve the transfer of an encoder
    data: DataName = "digits"
    # training images with a label: all that levels 2 and 3, finetuning and probe see, while level 1
    # sees the others too; 0: all have one
    labels: int = 0
    # pixels a side of images from folders; other data have a fixed size (section 3.1)
    image_size: int = 224
    # share of the training images that is D_val, level 3's part (section 6.1: 20 %)
    val_share: float = 0.2
    # images of level 1: inner (D_tr, as in the paper) or all (D_val's too, without labels; row 3)
    pretrain_on: Literal["inner", "all"] = "inner"


@dataclass(frozen=True)
class Network:
    """Encoder E, decoder D, masking network T and head C (sections 3.1 and 6.2)."""

    # side of a patch in pixels; official: 2 for CIFAR, 16 for ImageNet
    patch: int = 2
    # width of the encoder; official: ViT-B
    width: int = 768
    # blocks of the encoder
    depth: int = 12
    # attention heads of the encoder
    heads: int = 12
    # width of the decoder
    decoder_width: int = 512
    # blocks of the decoder
    decoder_depth: int = 8
    # attention heads of the decoder
    decoder_heads: int = 16
    # T: mlp on the flattened image (paper) or patchwise, a small one for comparisons (section 8)
    T_arch: Literal["mlp", "patchwise"] = "mlp"
    # hidden units of T
    T_hidden: int = 512
    # feature of an image: cls (official) or the mean of its patches (row 16)
    pool: Literal["cls", "mean"] = "cls"
    # dropout of the head
    dropout: float = 0.1


@dataclass(frozen=True)
class Masking:
    """How patches are chosen and weighted, and how T learns (section 3)."""

    # share of patches that is masked
    mask_ratio: float = 0.75
    # reconstruct pixels normalised per patch
    norm_pix: bool = True
    # patches masked: learned (the highest scores, as in the paper) or random (plain MAE)
    mask: Literal["learned", "random"] = "random"
    # weight of a masked patch's error in L1: scores (s_j, paper) or one (plain MAE; row 2)
    weight: Literal["scores", "one"] = "one"
    # gradient of level 3: none (no levels 2 and 3), fd_forward (closed form, section 3.3), jvp (the
    # same with exact a_j), fd_darts, exact (double backward), official (rows 1, 6, 7 and 8)
    hypergrad: Hypergradient = "none"
    # path of the hypergradient through the head: unrolled (times the head's rate, exact for one
    # step), identity (times 1, official) or none (row 17)
    head_path: Literal["unrolled", "identity", "none"] = "unrolled"
    # keep level 2's graph for level 3: a forward pass less, and nearly twice the memory; fd_forward
    # and jvp with a head path use it
    keep_graph: bool = False
    # length of a finite difference: step = radius / |v|; less in small networks (row 18)
    radius: float = 0.01
    # divide scores by their batch mean over masked patches, gradient included; ours (section 8)
    normalise_scores: bool = False
    # noise on the ranking: gumbel explores; ours, for a comparison (section 8)
    score_noise: Literal["none", "gumbel"] = "none"
    # share of images with random masks; ours, for a comparison (section 8)
    mix_random: float = 0.0


@dataclass(frozen=True)
class Pretraining:
    """Length, batches and rates of the levels (sections 3.6, 6.2), and what baselines add to L1."""

    # level-1 steps; a cycle has k1 of them, k2 head steps and one mask step (row 10)
    steps: int = 125200
    # level-1 steps of a cycle
    k1: int = 2
    # head steps of a cycle
    k2: int = 1
    # images per step of all three levels
    batch: int = 128
    # peak rate of E and D
    lr: float = 1e-4
    # peak rate of the head C
    lr_head: float = 1e-3
    # peak rate of the masking network T
    lr_mask: float = 1e-3
    # weight decay of the matrices of E and D
    weight_decay: float = 1e-3
    # weight decay of C and T: AdamW's default, because the scripts' flags for it are never used
    outer_decay: float = 0.01
    # second beta of AdamW in all three levels
    beta2: float = 0.95
    # fp32, or bf16 for level 1 and finetuning on CUDA; levels 2 and 3 stay in fp32 (row 19)
    precision: Literal["fp32", "bf16"] = "fp32"
    # lambda of U-MAE's regulariser, U-MAE's default is 0.01 (section 5, row 21)
    uniformity: float = 0.0
    # lambda of the cross-entropy on D_tr's labels beside a plain MAE: control joint (section 5)
    joint_weight: float = 0.0
    # accidents of the official code that are switched on (rows 1, 5, 14 and 12)
    official: tuple[Accident, ...] = ()


@dataclass(frozen=True)
class Finetuning:
    """End-to-end training of the pretrained encoder with a fresh head (section 6.2)."""

    # labels of each finetuning: the first is the score; 0 means all
    finetune_labels: tuple[int, ...] = (0,)
    # finetunings of each kind, with other heads and batches; scores are their mean
    finetune_repeats: int = 1
    # passes over the labelled images
    finetune_epochs: int = 100
    # images per step; official: 64 (CIFAR-10) or 256 (CIFAR-100)
    finetune_batch: int = 64
    # peak rate of AdamW
    finetune_lr: float = 1e-4
    # weight decay of matrices
    finetune_decay: float = 5e-5
    # second beta of AdamW; official: 0.95 (CIFAR-10) or 0.999 (CIFAR-100)
    finetune_beta2: float = 0.95
    # rate of layer k: layer_decay^(depth + 1 - k); MAE's recipe for ImageNet: 0.75
    layer_decay: float = 1.0
    # epochs of linear warm-up; MAE's recipe: 5
    warmup_epochs: int = 0
    # label smoothing; MAE's recipe: 0.1
    smoothing: float = 0.0
    # probability that an image skips a branch of the last block, less in earlier ones; MAE's: 0.1
    drop_path: float = 0.0
    # side of the square cut out of an image; official: 16 for CIFAR-10 (row 13)
    cutout: int = 0
    # probability that a rectangle of an image is erased; MAE's recipe: 0.25
    erasing: float = 0.0
    # RandAugment of magnitude 9; needs timm (row 13)
    randaug: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What is measured beside the accuracy of finetuning; none of it moves what is trained."""

    # linear probe on the frozen encoder, with all training labels (row 20)
    probe: bool = True
    # linear classifier on raw pixels, for reference (section 9(a))
    pixels: bool = False
    # cycles that are replayed with T moved, for the claims on directions; 0: none
    direction_trials: int = 0
    # looks at the encoder during pretraining (least squares on its features, D_val)
    curve_points: int = 0
    # compare the hypergradient with double backward in the first and the last cycle
    self_checks: bool = True
    # write export/: the pretrained encoder as timm loads it
    export: bool = False


@dataclass(frozen=True)
class Config(RunConfig, Data, Network, Masking, Pretraining, Finetuning, Evaluation):
    """One run: which it is, and how it is made."""

    def __post_init__(self) -> None:
        if self.hypergrad != "none" and self.joint_weight:
            raise BadInput(
                f"joint_weight {self.joint_weight} trains the encoder on labels, which level 2 "
                f"never does; give --hypergrad none, or --joint_weight 0"
            )
        if self.hypergrad != "none" and (self.mask, self.weight) == ("random", "one"):
            raise BadInput(
                "mask random with weight one: T neither masks nor weighs, so its gradient is zero; "
                "give --mask learned or --weight scores, or --hypergrad none"
            )
        if self.keep_graph and (
            self.head_path == "none" or self.hypergrad not in ("fd_forward", "jvp")
        ):
            raise BadInput(
                f"keep_graph with hypergrad {self.hypergrad} and head_path {self.head_path}: "
                "nothing uses that graph; leave it out"
            )
        if self.labels and "index_split" in self.official:
            raise BadInput(
                f"labels {self.labels} are drawn, which index_split does not; give --labels 0"
            )
        if self.k1 < 1 or self.k2 < 1:
            raise BadInput(f"k1 {self.k1} and k2 {self.k2} must be at least 1")
        if self.steps % self.k1:
            raise BadInput(
                f"steps {self.steps} is not a multiple of k1 {self.k1}, so the last cycle would "
                f"be cut; give {self.steps - self.steps % self.k1}"
            )
        if not 0 < self.val_share < 1:
            raise BadInput(f"val_share {self.val_share} must lie between 0 and 1; the paper: 0.2")
        if not self.finetune_labels or len(set(self.finetune_labels)) < len(self.finetune_labels):
            raise BadInput(
                f"finetune_labels {list(self.finetune_labels)}: give one number or more, each "
                "once; the first gives the score, 0 means all labels"
            )
