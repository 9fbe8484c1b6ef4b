"""The pretrained encoder as a state dict that `timm` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import Config
from .networks import Encoder


def expected_shapes(E: Encoder) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `timm.models.VisionTransformer(num_classes=0)` of the same size, written out."""
    d, p, c = E.width, E.p, E.channels
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + E.N, d),
        "patch_embed.proj.weight": (d, c, p, p),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    for i in range(len(E.blocks)):
        for name, out, into in (
            ("attn.qkv", 3 * d, d),
            ("attn.proj", d, d),
            ("mlp.fc1", 4 * d, d),
            ("mlp.fc2", d, 4 * d),
        ):
            shapes[f"blocks.{i}.{name}.weight"], shapes[f"blocks.{i}.{name}.bias"] = (
                (out, into),
                (out,),
            )
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{i}.{name}.weight"] = shapes[f"blocks.{i}.{name}.bias"] = (d,)
    return shapes


def write_export(directory: Path, E: Encoder, config: Config) -> None:
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in E.state_dict().items()}
    save_file(state, directory / "encoder.safetensors")
    side = round(E.N**0.5) * E.p
    arguments = (
        f"img_size={side}, patch_size={E.p}, in_chans={E.channels}, embed_dim={E.width}, depth={len(E.blocks)}, "
        f"num_heads={config.heads}, num_classes=0"
    )
    (directory / "README.md").write_text(
        f"# Pretrained ViT encoder\n\nMade by arm `{config.arm}` of mlo_mae (arXiv 2402.18128), data `{config.data}`, scale "
        f"`{config.scale}`, seed {config.seed}, {config.steps} level-1 steps. The terms of the data apply to its use.\n\n"
        "```python\nimport timm\nfrom safetensors.torch import load_file\n"
        f"model = timm.models.VisionTransformer({arguments})\n"
        'model.load_state_dict(load_file("encoder.safetensors"))\n```\n'
    )
