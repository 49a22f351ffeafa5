"""Train the Toybox diffusion model and its text encoder on cached latents.

    python -m hifa.toybox.train_diffusion --data toybox-data --output-dir toybox-training

Needs the autoencoder of `train_autoencoder` in the same output folder. Seeded; resumed from `diffusion.safetensors`
when run again. `--export DIR` gets the moving average as a Stable Diffusion folder every `--export-every` steps.
`--init-from hifa/toybox/weights` starts from a published UNet and text encoder in place of random ones.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from ..atomic import atomically
from . import world
from .dataset import Pictures, load_dataset, scene_of
from .models import build_scheduler, build_text_encoder, build_tokenizer, build_unet, save_prior
from .train_autoencoder import to_images
from .training import Average, Recipe, batch_rng, optimise


EMPTY_SHARE, NO_VIEW_SHARE = 0.10, 0.15
CAPTION_WEIGHT, READ_TOKENS = 0.05, 8  # of the caption loss; padding tokens that it reads
NOISY_FROM = 750  # timesteps above, where only the words tell the view
FACING_WEIGHT = 2.0  # how much more often fronts and backs of the kinds that have them are drawn
HEADS = (len(world.KINDS), len(world.COLOURS), len(world.VIEWS))


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: Pictures, cache: Path) -> torch.Tensor:
    """Scaled latent means `(n, 4, 16, 16)` float16, kept in `cache`.

    Raises:
        ValueError: If `cache` is of other pictures or another autoencoder.
    """

    def encode(part: torch.Tensor) -> torch.Tensor:
        return (vae.encode(to_images(part)).latent_dist.mean * vae.config.scaling_factor).half()

    pixels = torch.from_numpy(pictures.pixels)
    if not cache.exists():
        latents = torch.cat([encode(part) for part in pixels.split(128)])
        with atomically(cache) as partial:
            np.save(partial, latents.numpy())
        return latents
    latents = torch.from_numpy(np.load(cache))
    few = [0, len(pixels) // 2, len(pixels) - 1]
    # Beyond what rounding in batches of another size does.
    if len(latents) != len(pixels) or not torch.allclose(latents[few].float(), encode(pixels[few]).float(), atol=0.02):
        raise ValueError(f"{cache} is of other pictures or another autoencoder; remove it.")
    return latents


def drawing_chances(labels: np.ndarray) -> np.ndarray:
    """`(n,)` chances of the pictures. A random camera sees a side twice as often as a front or a back, and which way
    an object faces is the smallest of the differences that words make."""
    has_front = np.array([kind in world.KINDS_WITH_FRONT for kind in world.KINDS])[labels[:, 0]]
    facing = np.isin(labels[:, 4], [world.VIEWS.index("front view"), world.VIEWS.index("back view")])
    weights = np.where(has_front & facing, FACING_WEIGHT, 1.0)
    return weights / weights.sum()


def caption_for(labels: np.ndarray, rng: np.random.Generator) -> tuple[str, tuple[int, int, int]]:
    """A caption for one picture; sometimes empty (for classifier-free guidance), sometimes without its view.

    Returns:
        The caption, and the kind, colour and view that it tells, -1 for what it does not.
    """
    share = rng.random()
    if share < EMPTY_SHARE:
        return "", (-1, -1, -1)
    view = None if share < EMPTY_SHARE + NO_VIEW_SHARE else world.VIEWS[labels[4]]
    told = (int(labels[0]), int(labels[1]), -1 if view is None else int(labels[4]))
    return world.caption(scene_of(labels), rng, view), told


def draw_timesteps(rng: np.random.Generator, count: int, noisy_share: float) -> torch.Tensor:
    """`(count,)` timesteps: `noisy_share` of them from the noisiest quarter, the others from all.

    Below t = 800 or so the noisy picture shows the view by itself and the words are ignored. What they add to the loss
    above is small, and drowns in that of the other timesteps if those are as frequent.
    """
    noisy = rng.random(count) < noisy_share
    return torch.from_numpy(np.where(noisy, rng.integers(NOISY_FROM, 1000, count), rng.integers(0, 1000, count)))


def token_ids(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> torch.Tensor:
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def diffusion_loss(
    model: nn.ModuleDict,
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    context: torch.Tensor,
) -> torch.Tensor:
    """Mean squared error of v (Salimans and Ho 2022, "Progressive Distillation", appendix D).

    Min-SNR weighting would leave .007 of the weight at t = 961, where the view words have to be learnt.
    """
    noisy, target = scheduler.add_noise(latents, noise, t), scheduler.get_velocity(latents, noise, t)
    return F.mse_loss(model["unet"](noisy, t, context).sample, target)


def caption_loss(model: nn.ModuleDict, context: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, in nats, of reading kind, colour and view off the padding after a caption.

    The UNet looks mostly at the padding, which comes after all words and is most of the tokens, and by itself the text
    encoder hardly passes the view on to it: the words and the attention to them would have to change at once.

    Args:
        context: `(B, tokens, dim)` last hidden states.
        told: `(B, 3)` from `caption_for`.
    """
    kind, colour, view = model["reader"](context[:, -READ_TOKENS:].mean(1)).split(HEADS, dim=1)
    wrong = [
        F.cross_entropy(logits, told[:, i], ignore_index=-1, reduction="sum")
        for i, logits in enumerate((kind, colour, view))
    ]
    return torch.stack(wrong).sum() / len(told)


def train(arguments: argparse.Namespace) -> None:
    pictures, folder = load_dataset(arguments.data), arguments.output_dir
    if not (folder / "vae").is_dir():  # diffusers would look for the name on the Hub
        raise FileNotFoundError(
            f"No autoencoder in {folder / 'vae'}. Train it: python -m hifa.toybox.train_autoencoder"
        )
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    latents = encode_pictures(vae, pictures, folder / "latents.npy")
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        text_encoder = build_text_encoder()
        reader = nn.Linear(text_encoder.config.hidden_size, sum(HEADS))  # only for training; never exported
        model = nn.ModuleDict({"unet": build_unet(), "text_encoder": text_encoder, "reader": reader})
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

    optimise(
        model, losses_at, Recipe(arguments.steps, arguments.learning_rate, average_decay=0.9985),
        folder / "diffusion.safetensors", lambda average: export(arguments.export, vae, average),
        arguments.export_every,
    )  # fmt: skip


def export(folder: Path, vae: AutoencoderKL, average: Average) -> None:
    model = nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder()})
    exported = {name: value for name, value in average.values.items() if not name.startswith("reader.")}
    model.load_state_dict(exported)
    # Names with an underscore are where and how it was loaded here.
    copy = AutoencoderKL.from_config({key: value for key, value in vae.config.items() if not key.startswith("_")})
    copy.load_state_dict(vae.state_dict())
    save_prior(folder, copy, model["unet"], model["text_encoder"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("toybox-data"))
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-training"))
    parser.add_argument("--init-from", type=Path, help="folder of an exported prior to start from")
    parser.add_argument("--export", type=Path, default=Path("toybox-training/prior"))
    parser.add_argument("--export-every", type=int, default=500)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--noisy-share", type=float, default=0.5, help="see `draw_timesteps`")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
