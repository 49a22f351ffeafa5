"""Train the Toybox surface model, a small U-Net that predicts normals, their uncertainty, and disparity.

    python -m hifa.toybox.training.surface --output-dir toybox-training/surface --export hifa/toybox/surface_weights

The command renders images and creates estimates of the prior in the output folder, then trains. Training is seeded and
resumes from `surface.safetensors` in the output folder. The last printed line is a JSON object with errors on scenes
that are not in the training set. `--evaluate hifa/toybox/surface_weights` prints this line for existing weights.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...losses import angular_von_mises_fisher_loss, disparity_loss
from ...priors.surface import confidence_of, read_surface
from ...priors.surface_unet import SurfaceUNet
from .loop import Recipe, batch_rng, optimize
from .surface_dataset import (
    SIZE,
    Estimates,
    Surfaces,
    captions,
    estimate_once,
    gray_backgrounds,
    load_estimates,
    load_renders,
    make_renders,
    on_gray,
    render_surfaces,
)


WHITE_SHARE, BLUR, NOISE = 0.3, 1.6, 0.06  # share of white backgrounds; largest blur (pixels); largest noise (std)
DISPARITY_WEIGHT, RELIEF_WEIGHT = 0.2, 10.0  # relief: error minus the mean error of the object
ESTIMATES = 0.375  # share of a batch
TEST_SEED, TEST_SCENES = 24_000_000, 100


def draw_batch(
    surfaces: Surfaces, estimates: Estimates | None, rng: np.random.Generator, batch: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw images (renders and estimates of the prior) with their ground truth.

    Returns:
        Images `(B, 3, 64, 64)` in [0, 1], timesteps `(B,)`, normals `(B, 3, 64, 64)`, disparity and mask
        `(B, 64, 64)`.
    """
    plain = batch if estimates is None else batch - int(ESTIMATES * batch)
    chosen = rng.integers(len(surfaces), size=batch)
    if estimates is not None:
        chosen[plain:] = rng.integers(len(estimates.color), size=batch - plain)
    mask = surfaces.mask[chosen].astype(np.float32) / 255
    white = rng.random((plain, 1)) < WHITE_SHARE
    background = np.where(white, 1.0, gray_backgrounds(rng, plain))[:, None, None]
    pictures = surfaces.color[chosen[:plain]] / 255 + background * (1 - mask[:plain, ..., None])
    pictures = torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2)
    pictures = blurred(pictures, torch.from_numpy(rng.uniform(0, BLUR, plain) * (rng.random(plain) < 0.5)))
    noise = rng.standard_normal(pictures.shape) * rng.uniform(0, NOISE, (plain, 1, 1, 1))
    pictures = (pictures + torch.from_numpy(noise.astype(np.float32))).clamp(0, 1)
    timesteps = torch.zeros(batch, dtype=torch.long)
    if estimates is not None:
        made = torch.from_numpy(estimates.color[chosen[plain:]].astype(np.float32) / 255).permute(0, 3, 1, 2)
        pictures = torch.cat([pictures, made])
        timesteps[plain:] = torch.from_numpy(estimates.timestep[chosen[plain:]].astype(np.int64))
    normals = torch.from_numpy(surfaces.normals[chosen].astype(np.float32) / 127).permute(0, 3, 1, 2)
    disparity = torch.from_numpy(surfaces.disparity[chosen].astype(np.float32))
    mask = torch.from_numpy(mask)
    # Mirroring an image mirrors the scene: x of the normals changes sign.
    flip = torch.from_numpy(rng.random(batch) < 0.5)
    pictures, normals, disparity, mask = (
        torch.where(flip.view(-1, *[1] * (value.ndim - 1)), value.flip(-1), value)
        for value in (pictures, normals, disparity, mask)
    )
    mirror = torch.where(flip, -1.0, 1.0)[:, None, None]
    normals = torch.stack([normals[:, 0] * mirror, normals[:, 1], normals[:, 2]], 1)
    return pictures.contiguous(), timesteps, normals, disparity, mask


def blurred(pictures: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image of `(B, 3, H, W)` by a Gaussian with the width `sigma` `(B,)` in pixels; 0 is no blur."""
    offsets = torch.arange(-4, 5, dtype=torch.float32)
    taps = torch.exp(-0.5 * (offsets / sigma.float().clamp_min(1e-3)[:, None]) ** 2)
    taps = (taps / taps.sum(-1, keepdim=True)).repeat_interleave(3, 0)
    count, size = len(taps), pictures.shape[-1]
    flat = F.pad(pictures.reshape(1, count, size, size), (4, 4, 4, 4), mode="replicate")
    flat = F.conv2d(flat, taps[:, None, :, None], groups=count)
    return F.conv2d(flat, taps[:, None, None, :], groups=count).view_as(pictures)


def relief_loss(predicted: Tensor, disparity: Tensor, mask: Tensor) -> Tensor:
    """Return the mean absolute error of the disparity, plus a relief term.

    The relief term is the mean absolute deviation of the error from the mean error of the object.
    """
    error = predicted - disparity
    offset = (mask * error).sum((1, 2), keepdim=True) / mask.sum((1, 2), keepdim=True).clamp(min=1)
    return (error.abs() + RELIEF_WEIGHT * mask * (error - offset).abs()).mean()


def surface_losses(model: SurfaceUNet, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the training loss, the parts of the loss, and the mean angle between normals in degrees."""
    pictures, timesteps, normals, disparity, mask = batch
    seen = read_surface(model, pictures, timesteps)
    inside = mask > 0.5
    cosine = (seen.normals * normals).sum(1).clamp(-1 + 1e-6, 1 - 1e-6)
    # Pixels without an object have no normal. An error of 90 degrees there makes the model learn a low kappa.
    angle = torch.where(inside, torch.acos(cosine), torch.pi / 2)
    # The likelihood alone neglects uncertain pixels. A separate term trains the angle; the likelihood trains kappa.
    nll = angular_von_mises_fisher_loss(angle.detach(), seen.kappa)
    normal = ((nll + angle) * (0.1 + 0.9 * inside)).mean()
    relief = relief_loss(seen.disparity, disparity, mask)
    degrees = torch.rad2deg(angle[inside].detach().mean())
    plain = torch.rad2deg(angle[timesteps == 0][inside[timesteps == 0]].detach().mean())
    return {
        "loss": normal + DISPARITY_WEIGHT * relief, "normal": normal.detach(), "relief": relief.detach(),
        "degrees": degrees, "renders": plain,
    }  # fmt: skip


@torch.no_grad()
def evaluate(model: SurfaceUNet, seed: int, scenes: int) -> dict[str, float]:
    """Measure errors on scenes that are not in the training set.

    Returns:
        Errors by name. `renders`, `blurred` (renders blurred by one pixel), `round_trips` (through the autoencoder)
        and `t_300` to `t_900` (one-step estimates) are mean angles between normals in degrees, over the pixels that
        objects cover by more than half. `sure` is `t_700` weighted by confidence. `disparity` is the mean
        `disparity_loss` of the renders.
    """
    from ... import HiFAPipeline

    truth = Surfaces.joined([render_surfaces(TEST_SEED + index, 2) for index in range(scenes)])
    rng, rows, pipe = np.random.default_rng([seed, TEST_SEED]), np.arange(len(truth)), HiFAPipeline.from_pretrained()
    x = on_gray(truth, rows, rng)
    shown = {"renders": (x, 0), "blurred": (blurred(x, torch.ones(len(x))), 0)}
    for name, t in (("round_trips", 0), ("t_300", 300), ("t_500", 500), ("t_700", 700), ("t_900", 900)):
        steps = np.full(len(x), t, np.int16)
        parts = [
            estimate_once(pipe, x[part], captions(truth, rows[part]), steps[part], rng)
            for part in (slice(first, first + 16) for first in range(0, len(x), 16))
        ]
        shown[name] = (torch.cat(parts), t)
    normals = torch.from_numpy(truth.normals.astype(np.float32) / 127).permute(0, 3, 1, 2)
    inside = torch.from_numpy(truth.mask > 127)
    errors = {}
    for name, (pictures, t) in shown.items():
        seen = read_surface(model, pictures, torch.full((len(pictures),), t))
        angle = torch.rad2deg(torch.acos((seen.normals * normals).sum(1).clamp(-1, 1)))
        errors[name] = float(angle[inside].mean())
        if name == "t_700":
            confidence = confidence_of(seen.kappa)[inside]
            errors["sure"] = float((angle[inside] * confidence).sum() / confidence.sum())
        if name == "renders":
            true = torch.from_numpy(truth.disparity.astype(np.float32))
            cases = zip(seen.disparity, true, inside, strict=True)
            errors["disparity"] = float(torch.stack([disparity_loss(a[m], b[m], m[m]) for a, b, m in cases]).mean())
    return {name: round(value, 4) for name, value in errors.items()}


def train(arguments: argparse.Namespace) -> None:
    """Train the surface model as the module describes, evaluate it and export it."""
    folder = arguments.output_dir
    make_renders(folder / "train", arguments.scenes, arguments.views)
    surfaces = load_renders(folder / "train")
    estimates = load_estimates(folder / "estimates.npz", surfaces, arguments.estimates, arguments.seed)
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        model = SurfaceUNet(SIZE).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def losses_at(step: int) -> dict[str, Tensor]:
        return surface_losses(model, draw_batch(surfaces, estimates, batch_rng(arguments.seed, step), arguments.batch))

    average = optimize(model, losses_at, Recipe(arguments.steps, arguments.peak), folder / "surface.safetensors")
    model.load_state_dict(average.values)
    model.eval()
    print(json.dumps(evaluate(model, arguments.seed, arguments.test_scenes)), flush=True)
    export(arguments.export, model)


def export(folder: Path, model: SurfaceUNet) -> None:
    """Write a folder for `SurfaceUNet.from_pretrained`, in float16."""
    model.eval().half().save_pretrained(folder, max_shard_size="9MB")


def main() -> None:
    """Run the training or the evaluation from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-training/surface"))
    parser.add_argument("--export", type=Path, default=Path("toybox-training/surface/weights"))
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--views", type=int, default=4, help="renders of each scene")
    parser.add_argument("--estimates", type=int, default=12_000, help="estimates of the prior in the training set")
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--test-scenes", type=int, default=TEST_SCENES, help="scenes of the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help="evaluate the model in DIR without training")
    arguments = parser.parse_args()
    if arguments.evaluate is None:
        train(arguments)
        return
    model = SurfaceUNet.from_pretrained(arguments.evaluate, dtype=torch.float32).eval()
    print(json.dumps(evaluate(model, arguments.seed, arguments.test_scenes)))


if __name__ == "__main__":
    main()
