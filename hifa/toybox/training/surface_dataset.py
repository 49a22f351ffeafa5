"""Training images of the surface model: renders with normals and disparity, and estimates of the prior.

    python -m hifa.toybox.training.surface_dataset --output-dir toybox-training/surface/train --scenes 6000

There are two kinds of images, because in score distillation the model receives estimates of the prior, not renders:

- Renders on black with a mask. Every batch adds a new background, blur and noise.
- Estimates. A render on a gray background is encoded, noised to a timestep, denoised in one step with its caption and
  decoded, as in a step of score distillation. At timestep 0 the estimate is a round trip through the autoencoder.

The command renders only. `training.surface` creates the estimates. Existing shards are kept, so an interrupted run
resumes.
"""

import argparse
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...cameras import Camera, camera_to_world
from ...storage.files import atomically
from .. import world
from ..render import render
from .dataset import labels_of, scene_of
from .shards import load_shards, make_shards


SIZE = 64  # pixels
COMMAND = "python -m hifa.toybox.training.surface_dataset"
FIRST_SEED = 20_000_000
# These ranges contain the cameras of score distillation with Toybox and of the multi-view ring.
RADIUS, FOV_DEG, ELEVATION_DEG = (2.3, 2.7), (38.0, 50.0), (-15.0, 80.0)
GRAY = (0.2, 0.7)
ESTIMATE_BATCH, GUIDANCE_SCALE = 16, 4.0
ROUND_TRIPS = 0.25  # share of the estimates at timestep 0
T_MIN, T_MAX = 20, 980


@dataclass(frozen=True)
class Surfaces:
    """Training set in memory: n renders on black with their ground truth.

    Args:
        color: `(n, 64, 64, 3)` uint8.
        mask: `(n, 64, 64)` uint8, 255 where the object covers the whole pixel.
        normals: `(n, 64, 64, 3)` int8, 127 times the unit normal in camera axes (x right, y down, z forward).
        disparity: `(n, 64, 64)` float16, see `disparity_of`.
        labels: `(n, 5)` int16, see `dataset.Pictures`.
    """

    color: np.ndarray
    mask: np.ndarray
    normals: np.ndarray
    disparity: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.mask)

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """Concatenate several sets of renders."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def disparity_of(depth: np.ndarray, mask: np.ndarray, radius: float) -> np.ndarray:
    """Return 1 / depth, normalized to 1 and 0 at the near and far ends of the ball that contains every scene.

    Pixels without an object are 0, too.

    Args:
        depth: `(H, W)` distance along the ray, world units.
        mask: `(H, W)` share of the pixel that is covered.
        radius: Distance of the camera from the origin.
    """
    near, far = 1 / (radius - world.RADIUS), 1 / (radius + world.RADIUS)
    return np.where(mask > 0, (1 / np.maximum(depth, 1e-3) - far) / (near - far), 0) * mask


def render_surfaces(seed: int, views: int) -> Surfaces:
    """Render views of the scene that `seed` determines."""
    rng = np.random.default_rng(seed)
    scene, low_high = world.sample_scene(rng), np.sin(np.radians(ELEVATION_DEG))
    rows = []
    for _ in range(views):
        elevation = float(np.degrees(np.arcsin(rng.uniform(*low_high))))
        camera = Camera(rng.uniform(0, 360), elevation, rng.uniform(*RADIUS), rng.uniform(*FOV_DEG))
        pose = camera_to_world(camera).numpy()
        picture = render(scene.shape, pose, SIZE, camera.fov_deg, (0.0, 0.0, 0.0))
        rows.append((
            (picture.color * 255).round().astype(np.uint8),
            (picture.mask * 255).round().astype(np.uint8),
            (picture.normals @ pose[:, :3] * 127).round().astype(np.int8),
            disparity_of(picture.depth, picture.mask, camera.radius).astype(np.float16),
            np.array((*labels_of(scene), camera.view), np.int16),
        ))  # fmt: skip
    return Surfaces(*(np.stack(values) for values in zip(*rows, strict=True)))


def make_renders(folder: Path, scenes: int, views: int, first_seed: int = FIRST_SEED) -> None:
    """Render `scenes` scenes with `views` views each."""
    make_shards(folder, scenes, partial(surface_arrays, views=views), first_seed)


def surface_arrays(seed: int, views: int) -> dict[str, np.ndarray]:
    """Render views of the scene that `seed` determines; return the fields of `Surfaces`."""
    return vars(render_surfaces(seed, views))


def load_renders(folder: Path) -> Surfaces:
    """Load all renders of a folder.

    Raises:
        FileNotFoundError: If the folder has no renders.
    """
    return Surfaces(**load_shards(folder, COMMAND))


@dataclass(frozen=True)
class Estimates:
    """Estimates of the prior for the first n renders of a training set.

    Args:
        color: `(n, 64, 64, 3)` uint8, including the gray background.
        timestep: `(n,)` int16; 0 for a round trip through the autoencoder.
    """

    color: np.ndarray
    timestep: np.ndarray


def gray_backgrounds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw slightly tinted grays `(count, 3)` in [0, 1]."""
    gray = rng.uniform(*GRAY, (count, 1)) + rng.uniform(-0.05, 0.05, (count, 3))
    return gray.clip(0, 1).astype(np.float32)


def draw_timesteps(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw timesteps distributed as in square-root annealing (HiFA section 4.1). A share `ROUND_TRIPS` is 0."""
    annealed = np.round(T_MAX - (T_MAX - T_MIN) * np.sqrt(rng.random(count)))
    return np.where(rng.random(count) < ROUND_TRIPS, 0, annealed).astype(np.int16)


@torch.no_grad()
def estimate_once(pipe, pictures: Tensor, prompts: list[str], timesteps: np.ndarray, rng) -> Tensor:
    """Return one-step estimates x_hat of images `(n, 3, 64, 64)` in [0, 1], each with its own prompt and timestep."""
    prior = pipe.make_prior()
    z = prior.encode(pictures)
    noise = torch.from_numpy(rng.standard_normal(z.shape).astype(np.float32))
    alpha_cumprod = prior.alphas_cumprod[torch.from_numpy(timesteps).long()][:, None, None, None]
    noisy = alpha_cumprod.sqrt() * z + (1 - alpha_cumprod).sqrt() * noise
    tokens = pipe.tokenizer([""] * len(prompts) + prompts, padding="max_length", return_tensors="pt")
    embeds = pipe.text_encoder(tokens.input_ids)[0]
    steps = torch.from_numpy(timesteps).long().repeat(2)
    negative, positive = prior.unet(torch.cat([noisy, noisy]), steps, embeds, return_dict=False)[0].chunk(2)
    v = negative + GUIDANCE_SCALE * (positive - negative)
    z_hat = alpha_cumprod.sqrt() * noisy - (1 - alpha_cumprod).sqrt() * v
    keep = torch.from_numpy(timesteps == 0)[:, None, None, None]
    return prior.decode(torch.where(keep, z, z_hat))


def load_estimates(path: Path, renders: Surfaces, count: int, seed: int) -> Estimates:
    """Load the estimates of the first `count` renders; create the file if it does not exist."""
    if not path.exists():
        _make_estimates(path, renders, count, seed)
    with np.load(path) as file:
        return Estimates(**{f.name: file[f.name] for f in fields(Estimates)})


def _make_estimates(path: Path, renders: Surfaces, count: int, seed: int) -> None:
    from ... import HiFAPipeline

    pipe = HiFAPipeline.from_pretrained()
    colors, timesteps = [], []
    for first in range(0, count, ESTIMATE_BATCH):
        rng = np.random.default_rng([seed, first])
        rows = np.arange(first, min(first + ESTIMATE_BATCH, count))
        x = on_gray(renders, rows, rng)
        # Early in a run, renders are small and are upsampled to the size of the prior.
        small = F.interpolate(F.interpolate(x, (32, 32), mode="area"), (SIZE, SIZE), mode="bilinear")
        x = torch.where(torch.from_numpy(rng.random(len(x)) < 0.3)[:, None, None, None], small, x)
        timesteps.append(draw_timesteps(rng, len(x)))
        x_hat = estimate_once(pipe, x, captions(renders, rows), timesteps[-1], rng)
        colors.append((x_hat.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8))
        if first % 1600 == 0:
            print(f"{first} of {count} estimates", flush=True)
    with atomically(path) as unfinished:
        np.savez(unfinished, color=np.concatenate(colors), timestep=np.concatenate(timesteps))


def on_gray(renders: Surfaces, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Return renders on random gray backgrounds, `(n, 3, 64, 64)` in [0, 1]."""
    mask = renders.mask[rows, ..., None].astype(np.float32) / 255
    pictures = renders.color[rows] / 255 + gray_backgrounds(rng, len(rows))[:, None, None] * (1 - mask)
    return torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2)


def captions(renders: Surfaces, rows: np.ndarray) -> list[str]:
    """Return captions of the renders that name the views."""
    return [world.caption(scene_of(row), view=world.VIEWS[row[4]]) for row in renders.labels[rows]]


def main() -> None:
    """Render the training images from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-training/surface"))
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--views", type=int, default=4, help="renders of each scene")
    arguments = parser.parse_args()
    make_renders(arguments.output_dir, arguments.scenes, arguments.views)


if __name__ == "__main__":
    main()
