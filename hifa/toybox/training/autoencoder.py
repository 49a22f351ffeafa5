"""Train the Toybox autoencoder, which maps 64x64 images to 16x16x4 latents.

    python -m hifa.toybox.training.autoencoder --data toybox-data --output-dir toybox-training

Training is seeded and resumes from `autoencoder.safetensors` in the output folder. `--init-from` starts from a
published autoencoder instead of random weights.
"""

# diffusers does not declare which output type an autoencoder returns.
# pyright: reportAttributeAccessIssue=false

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from .dataset import Pictures, load_dataset
from .loop import EMA, Recipe, batch_rng, optimize


def build_autoencoder() -> AutoencoderKL:
    """Build the untrained model, without attention. At this size convolutions suffice and are much faster on a CPU."""
    return AutoencoderKL(
        sample_size=64,
        latent_channels=4,
        block_out_channels=(16, 48, 64),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def to_images(pixels: torch.Tensor) -> torch.Tensor:
    """Convert `(B, 64, 64, 3)` uint8 to `(B, 3, 64, 64)` float in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def autoencoder_loss(model: AutoencoderKL, images: torch.Tensor, noise: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Return L1 + 2 MSE + 0.5 L1 of image gradients + 1e-4 KL. The KL term keeps latents near unit scale."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        posterior = model.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        output = model.decode(latents).sample
    output = output.float()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    error = output - images
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return F.l1_loss(output, images) + 2 * F.mse_loss(output, images) + 0.5 * edges + 1e-4 * kl


@torch.no_grad()
def psnr(model: AutoencoderKL, pixels: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of encode -> mean -> decode, for pixel values in [0, 1]."""
    images = to_images(pixels)
    output = torch.cat([model.decode(model.encode(part).latent_dist.mean).sample for part in images.split(32)])
    return float(-10 * torch.log10((((output.clamp(-1, 1) - images) / 2) ** 2).mean()))


def train(
    pictures: Pictures,
    folder: Path,
    steps: int,
    batch: int = 32,
    seed: int = 0,
    bf16: bool = True,
    init_from: Path | None = None,
) -> AutoencoderKL:
    """Train the autoencoder on pictures. The last 128 pictures are held back to measure the quality."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_autoencoder()
    if init_from is not None:
        model.load_state_dict(AutoencoderKL.from_pretrained(init_from, dtype=torch.float32).state_dict())
    pixels = torch.from_numpy(pictures.pixels)
    held_back, pixels = pixels[-128:], pixels[:-128]

    def losses_at(step: int) -> dict[str, torch.Tensor]:
        rng = batch_rng(seed, step)
        images = to_images(pixels[torch.from_numpy(rng.integers(len(pixels), size=batch))])
        noise = torch.from_numpy(rng.standard_normal((batch, 4, 16, 16), "float32"))
        return {"loss": autoencoder_loss(model, images, noise, bf16)}

    def try_out(average: EMA) -> None:
        trial = build_autoencoder()
        trial.load_state_dict(average.values)
        print(f"PSNR {psnr(trial, held_back):.2f} dB", flush=True)

    recipe = Recipe(steps, peak=1.5e-3, weight_decay=1e-4)
    average = optimize(model, losses_at, recipe, folder / "autoencoder.safetensors", try_out)
    model.load_state_dict(average.values)
    return finish(model, pixels[:1024])


@torch.no_grad()
def finish(model: AutoencoderKL, pixels: torch.Tensor) -> AutoencoderKL:
    """Set `scaling_factor` so that scaled latents have unit standard deviation, as diffusers expects."""
    latents = torch.cat([model.encode(part).latent_dist.mean for part in to_images(pixels).split(64)])
    model.register_to_config(scaling_factor=float(1 / latents.std()))
    return model


def main() -> None:
    """Run the training from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("toybox-data"))
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-training"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init-from", type=Path, help="folder of the autoencoder to start from")
    arguments = parser.parse_args()
    pictures = load_dataset(arguments.data)
    model = train(pictures, arguments.output_dir, arguments.steps, seed=arguments.seed, init_from=arguments.init_from)
    model.save_pretrained(arguments.output_dir / "vae")


if __name__ == "__main__":
    main()
