"""The pretrained encoder as a state dict that `timm` loads."""

from __future__ import annotations

from pathlib import Path

from shared import pretrained
from shared.runs import BadInput

from .config import Config
from .networks import Encoder

TEXT = """# Pretrained ViT encoder

Made by mlo_mae (arXiv 2402.18128), {made_from}, seed {seed}, {steps} level-1 steps. The terms of
the data apply to its use.

```python
import timm
from safetensors.torch import load_file
model = timm.models.VisionTransformer({arguments})
model.load_state_dict(load_file("encoder.safetensors"))
```
"""


def expected_shapes(E: Encoder) -> dict[str, tuple[int, ...]]:
    """Names and shapes of timm's `VisionTransformer(num_classes=0)` of this size, written out."""
    d, p, depth = E.width, E.p, range(len(E.blocks))
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, d), "pos_embed": (1, 1 + E.N, d)}
    maps: dict[str, tuple[int, ...]] = {"patch_embed.proj": (d, E.channels, p, p)}
    for k in depth:
        maps |= {f"blocks.{k}.attn.qkv": (3 * d, d), f"blocks.{k}.attn.proj": (d, d),
                 f"blocks.{k}.mlp.fc1": (4 * d, d), f"blocks.{k}.mlp.fc2": (d, 4 * d)}  # fmt: skip
    for name, shape in maps.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ["norm", *(f"blocks.{k}.norm{n}" for k in depth for n in (1, 2))]:
        shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    return shapes


def write_export(directory: Path, E: Encoder, config: Config, made_from: str = "") -> None:
    """encoder.safetensors and a README. made_from: what to say in it of a training that is no run
    of the protocol."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in E.state_dict().items()}
    save_file(state, directory / "encoder.safetensors")
    sizes = {"img_size": round(E.N**0.5) * E.p, "patch_size": E.p, "in_chans": E.channels}
    sizes |= {"embed_dim": E.width, "depth": len(E.blocks), "num_heads": config.heads}
    made_from = made_from or f"arm `{config.arm}`, data `{config.data}`, scale `{config.scale}`"
    arguments = ", ".join(f"{k}={v}" for k, v in {**sizes, "num_classes": 0}.items())
    text = TEXT.format(arguments=arguments, made_from=made_from, **vars(config))
    (directory / "README.md").write_text(text, encoding="utf-8")


def load_encoder(E: Encoder, directory: str) -> None:
    """Put the encoder that another run exported into E (transfer)."""
    path = Path(directory) / "export" / "encoder.safetensors"
    if not path.exists():
        raise BadInput(f"{path} is missing; train that run with --export")
    pretrained.load_state(E, path)
