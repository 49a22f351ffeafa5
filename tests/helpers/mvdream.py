"""A small MVDream with the weights of the golden numbers, and a checkpoint file of it."""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hifa import HiFAConfig
from hifa.multiview.mvdream import MVDreamArchitecture, sources, to_published, unused_keys
from tests.helpers.paths import GOLDEN_FOLDER


GOLDEN = np.load(GOLDEN_FOLDER / "mvdream.npz")
REDUCED = MVDreamArchitecture(
    widths=(32, 64, 128, 128), heads=(2, 4, 8, 8), vae_widths=(32, 32, 32, 32), text_width=64, text_heads=4,
    text_layers=2, vocabulary=100, sample_size=16,
)  # fmt: skip


def rnd(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def named_weights(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the weights that follow from the name of a tensor in the published file."""
    random = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) >= 2:
        random /= np.sqrt(np.prod(shape[1:]))
    elif key.endswith("weight"):
        random = 1 + 0.1 * random
    else:
        random = 0.1 * random
    return random.astype(np.float32)


@torch.no_grad()
def weights_by_name(models: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Give models the weights that follow from the published names of their tensors."""
    for part, table in sources(models).items():
        for name, parameter in models[part].state_dict().items():
            source = table[name]
            shape = tuple(parameter.shape)
            whole = shape if source.part is None else (3 * shape[0], *shape[1:])
            values = torch.from_numpy(named_weights(source.key, whole))
            parameter.copy_(values if source.part is None else values.chunk(3)[source.part])
    return {name: model.eval() for name, model in models.items()}


TINY = MVDreamArchitecture(
    widths=(32, 64), heads=(2, 4), vae_widths=(32, 32), text_width=32, text_heads=2, text_layers=2, vocabulary=100,
    sample_size=8,
)  # fmt: skip


def checkpoint_file(folder: Path, models: dict[str, nn.Module]) -> Path:
    """Write a file as MVDream is published: a bare state dict, with the tensors that nobody needs."""
    tensors = to_published(models) | {key: torch.zeros(1) for key in unused_keys(models)}
    torch.save(tensors, path := folder / "sd-v2.1-base-4view.pt")
    return path


def small_config() -> HiFAConfig:
    return HiFAConfig.multiview_preview(
        num_inference_steps=3, render_size=16, start_render_size=16, n_coarse=8, n_fine=4, density_grid=0,
        max_resolution=32, levels=2, base_resolution=8, log2_hashmap_size=10, hidden_dim=8, denoising_stride=1.0,
    )  # fmt: skip
