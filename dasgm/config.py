"""What a run can be told."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol import RunConfig


@dataclass(frozen=True)
class Config(RunConfig):
    # digits, cifar10 or cifar100: images of the search
    data: str = "digits"
    # 0: all; else the first n images of each half and of the test set (rehearsals)
    n: int = 0
    # halves of the training images for W and A: stratified by the seed [decided], or darts: first and second half [DARTS]
    split: str = "stratified"
    # darts (level 3 on held-out images), static, joint, weighted, adversarial (on generated images: joint is what the
    # abstract states [abstract, inferred], weighted and adversarial are interpretations [decided]), train_as_val, aug_val,
    # random (no search), generator (stage: the GAN alone)
    variant: str = "joint"
    # share of the generated loss in level 3; 1: the abstract's reading [abstract], below 1: `mixed` [decided]
    lam: float = 1.0
    # adversarial: how much the generator hunts for the classifier's weakness, at most 0.1 [decided]
    eta: float = 0.0
    # of generated images: own, or permuted within the batch (control) [decided]
    labels: str = "own"
    # weighted: real images whose losses set the class weights, validation or train [decided]
    omega_from: str = "validation"
    # W also learns from D_val, which lam = 1 leaves free; off, so that all arms have equal data [decided]
    full_data_weights: bool = False
    # what the generator learns: train (D_tr), or trainval, extra information [decided]
    gan_data: str = "train"

    # nasbench (NAS-Bench-201 operations) or darts
    space: str = "nasbench"
    # search of the darts space: darts, pdarts, pcdarts
    base: str = "darts"
    # 1: first order, xi = 0; 2: second order, xi = the rate of W [DARTS offers both]
    order: int = 1
    # of the mixed second derivative: exact (double backward) [decided], or finite_difference [DARTS]
    estimator: str = "exact"
    # nodes of a nasbench cell: 4 [NB201]; 3 in the digits test bed
    nodes: int = 4
    # cells per stage N of a nasbench network
    cells_per_stage: int = 1
    # cells of a darts network while searching [DARTS]
    layers: int = 8
    # initial channels [DARTS, NB201]
    channels: int = 16
    # PC-DARTS: 1 / partial of the channels go through the mixed operation [PC-DARTS: 4]
    partial: int = 1
    # `none` may not be derived; the benchmark's own rule allows it [NB201]
    exclude_none: bool = False
    # P-DARTS: most skips in the normal cell; -1: no limit
    most_skips: int = -1
    # cells of the three stages [P-DARTS]
    pdarts_layers: tuple[int, ...] = (5, 11, 17)
    # operations per edge in the three stages [P-DARTS]
    pdarts_operations: tuple[int, ...] = (8, 5, 3)
    # dropout on skips in the three stages [P-DARTS, its README's command]
    pdarts_skip_dropout: tuple[float, ...] = (0.1, 0.4, 0.7)

    # passes over D_tr, per stage [DARTS: 50]
    epochs: int = 50
    # of them without architecture steps [DARTS: 0, P-DARTS: 10, PC-DARTS: 15]
    warmup: int = 0
    batch: int = 64
    # W: SGD, cosine from lr to lr_min [DARTS]
    lr: float = 0.025
    lr_min: float = 0.001
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 3e-4
    # gradient norm of W [DARTS]
    clip: float = 5.0
    # A: Adam, betas (0.5, 0.999) [DARTS]
    arch_lr: float = 3e-4
    arch_weight_decay: float = 1e-3
    # gradient norm of A; 0: none [DARTS], 5 [P-DARTS]
    arch_clip: float = 0.0

    # mlp, residual or dcgan (option after a public prototype by other people) [decided]
    gan: str = "residual"
    # warm start K0: steps of each of phi and theta before the search [decided]
    gan_steps: int = 6000
    gan_batch: int = 128
    # Adam [decided]
    gan_lr: float = 1e-4
    gan_lr_D: float = 4e-4
    # 0: the kind's own
    gan_width: int = 0
    # steps of the classifier that reads labels of generated images
    reference_steps: int = 2000
    # stop below 3 times chance; off only in rehearsals, where nothing is learned
    fidelity_gate: bool = True

    # how a cell is scored: table (looked up) or retrain (from scratch on real images)
    judge: str = "table"
    # retrain on the search's images, or imagenet (mobile setting)
    retrain_on: str = "own"
    retrain_layers: int = 20
    retrain_channels: int = 36
    retrain_epochs: int = 600
    retrain_batch: int = 96
    retrain_lr: float = 0.025
    # factor of the rate per epoch; 0: cosine
    retrain_decay: float = 0.0
    retrain_nesterov: bool = False
    retrain_weight_decay: float = 3e-4
    cutout: int = 16
    auxiliary: float = 0.4
    drop_path: float = 0.2
    smoothing: float = 0.0
    # side of an ImageNet image
    image_size: int = 224
