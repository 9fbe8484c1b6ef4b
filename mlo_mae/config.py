"""What a run can be told."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol import RunConfig


@dataclass(frozen=True)
class Config(RunConfig):
    # digits, planted, cifar10, cifar100, imagenet, cub, cars or inat2019
    data: str = "digits"
    # pixels a side; only for folders of files, the other data have their own size
    image_size: int = 224
    # share of the training images that is D_val, level 3's part [P: 20 %]
    val_share: float = 0.2
    # level 1 sees inner (D_tr, as the paper) or all (also D_val's images without labels, as the official CIFAR code)
    pretrain_on: str = "inner"

    # which patches are masked: learned (the N - K highest scores) or random
    mask: str = "random"
    # weight of a masked patch's error in L1: scores (s_j) or one
    weight: str = "one"
    # level 3: none (no levels 2 and 3), fd_forward (closed form), fd_darts, jvp, exact, official
    hypergrad: str = "none"
    # path of the hypergradient through the head: identity (as official), unrolled (times lr_head), none
    head_path: str = "identity"
    # of the finite differences; step = radius / |v| [official 0.01; smaller in small networks, see README, row 18]
    radius: float = 0.01
    # divide scores by their batch mean over masked patches, gradient included
    normalise_scores: bool = False
    # none or gumbel: noise on the ranking, for a comparison
    score_noise: str = "none"
    # share of images with random masks, for a comparison
    mix_random: float = 0.0
    # lambda of U-MAE's regulariser [U-MAE's default 0.01]
    uniformity: float = 0.0
    # lambda of the cross-entropy on D_tr's labels beside a plain MAE
    joint_weight: float = 0.0
    # accidents of the official code: attached_scores, index_split, finetune_std, best_epoch
    official: tuple[str, ...] = ()

    # side of a patch in pixels
    patch: int = 2
    # encoder: width, blocks, heads
    width: int = 768
    depth: int = 12
    heads: int = 12
    # decoder: width, blocks, heads
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    # masking network: mlp (the paper's, on the flattened image) or patchwise
    T_arch: str = "mlp"
    T_hidden: int = 512
    # share of patches that is masked
    mask_ratio: float = 0.75
    # reconstruct pixels normalised per patch
    norm_pix: bool = True
    # feature of levels 2 and 3, finetuning and probe: cls or mean
    pool: str = "cls"
    # of the head
    dropout: float = 0.1

    # level-1 steps, with k1 of them, k2 head steps and one mask step in a cycle [official: 2, 1, 1]
    steps: int = 125200
    k1: int = 2
    k2: int = 1
    # images per step, all three levels
    batch: int = 128
    # AdamW's rates of E and D, of the head C, of the masking network T
    lr: float = 1e-4
    lr_head: float = 1e-3
    lr_mask: float = 1e-3
    # weight decay of E and D (matrices), and of C and T [official]
    weight_decay: float = 1e-3
    outer_decay: float = 0.01
    beta2: float = 0.95
    # fp32, or bf16 for level 1 and finetuning on CUDA; levels 2 and 3 stay in fp32
    precision: str = "fp32"

    # labels of each finetuning: the first is the score; 0 means all
    finetune_labels: tuple[int, ...] = (0,)
    finetune_epochs: int = 100
    finetune_batch: int = 64
    finetune_lr: float = 1e-4
    finetune_decay: float = 5e-5
    finetune_beta2: float = 0.95
    # rate of layer k: layer_decay^(depth + 1 - k)
    layer_decay: float = 1.0
    warmup_epochs: int = 0
    # regularisation of finetuning
    smoothing: float = 0.0
    drop_path: float = 0.0
    cutout: int = 0
    erasing: float = 0.0
    randaug: bool = False
    # linear probe on the frozen encoder, with all training labels
    probe: bool = True
    # linear classifier on raw pixels, for reference
    pixels: bool = False

    # cycles of the run that are replayed with T moved (claim on the direction of descent); 0: none
    descent_trials: int = 0
    # norm of that move; about that of one AdamW step of T at scale cpu
    descent_step: float = 0.2
    # looks at the encoder during pretraining (least squares on its features, D_val)
    curve_points: int = 0
    # compare the hypergradient with double backward in the first and the last cycle
    self_checks: bool = True
    # write export/: the pretrained encoder as timm loads it
    export: bool = False
