"""Train the Toybox disparity model: a small DPT (Ranftl et al. 2021) that sees how near each pixel of a render is.

    python -m hifa.toybox.train_disparity --output-dir toybox-training --export hifa/toybox/disparity_weights

Renders its pictures first, into the output folder, then trains. Seeded; resumed from `disparity.safetensors` there.
"""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

from ..atomic import atomically
from ..cameras import Camera
from ..losses import disparity_loss
from . import world
from .multiview_dataset import look
from .training import Recipe, batch_rng, optimise


SIZE = 64
FIRST_SEED = 20_000_000
# As wide as the cameras of score distillation on this prior, and of the multi-view ring.
RADIUS, FOV_DEG, ELEVATION_DEG = (2.3, 2.7), (38.0, 50.0), (-15.0, 80.0)
GRAY, WHITE_SHARE, NOISE = (0.2, 0.7), 0.3, 0.05  # backgrounds, and the most noise on a picture
RELIEF_WEIGHT = 10.0  # of the error that is left when an object's mean is right


@dataclass(frozen=True)
class Reliefs:
    """n renders on black with what is there.

    Args:
        colour: `(n, 64, 64, 3)` uint8.
        mask: `(n, 64, 64)` uint8, 255 where the object covers the pixel.
        disparity: `(n, 64, 64)` float16, see `disparity_of`.
    """

    colour: np.ndarray
    mask: np.ndarray
    disparity: np.ndarray


def build_disparity_model() -> DPTForDepthEstimation:
    """The untrained model: 8x8 patches, four layers, fused from 2x2 up to 32x32; the head doubles that to 64x64."""
    config = DPTConfig(
        image_size=SIZE,
        patch_size=8,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        backbone_out_indices=[0, 1, 2, 3],
        reassemble_factors=[2, 1, 0.5, 0.25],
        neck_hidden_sizes=[32, 48, 64, 64],
        neck_ignore_stages=[],
        fusion_hidden_size=48,
        use_auxiliary_head=False,
    )
    model = DPTForDepthEstimation(config)
    # The class starts all weights at 0.02, which suits wide pretrained models; here nothing would pass the neck.
    for part in (model.neck, model.head):
        for module in part.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.reset_parameters()
    return model


def build_processor() -> DPTImageProcessor:
    """Pictures of any size to 64x64 in [-1, 1]."""
    return DPTImageProcessor(
        size={"height": SIZE, "width": SIZE},
        keep_aspect_ratio=False,
        ensure_multiple_of=1,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def disparity_of(depth: np.ndarray, mask: np.ndarray, radius: float) -> np.ndarray:
    """1 / depth, scaled so that the near end of the ball all scenes fit in is 1 and its far end, as nothing, is 0.

    Args:
        depth: `(H, W)` distance along the ray, world units.
        mask: `(H, W)` share of the pixel that is covered.
        radius: Distance of the camera from the origin.
    """
    near, far = 1 / (radius - world.RADIUS), 1 / (radius + world.RADIUS)
    return np.where(mask > 0, (1 / np.maximum(depth, 1e-3) - far) / (near - far), 0) * mask


def render_relief(seed: int, views: int) -> Reliefs:
    """Views of the scene that `seed` draws."""
    rng = np.random.default_rng(seed)
    shape, low_high = world.sample_scene(rng).shape, np.sin(np.radians(ELEVATION_DEG))
    colour, mask, disparity = [], [], []
    for _ in range(views):
        elevation = float(np.degrees(np.arcsin(rng.uniform(*low_high))))
        camera = Camera(rng.uniform(0, 360), elevation, rng.uniform(*RADIUS), rng.uniform(*FOV_DEG))
        picture = look(shape, camera)
        colour.append((picture.colour - 1 + picture.mask[..., None]).clip(0, 1) * 255)  # from white onto black
        mask.append(picture.mask * 255)
        disparity.append(disparity_of(picture.depth, picture.mask, camera.radius))
    as_bytes = [np.stack(values).round().astype(np.uint8) for values in (colour, mask)]
    return Reliefs(*as_bytes, np.stack(disparity).astype(np.float16))


def load_reliefs(path: Path, scenes: int, views: int) -> Reliefs:
    """The training set, rendered if it is not in `path` yet."""
    if not path.exists():
        parts = []
        for index in range(scenes):
            parts.append(render_relief(FIRST_SEED + index, views))
            if (index + 1) % 250 == 0:
                print(f"{index + 1} of {scenes} scenes", flush=True)
        values = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Reliefs)}
        with atomically(path) as partial:
            np.savez(partial, **values)
    with np.load(path) as file:
        return Reliefs(**{f.name: file[f.name] for f in fields(Reliefs)})


def draw_batch(
    reliefs: Reliefs, rng: np.random.Generator, batch: int, noise: float = NOISE
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures on new backgrounds with noise of up to so much, and what is true of them.

    Returns:
        Pictures `(B, 3, 64, 64)` in [-1, 1], disparity and mask `(B, 64, 64)`.
    """
    chosen = rng.integers(len(reliefs.mask), size=batch)
    mask = reliefs.mask[chosen].astype(np.float32) / 255
    gray = rng.uniform(*GRAY, (batch, 1)) + rng.uniform(-0.05, 0.05, (batch, 3))
    background = np.where(rng.random((batch, 1)) < WHITE_SHARE, 1.0, gray)[:, None, None]
    pictures = reliefs.colour[chosen] / 255 + background * (1 - mask[..., None])
    pictures = pictures + rng.standard_normal(pictures.shape) * rng.uniform(0, noise, (batch, 1, 1, 1))
    pixels = torch.from_numpy(pictures.clip(0, 1).astype(np.float32)).permute(0, 3, 1, 2) * 2 - 1
    disparity = torch.from_numpy(reliefs.disparity[chosen].astype(np.float32))
    return pixels.contiguous(), disparity, torch.from_numpy(mask)


def relief_loss(predicted: Tensor, disparity: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute error, with more weight on that within the object but for its mean, and `losses.disparity_loss`.

    The second is what the model serves, and only reported: a loss without a scale has a gradient that grows as the
    prediction shrinks, and the first would never be learnt beside it.
    """
    error = predicted - disparity
    offset = (mask * error).sum((1, 2), keepdim=True) / mask.sum((1, 2), keepdim=True).clamp(min=1)
    error = error.abs() + RELIEF_WEIGHT * mask * (error - offset).abs()
    with torch.no_grad():
        cases = zip(predicted, disparity, mask > 0.99, strict=True)
        shape = [disparity_loss(ours.flatten(), true.flatten(), inside.flatten()) for ours, true, inside in cases]
    return error.mean(), torch.stack(shape).mean()


def train(arguments: argparse.Namespace) -> None:
    folder = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    reliefs = load_reliefs(folder / "reliefs.npz", arguments.scenes, arguments.views)
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        model = build_disparity_model()
    # The head ends with a ReLU: if that closes everywhere, and it does, it never opens again. Without it there is
    # nothing to close, and the truth is not negative.
    last = model.head.head[-1]
    model.head.head[-1] = torch.nn.Identity()

    def losses_at(step: int) -> dict[str, Tensor]:
        pixels, disparity, mask = draw_batch(reliefs, batch_rng(arguments.seed, step), arguments.batch)
        error, shape = relief_loss(model(pixels).predicted_depth, disparity, mask)
        return {"error": error, "shape": shape}

    average = optimise(model, losses_at, Recipe(arguments.steps, arguments.peak), folder / "disparity.safetensors")
    model.load_state_dict(average.values)
    model.head.head[-1] = last
    export(arguments.export, model)


def export(folder: Path, model: DPTForDepthEstimation) -> None:
    """What `DPTForDepthEstimation.from_pretrained` and `DPTImageProcessor.from_pretrained` read, in float32."""
    model.eval().save_pretrained(folder, max_shard_size="9MB")
    build_processor().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-training"))
    parser.add_argument("--export", type=Path, default=Path("toybox-training/disparity"))
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--views", type=int, default=3, help="renders of each scene")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--peak", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
