"""Fine-tune the Toybox prior on groups of views with camera poses, and on single views with view words.

    python -m hifa.toybox.training.cameras --output-dir toybox-training --export hifa/toybox/weights

Training starts from the embedded prior. The command first renders the training data into the output folder. In two
thirds of the steps, the UNet denoises four views jointly with their camera poses, and captions do not name the view.
In one third of the steps, the UNet denoises single views, and captions name the view, as in `training.diffusion`.
MVDream (Shi et al. 2024, section 3.3) trains 30 % of the batches as a 2D model.

Training is seeded and resumes from `cameras.safetensors`. The camera embedding is saved next to the UNet, so that the
UNet stays a 2D model.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ...priors.view_attention import CameraEmbedding, across_views, fresh_embedding
from ...storage.checkpoint import write_text_atomically
from ...storage.files import atomically
from .. import world
from ..models import build_scheduler, save_prior
from .autoencoder import to_images
from .dataset import scene_of
from .diffusion import CAPTION_WEIGHT, EMPTY_SHARE, HEADS, caption_for, caption_loss, diffusion_loss, token_ids
from .loop import EMA, Parts, Recipe, batch_rng, optimize
from .ring_dataset import FIRST_SEED, Rings, load_rings, render_ring
from .shards import make_shards


VIEWS = 4  # views per object in a batch, 90 degrees apart
SINGLE_SHARE = 1 / 3  # share of steps with single views
# Timesteps from `NOISY_FROM` on decide the layout. `NOISY_SHARE` of the timesteps is drawn from this noisiest quarter.
NOISY_FROM, NOISY_SHARE = 750, 0.4


def draw_groups(rings: Rings, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw groups of four views, 90 degrees apart.

    Returns:
        Indices of rings `(count,)`, and indices of views in each ring `(count, 4)`.
    """
    first = rng.integers(2, size=count)
    return rng.integers(len(rings), size=count), first[:, None] + 2 * np.arange(VIEWS)


def draw_timesteps(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw `(count,)` timesteps: a share `NOISY_SHARE` from the noisiest quarter, the rest from all timesteps."""
    noisy = rng.random(count) < NOISY_SHARE
    return np.where(noisy, rng.integers(NOISY_FROM, 1000, count), rng.integers(0, 1000, count))


class Losses:
    """Function from the number of a step to the losses of the step.

    The batch depends only on the seed and the number of the step.

    Args:
        model: Modules `unet`, `text_encoder`, `reader` and `camera_embedding`.
        latents: `(n, 8, 4, 16, 16)` scaled latents of the rings.
        rings: Rings, for poses and labels.
        tokenizer: Tokenizer of the text encoder.
        objects: Number of objects in a multi-view batch. A batch of single views has `VIEWS` times as many images.
        seed: Seed of all batches.
    """

    def __init__(self, model: Parts, latents: Tensor, rings: Rings, tokenizer, objects: int, seed: int):
        self.model, self.latents, self.rings, self.tokenizer = model, latents, rings, tokenizer
        self.objects, self.seed, self.scheduler = objects, seed, build_scheduler()

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Return the losses of a step."""
        rng = batch_rng(self.seed, step)
        return self.single_views(rng) if rng.random() < SINGLE_SHARE else self.views_with_cameras(rng)

    def views_with_cameras(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the losses of a multi-view batch.

        The four views of an object share the caption and the timestep. The noise of each view is independent.
        """
        chosen, views = draw_groups(self.rings, rng, self.objects)
        captions = [
            "" if rng.random() < EMPTY_SHARE else world.caption(scene_of(self.rings.labels[index, 0]), rng)
            for index in chosen
        ]
        context = self.encode(captions).repeat_interleave(VIEWS, 0)
        t = torch.from_numpy(draw_timesteps(rng, self.objects)).repeat_interleave(VIEWS)
        poses = torch.from_numpy(self.rings.poses[chosen[:, None], views]).flatten(0, 1)
        z = self.latents[torch.from_numpy(chosen)[:, None], torch.from_numpy(views)].flatten(0, 1).float()
        noise = torch.from_numpy(rng.standard_normal(z.shape, "float32"))
        noisy, target = self.scheduler.add_noise(z, noise, t), self.scheduler.get_velocity(z, noise, t)  # pyright: ignore[reportArgumentType]
        with across_views(self.model["unet"], self.model["camera_embedding"], VIEWS):
            v = self.model["unet"](noisy, t, context, class_labels=poses).sample
        loss = nn.functional.mse_loss(v, target)
        return {"loss": loss, "views": loss.detach(), "words": torch.tensor(torch.nan)}

    def single_views(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the losses of a batch of single views, with captions that may name the view."""
        count = self.objects * VIEWS
        chosen, views = rng.integers(len(self.rings), size=count), rng.integers(self.rings.poses.shape[1], size=count)
        labels = self.rings.labels[chosen, views]
        captions, named = zip(*(caption_for(row, rng) for row in labels), strict=True)
        context, t = self.encode(list(captions)), torch.from_numpy(draw_timesteps(rng, count))
        z = self.latents[torch.from_numpy(chosen), torch.from_numpy(views)].float()
        noise = torch.from_numpy(rng.standard_normal(z.shape, "float32"))
        denoising = diffusion_loss(self.model, self.scheduler, z, noise, t, context)
        reading = caption_loss(self.model, context, torch.tensor(named))
        loss = denoising + CAPTION_WEIGHT * reading
        return {"loss": loss, "views": torch.tensor(torch.nan), "words": denoising.detach()}

    def encode(self, captions: list[str]) -> Tensor:
        """Return the last hidden states `(B, tokens, dim)` of captions."""
        return self.model["text_encoder"](token_ids(self.tokenizer, captions)).last_hidden_state


@torch.no_grad()
def encode_rings(vae: AutoencoderKL, rings: Rings, cache: Path) -> Tensor:
    """Return scaled latent means `(n, 8, 4, 16, 16)` float16, cached in the file `cache`.

    Raises:
        ValueError: If `cache` has another number of rings.
    """
    if not cache.exists():
        parts = [
            (vae.encode(to_images(torch.from_numpy(views))).latent_dist.mean * vae.config.scaling_factor).half()  # pyright: ignore[reportAttributeAccessIssue]
            for views in rings.pixels
        ]
        with atomically(cache) as unfinished:
            np.save(unfinished, torch.stack(parts).numpy())
    latents = torch.from_numpy(np.load(cache))
    if len(latents) != len(rings):
        raise ValueError(f"{cache} has {len(latents)} rings, but the data set has {len(rings)}. Remove the file.")
    return latents


def train(arguments: argparse.Namespace) -> None:
    """Train the prior as the module describes, and export the result."""
    from ... import HiFAPipeline

    folder = arguments.output_dir
    make_shards(folder / "rings", arguments.scenes, render_ring, FIRST_SEED)
    rings, pipe = load_rings(folder / "rings"), HiFAPipeline.from_pretrained()
    latents = encode_rings(pipe.vae, rings, folder / "ring-latents.npy")
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        model = Parts({
            "unet": pipe.unet, "text_encoder": pipe.text_encoder, "camera_embedding": fresh_embedding(pipe.unet),
            "reader": nn.Linear(pipe.text_encoder.config.hidden_size, sum(HEADS)),
        }).float().requires_grad_(True).train()  # fmt: skip
    losses = Losses(model, latents, rings, pipe.tokenizer, arguments.objects, arguments.seed)
    average = optimize(model, losses, Recipe(arguments.steps, arguments.peak), folder / "cameras.safetensors")
    export(arguments.export, pipe, model, average)


def export(folder: Path, pipe, model: Parts, average: EMA) -> None:
    """Write the prior in Stable Diffusion's layout, and the camera embedding in the folder `camera_embedding`."""
    model.load_state_dict(average.values)
    model.eval()
    save_prior(folder, pipe.vae, model["unet"], model["text_encoder"])
    model["camera_embedding"].half().save_pretrained(folder / "camera_embedding")
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index["camera_embedding"] = [CameraEmbedding.__module__, CameraEmbedding.__name__]
    write_text_atomically(folder / "model_index.json", json.dumps(index, indent=2) + "\n")


def main() -> None:
    """Run the training from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-training"))
    parser.add_argument("--export", type=Path, default=Path("toybox-training/cameras"))
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--objects", type=int, default=8, help="objects in a multi-view batch, with four views each")
    parser.add_argument("--peak", type=float, default=6e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
