"""Train the Toybox diffusion model and its text encoder on cached latents.

    python -m hifa.toybox.training.diffusion --data toybox-data --output-dir toybox-training

Requires the result of `training.autoencoder` in the same output folder. Training is seeded and resumes from
`diffusion.safetensors`. Every `--export-every` steps, the moving average is exported to `--export DIR` as a Stable
Diffusion folder. `--init-from hifa/toybox/weights` starts from a published UNet and text encoder instead of random
weights.
"""

import argparse
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from ...storage.files import atomically
from .. import world
from ..models import build_scheduler, build_text_encoder, build_tokenizer, build_unet, save_prior
from .autoencoder import to_images
from .dataset import Pictures, load_dataset, scene_of
from .loop import EMA, Parts, Recipe, batch_rng, optimize


EMPTY_SHARE, NO_VIEW_SHARE = 0.10, 0.15
CAPTION_WEIGHT, READ_TOKENS = 0.05, 8  # weight of the caption loss; padding tokens used by the caption loss
NOISY_FROM = 750  # from about this timestep on, only the words determine the view
FACING_WEIGHT = 2.0  # sampling weight of front and back views, for kinds with a front
HEADS = (len(world.KINDS), len(world.COLORS), len(world.VIEWS))


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: Pictures, cache: Path) -> torch.Tensor:
    """Return scaled latent means `(n, 4, 16, 16)` float16, cached in the file `cache`.

    Raises:
        ValueError: If `cache` belongs to other images or another autoencoder.
    """

    def encode(part: torch.Tensor) -> torch.Tensor:
        return (vae.encode(to_images(part)).latent_dist.mean * vae.config.scaling_factor).half()  # pyright: ignore[reportAttributeAccessIssue]

    pixels = torch.from_numpy(pictures.pixels)
    if not cache.exists():
        latents = torch.cat([encode(part) for part in pixels.split(128)])
        with atomically(cache) as partial:
            np.save(partial, latents.numpy())
        return latents
    latents = torch.from_numpy(np.load(cache))
    few = [0, len(pixels) // 2, len(pixels) - 1]
    # The tolerance covers rounding differences between batch sizes.
    if len(latents) != len(pixels) or not torch.allclose(latents[few].float(), encode(pixels[few]).float(), atol=0.02):
        raise ValueError(f"{cache} belongs to other images or another autoencoder. Remove the file.")
    return latents


def drawing_chances(labels: np.ndarray) -> np.ndarray:
    """Return the sampling probability `(n,)` of each image.

    Front and back views are drawn more often. With random cameras, side views are twice as frequent as front views or
    back views. Of the visual differences that captions describe, the difference between views is the smallest.
    """
    has_front = np.array([kind in world.KINDS_WITH_FRONT for kind in world.KINDS])[labels[:, 0]]
    facing = np.isin(labels[:, 4], [world.VIEWS.index("front view"), world.VIEWS.index("back view")])
    weights = np.where(has_front & facing, FACING_WEIGHT, 1.0)
    return weights / weights.sum()


def caption_for(labels: np.ndarray, rng: np.random.Generator) -> tuple[str, tuple[int, int, int]]:
    """Return a caption for one image.

    The caption is sometimes empty, for classifier-free guidance, and sometimes lacks the view.

    Returns:
        The caption, and the indices of the kind, color and view that the caption names; -1 for an omitted property.
    """
    share = rng.random()
    if share < EMPTY_SHARE:
        return "", (-1, -1, -1)
    view = None if share < EMPTY_SHARE + NO_VIEW_SHARE else world.VIEWS[labels[4]]
    told = (int(labels[0]), int(labels[1]), -1 if view is None else int(labels[4]))
    return world.caption(scene_of(labels), rng, view), told


def draw_timesteps(rng: np.random.Generator, count: int, noisy_share: float) -> torch.Tensor:
    """Draw `(count,)` timesteps: a share `noisy_share` from the noisiest quarter, the rest from all timesteps.

    Below about t = 800 the noisy image itself shows the view, so the model ignores the words. At higher t the words
    reduce the loss, but only slightly. With uniform timesteps, this small effect would be lost in the loss of the
    other timesteps.
    """
    noisy = rng.random(count) < noisy_share
    return torch.from_numpy(np.where(noisy, rng.integers(NOISY_FROM, 1000, count), rng.integers(0, 1000, count)))


def token_ids(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> torch.Tensor:
    """Return the padded token IDs `(B, tokens)` of captions."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def diffusion_loss(
    model: Parts,
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    context: torch.Tensor,
) -> torch.Tensor:
    """Return the mean squared error of v (Salimans and Ho 2022, "Progressive Distillation", appendix D).

    Min-SNR weighting would leave a weight of only 0.007 at t = 961, where the model has to learn the view words.
    """
    noisy, target = scheduler.add_noise(latents, noise, t), scheduler.get_velocity(latents, noise, t)  # pyright: ignore[reportArgumentType]
    return F.mse_loss(model["unet"](noisy, t, context).sample, target)


def caption_loss(model: Parts, context: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy, in nats, of predicting kind, color and view from the padding after a caption.

    The UNet attends mostly to the padding, which follows all words and makes up most of the tokens. Without this loss,
    the text encoder hardly passes the view on to the padding: the word embeddings and the attention to them would have
    to change at the same time.

    Args:
        model: Parts with the module `reader`.
        context: `(B, tokens, dim)` last hidden states.
        told: `(B, 3)` indices from `caption_for`.
    """
    kind, color, view = model["reader"](context[:, -READ_TOKENS:].mean(1)).split(HEADS, dim=1)
    wrong = [
        F.cross_entropy(logits, told[:, i], ignore_index=-1, reduction="sum")
        for i, logits in enumerate((kind, color, view))
    ]
    return torch.stack(wrong).sum() / len(told)


def train(arguments: argparse.Namespace) -> None:
    """Train the UNet and the text encoder as the module describes."""
    pictures, folder = load_dataset(arguments.data), arguments.output_dir
    if not (folder / "vae").is_dir():  # otherwise diffusers would look up the name on the Hub
        raise FileNotFoundError(
            f"No autoencoder in {folder / 'vae'}. Train one with: python -m hifa.toybox.training.autoencoder"
        )
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    latents = encode_pictures(vae, pictures, folder / "latents.npy")
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        text_encoder = build_text_encoder()
        reader = nn.Linear(text_encoder.config.hidden_size, sum(HEADS))  # used in training only, never exported
        model = Parts({"unet": build_unet(), "text_encoder": text_encoder, "reader": reader})
    if arguments.init_from is not None:
        for name, part in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
            published = part.from_pretrained(arguments.init_from / name, dtype=torch.float32)
            model[name].load_state_dict(published.state_dict())
    chances = drawing_chances(pictures.labels)

    def losses_at(step: int) -> dict[str, torch.Tensor]:
        rng = batch_rng(arguments.seed + 1, step)
        chosen = rng.choice(len(latents), size=arguments.batch, p=chances)
        captions, told = zip(*(caption_for(pictures.labels[i], rng) for i in chosen), strict=True)
        context = model["text_encoder"](token_ids(tokenizer, list(captions))).last_hidden_state
        noise = torch.from_numpy(rng.standard_normal((arguments.batch, 4, 16, 16), "float32"))
        t = draw_timesteps(rng, arguments.batch, arguments.noisy_share)
        denoising = diffusion_loss(model, scheduler, latents[torch.from_numpy(chosen)].float(), noise, t, context)
        reading = caption_loss(model, context, torch.tensor(told))
        return {"loss": denoising + CAPTION_WEIGHT * reading, "denoising": denoising, "caption": reading}

    optimize(
        model, losses_at, Recipe(arguments.steps, arguments.learning_rate, average_decay=0.9985),
        folder / "diffusion.safetensors", lambda average: export(arguments.export, vae, average),
        arguments.export_every,
    )  # fmt: skip


def export(folder: Path, vae: AutoencoderKL, average: EMA) -> None:
    """Write the average in Stable Diffusion's layout."""
    model = Parts({"unet": build_unet(), "text_encoder": build_text_encoder()})
    exported = {name: value for name, value in average.values.items() if not name.startswith("reader.")}
    model.load_state_dict(exported)
    # Config entries that start with an underscore describe the local installation, not the model.
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    copy = cast(AutoencoderKL, AutoencoderKL.from_config(config))
    copy.load_state_dict(vae.state_dict())
    save_prior(folder, copy, model["unet"], model["text_encoder"])


def main() -> None:
    """Run the training from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("toybox-data"))
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-training"))
    parser.add_argument("--init-from", type=Path, help="folder of an exported prior to start from")
    parser.add_argument("--export", type=Path, default=Path("toybox-training/prior"))
    parser.add_argument("--export-every", type=int, default=500)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--noisy-share", type=float, default=0.5, help="share of timesteps from the noisiest quarter")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
