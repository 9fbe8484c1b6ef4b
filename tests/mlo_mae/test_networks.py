"""Encoder, decoder, masks, and the layout of the export."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_levels import TINY, levels, networks, point, stream

from mlo_mae import analysis, baselines
from mlo_mae.export import expected_shapes, load_encoder, write_export
from mlo_mae.method import First, weighted_loss, weights
from mlo_mae.networks import Encoder, Mask, PatchMaskNet, initialise, patchify, rank, visible
from shared.runs import BadInput


def unpatchify(patches: Tensor, p: int, channels: int) -> Tensor:
    """(B, N, C p p) -> (B, C, H, W), for square images."""
    B, N, _ = patches.shape
    side = math.isqrt(N)
    x = patches.reshape(B, side, side, channels, p, p).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(B, channels, side * p, side * p)


# --- patches and masks ----------------------------------------------------------------------------


def test_shapes_and_masks():
    nets = networks()
    at = point(nets)
    assert nets.E.embed(at.x).shape == (6, 16, 16)
    assert nets.E(at.x, at.mask.keep).shape == (6, 1 + 4, 16)
    assert (at.mask.m.sum(1) == 12).all()
    assert (at.mask.restore.sort(1).values == torch.arange(16)).all()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(unpatchify(patchify(x, 4), 4, 3), x)
    # the embedding of a patch is the convolution that timm applies
    convolved = nets.E.patch_embed.proj(at.x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(nets.E.patch_embed(at.x), convolved)


@pytest.mark.parametrize("ratio", [0.0, 0.95, 1.0])
def test_a_ratio_that_leaves_nothing_on_one_side_is_refused(ratio):
    with pytest.raises(ValueError, match="mask ratio"):
        visible(16, ratio)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="divide"):
        patchify(torch.zeros(1, 1, 9, 9), 2)
    with pytest.raises(ValueError, match="divide"):
        Encoder(9, 1, 2, 16, 1, 2)


def test_the_highest_scores_are_masked():
    s = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.1, 0.2, 0.3, 0.4]])
    assert rank(s, 2).m.tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]
    same = [rank(torch.full((3, 8), 0.5), 3) for _ in range(2)]
    assert torch.equal(same[0].m, same[1].m) and same[0].m[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_weight_one_is_the_plain_loss_bit_for_bit():
    nets = networks(dtype=torch.float32)
    at = point(nets)
    errors = nets.errors(at.x, at.mask)
    plain = (errors * at.mask.m).sum() / at.mask.m.sum()
    assert torch.equal(weighted_loss(errors, at.mask.m, torch.ones_like(errors)), plain)
    assert torch.equal(weighted_loss(errors, at.mask.m), plain)


def test_masked_pixels_reach_the_loss_but_not_the_encoder():
    nets = networks()
    at = point(nets)
    patches = patchify(at.x, 2) + 3.0 * at.mask.m[..., None]
    changed = unpatchify(patches, 2, 1)
    assert torch.equal(nets.E(at.x, at.mask.keep), nets.E(changed, at.mask.keep))
    before, after = nets.errors(at.x, at.mask), nets.errors(changed, at.mask)
    assert (before != after)[at.mask.m.bool()].all()
    assert torch.equal(before[~at.mask.m.bool()], after[~at.mask.m.bool()])


def test_cls_does_not_depend_on_the_order_of_tokens():
    nets = networks(dtype=torch.float32)
    at = point(nets)
    order = torch.rand(6, 16, generator=stream(3)).argsort(1)
    torch.testing.assert_close(nets.E(at.x)[:, 0], nets.E(at.x, order)[:, 0], atol=1e-5, rtol=1e-5)


def test_normalised_targets():
    nets = networks(norm_pix=True)
    at = point(nets)
    values = patchify(at.x, 2)
    variance = values.var(-1, unbiased=True, keepdim=True)
    target = (values - values.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt()
    predicted = nets.D(nets.E(at.x, at.mask.keep), at.mask.restore)
    expected = (predicted - target).square().mean(-1)
    torch.testing.assert_close(nets.errors(at.x, at.mask), expected)


def test_nothing_is_masked_at_evaluation_time():
    nets = networks(dtype=torch.float32)
    x = torch.randn(5, 1, 8, 8, generator=stream())

    class FiveImages:
        def batch(self, rows):
            return x[rows]

    z = analysis.features(nets, FiveImages(), np.arange(5))
    torch.testing.assert_close(z, nets.E(x)[:, 0].detach())


# --- what replaces or adds parts, for comparisons -------------------------------------------------


def test_scores_can_be_normalised_noisy_and_patchwise():
    nets = networks()
    at = point(nets)
    s = nets.T(at.e)
    w = weights(s, at.mask.m, normalise=True)
    assert ((w * at.mask.m).sum() / at.mask.m.sum()).item() == pytest.approx(1.0)
    noisy = [rank(baselines.gumbel(s, stream(k)), 4).m for k in (1, 2)]
    assert not torch.equal(*noisy)
    untouched = baselines.mixed(s, 0.0, stream())
    assert torch.equal(untouched, s) and not torch.equal(baselines.mixed(s, 1.0, stream()), s)
    small = PatchMaskNet(16, 8).double()(at.e)
    assert small.shape == (6, 16) and ((small > 0) & (small < 1)).all()


def test_statistics_tell_one_mask_for_all_from_many():
    nets = networks()
    at = point(nets)
    s = nets.T(at.e)
    m = at.mask.m[:1].expand(6, -1)
    facts = analysis.statistics(First(at.x, s, at.mask))
    mask = Mask(at.mask.keep, at.mask.restore, m)
    one = analysis.statistics(First(at.x, s[:1].expand(6, -1), mask))
    assert one["mask_overlap"] == pytest.approx(1.0)
    assert one["mask_entropy"] < 1e-6 <= facts["mask_entropy"] + 1e-6
    assert one["spread_images"] < 1e-12 < facts["spread_images"]


def test_uniformity_is_zero_for_orthogonal_and_one_for_equal_features():
    assert baselines.uniformity(torch.eye(4)).item() == 0.0
    assert baselines.uniformity(torch.ones(4, 3)).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="compares images"):
        baselines.uniformity(torch.ones(1, 3))


def test_a_bare_arm_has_neither_T_nor_C():
    bare = levels(replace(TINY, mask="random", weight="one", hypergrad="none"))
    sizes = bare.nets.sizes()
    assert sizes["T"] == sizes["C"] == 0 < min(sizes["E"], sizes["D"])
    assert set(bare.optimizers) == {"first"}


# --- export ---------------------------------------------------------------------------------------


def test_export_has_timms_names_and_shapes(tmp_path):
    from safetensors.torch import load_file

    E = Encoder(16, 3, 4, 16, 2, 2)
    write_export(tmp_path / "export", E, replace(TINY, heads=2))
    state = load_file(tmp_path / "export" / "encoder.safetensors")
    assert {k: tuple(v.shape) for k, v in state.items()} == expected_shapes(E)
    names = ("patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "blocks.0.mlp.fc2.bias")
    assert set(state) >= {"cls_token", "pos_embed", "norm.weight", *names}
    text = (tmp_path / "export" / "README.md").read_text()
    assert "img_size=16, patch_size=4, in_chans=3, embed_dim=16, depth=2, num_heads=2" in text
    other = Encoder(16, 3, 4, 16, 2, 2)
    load_encoder(other, str(tmp_path))
    assert all(torch.equal(p, q) for p, q in zip(E.parameters(), other.parameters()))
    with pytest.raises(BadInput, match="--export"):
        load_encoder(other, str(tmp_path / "export"))


def test_timm_loads_the_export_and_computes_the_same():
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # absent, or a torchvision unfit for this torch
        pytest.skip(f"timm cannot be imported: {type(error).__name__}")
    E = Encoder(16, 3, 4, 16, 2, 2)
    initialise(E, stream())
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    theirs = timm.models.VisionTransformer(**sizes, num_classes=0)
    theirs.load_state_dict(E.state_dict())
    x = torch.randn(2, 3, 16, 16, generator=stream())
    torch.testing.assert_close(theirs.eval()(x), E.features(x), atol=1e-5, rtol=1e-5)
