"""Models for the tests of `hifa.multiview`: a tiny SyncDreamer, and a reduced one with weights made of names."""

import json
import zlib

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import nn

from hifa.multiview.architecture import (
    Architecture,
    ClipSize,
    VolumeSize,
    build_conditioner,
    build_depth_attention,
    build_models,
    build_scheduler,
    build_unet,
    build_volume,
)
from hifa.multiview.conversion import load_published, to_published
from hifa.multiview.pipeline_syncdreamer import SyncDreamerPipeline
from tests.helpers.paths import GOLDEN_FOLDER


LAYOUT = {
    key: tuple(shape)
    for key, shape in json.loads((GOLDEN_FOLDER / "syncdreamer_checkpoint_layout.json").read_text()).items()
}
# 32x32 pixels, 8x8 latents, two resolutions, and an up block without cross-attention.
TINY = Architecture(
    latent_size=8,
    unet_channels=(8, 16),
    cross_attention=(False, True),
    layers_per_block=1,
    attention_heads=2,
    cross_attention_dim=12,
    unet_norm_num_groups=4,
    vae_channels=(4, 8, 8),
    vae_layers=1,
    vae_norm_num_groups=4,
    clip=ClipSize(16, 32, 2, 2, 16, 8, 20),
    volume=VolumeSize(
        encoder_dim=4, time_dim=16, volume_size=8, volume_dims=(8, 16), frustum_depth=8, norm_num_groups=4
    ),
)


def tiny_models(seed: int = 0) -> dict[str, nn.Module]:
    """Build `TINY` with random weights everywhere, so that nothing is hidden behind a zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        models = build_models(TINY)
        for layer in models["depth_attention"].layers:
            nn.init.normal_(layer.conv2.weight, std=0.1)
    return {name: model.eval() for name, model in models.items()}


def tiny_pipeline(seed: int = 0) -> SyncDreamerPipeline:
    pipe = SyncDreamerPipeline(**tiny_models(seed), scheduler=build_scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def named_weights(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The rule of the reference numbers: random values seeded by the name of the tensor."""
    values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) >= 2:
        values = values / np.sqrt(np.prod(shape[1:]))
    else:
        values = 0.1 * values + (1 if key.endswith("weight") else 0)
    return torch.from_numpy(values.astype(np.float32))


def reference_models() -> dict[str, nn.Module]:
    """Build what the reference numbers were made with: a UNet of 32 channels instead of 320, all else full size."""
    architecture = Architecture(unet_channels=(32, 64, 128, 128))
    with init_empty_weights(include_buffers=False):
        models = {
            "unet": build_unet(architecture),
            "volume": build_volume(architecture),
            "depth_attention": build_depth_attention(architecture),
            "conditioner": build_conditioner(architecture),
        }
    # 1x1 convolutions are linear layers here; the published shapes decide the values.
    shapes = {
        key: tuple(tensor.shape) + (1,) * (len(LAYOUT[key]) - tensor.ndim)
        for key, tensor in to_published(models).items()
    }
    load_published(models, {key: named_weights(key, shape) for key, shape in shapes.items()})
    return {name: model.eval() for name, model in models.items()}
