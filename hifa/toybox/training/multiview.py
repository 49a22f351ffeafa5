r"""Train the Toybox multi-view model, a small SyncDreamer, on the rings of `multiview_dataset`.

    python -m hifa.toybox.training.multiview_dataset --output-dir toybox-multiview-data
    python -m hifa.toybox.training.multiview --data toybox-multiview-data --output-dir toybox-multiview-training

Training has three stages. Each stage writes to the output folder and is skipped or resumed when the command runs
again:

1. Fine-tune the prior's autoencoder on white backgrounds (`vae`).
2. Train the image encoder and the conditioner (`image_encoder` and `conditioner`, see the module `image_encoder`).
3. Train all components except the two encoders together. The UNet starts from the prior's UNet.

Training is seeded. Every `--export-every` steps, the moving average is exported to `--export DIR` as a pipeline
folder.

The embedded weights were trained in four rounds, each starting from the previous one. In the third round the model
learned which way an object faces. This round trained the image encoder longer, gave the facing loss more weight, and
froze the image encoder in stage 3. On one busy core with AMX, stage 2 took 40 minutes and stage 3 another 40 minutes:

    python -m hifa.toybox.training.multiview_dataset --output-dir D --scenes 5000
    python -m hifa.toybox.training.multiview --data D --output-dir T --init-from hifa/toybox/multiview_weights --bf16 \
        --encoder-steps 12000 --steps 3600 --export T/pipeline

The first 8,900 steps of the image encoder used only the first 1,900 of these scenes, because the other scenes were not
rendered yet. The fourth round used other scenes. On one core, stage 2 took 25 minutes and stage 3 took 30 minutes. At
the end of both rounds, the losses were still falling:

    python -m hifa.toybox.training.multiview_dataset --output-dir D --scenes 4000 --first-seed 10005000
    python -m hifa.toybox.training.multiview --data D --output-dir T --init-from hifa/toybox/multiview_weights --bf16 \
        --encoder-steps 6000 --steps 2200 --seed 1 --export T/pipeline
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from ...multiview import ViewRing
from ...multiview.conditioning import ViewConditioner, clip_embedding, view_embedding
from ...multiview.denoiser import VolumeDenoiser
from .. import TOYBOX
from . import autoencoder, image_encoder
from .autoencoder import to_images
from .dataset import Pictures
from .loop import EMA, Parts, Recipe, batch_rng, optimize
from .multiview_dataset import Scenes, draw_photos, drawn_pixels, load_dataset
from .multiview_models import build_multiview_scheduler, build_parts, save_multiview, start_from_prior


AUTOENCODER_SCENES = 400  # few scenes suffice, because the autoencoder was already trained on the same objects
UNCONDITIONAL_SHARE = 0.05  # share of scenes without conditioning, for classifier-free guidance
BLIND_SHARE, BLIND_FROM = 0.8, 950  # share of steps without volumes; lowest timestep of these steps
NOISY_SHARE, NOISY_FROM = 0.6, 800  # share of timesteps from 800 on, where the photo is the best cue


class Batch:
    """Training batch of S scenes, with n of the sixteen views of each scene to denoise.

    Most batches are `blind`. At the highest noise levels the volumes carry no information, and a step without volumes
    takes half the time.

    Attributes:
        latents: `(S, 16, 4, 16, 16)` clean, scaled, starting with the view of the photo.
        picture: `(S, 4, 16, 16)` latent of the photo, unscaled.
        photo: `(S, 3, 64, 64)` in [-1, 1].
        v_embed: `(S, 16, 4)` from `view_embedding`.
        noise: Same shape as `latents`.
        t: `(S,)` timesteps.
        views: `(S, n)` indices of the views to denoise.
        told: `(S,)` bool, False for scenes without conditioning.
        blind: Whether the step uses no volumes.
    """

    def __init__(self, scenes: Scenes, latents: "SceneLatents", ring: ViewRing, rng: np.random.Generator, sizes):
        count, targets = sizes
        self.blind = bool(rng.random() < BLIND_SHARE)
        draw = draw_photos(scenes, rng, count)
        scene, mirrored = torch.from_numpy(draw.scene), torch.from_numpy(draw.mirrored).long()
        self.latents = latents.views[mirrored[:, None], scene[:, None], torch.from_numpy(draw.order)].float()
        self.picture = latents.photos[mirrored, scene, torch.from_numpy(draw.photo)].float()
        self.photo = to_images(torch.from_numpy(drawn_pixels(scenes, draw)))
        self.v_embed = view_embedding(torch.from_numpy(scenes.elevation_deg[draw.scene, draw.photo]), ring)
        self.noise = torch.from_numpy(rng.standard_normal(self.latents.shape, "float32"))
        t = rng.integers(BLIND_FROM, 1000, count) if self.blind else draw_timesteps(rng, count)
        self.t = torch.from_numpy(t)
        self.views = torch.from_numpy(np.stack([rng.permutation(ring.num_views)[:targets] for _ in range(count)]))
        self.told = torch.from_numpy(rng.random(count) >= UNCONDITIONAL_SHARE)


class SceneLatents:
    """Latent means of a training set, float16. The first axis is 0 for original and 1 for mirrored images.

    Args:
        views: `(2, n, 16, 4, 16, 16)` scaled.
        photos: `(2, n, p, 4, 16, 16)` unscaled, as the UNet receives them.
    """

    def __init__(self, views: Tensor, photos: Tensor):
        self.views, self.photos = views, photos


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, scenes: Scenes, cache: Path) -> SceneLatents:
    """Return the latents of all scenes, cached in the file `cache`.

    Raises:
        ValueError: If `cache` has another number of scenes.
    """
    if not cache.exists():
        views, photos = [], []
        for index in range(len(scenes)):
            images = to_images(torch.from_numpy(np.concatenate([scenes.views[index], scenes.photos[index]])))
            means = torch.stack([vae.encode(x.contiguous()).latent_dist.mean for x in (images, images.flip(-1))])  # pyright: ignore[reportAttributeAccessIssue]
            views.append((means[:, : scenes.views.shape[1]] * vae.config["scaling_factor"]).half())
            photos.append(means[:, scenes.views.shape[1] :].half())
        np.savez(cache, views=torch.stack(views, 1).numpy(), photos=torch.stack(photos, 1).numpy())
    with np.load(cache) as file:
        latents = SceneLatents(torch.from_numpy(file["views"]), torch.from_numpy(file["photos"]))
    if latents.views.shape[1] != len(scenes):
        raise ValueError(f"{cache} holds {latents.views.shape[1]} scenes, expected {len(scenes)}. Remove the file.")
    return latents


def draw_timesteps(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw `(count,)` timesteps: a share `NOISY_SHARE` from the noisiest fifth, the rest from all timesteps."""
    noisy = rng.random(count) < NOISY_SHARE
    return np.where(noisy, rng.integers(NOISY_FROM, 1000, count), rng.integers(0, 1000, count))


def multiview_loss(parts: Parts, scheduler: DDIMScheduler, batch: Batch) -> Tensor:
    """Return the mean squared error of v for the chosen views.

    All views of a scene have the same timestep. The volume of a scene is built from all of its views.

    References: Salimans and Ho 2022, appendix D; SyncDreamer section 3.2.
    """
    count, targets = batch.views.shape
    scene = torch.arange(count)[:, None]
    t_all = batch.t.repeat_interleave(batch.latents.shape[1])
    noisy = scheduler.add_noise(batch.latents.flatten(0, 1), batch.noise.flatten(0, 1), t_all)  # pyright: ignore[reportArgumentType]
    noisy = noisy.view_as(batch.latents)
    told = batch.told.repeat_interleave(targets).float()
    if batch.blind:
        frustums = empty_frustums(parts["volume"].config, count * targets)
    else:
        t_embed = parts["conditioner"].embed_time(batch.t)
        volume = parts["volume"].spatial_volume(noisy, t_embed, batch.v_embed)
        frustums = parts["volume"].frustums(volume, t_embed, batch.v_embed, batch.views)
        frustums = [level * told.view(-1, 1, 1, 1, 1) for level in frustums]
    embeds = clip_embedding(parts["image_encoder"], batch.photo)
    context = parts["conditioner"].embed_context(embeds, batch.v_embed[scene, batch.views]) * told.view(-1, 1, 1)
    pictures = batch.picture.repeat_interleave(targets, 0) * told.view(-1, 1, 1, 1)
    t = batch.t.repeat_interleave(targets)
    clean, noise = (x[scene, batch.views].flatten(0, 1) for x in (batch.latents, batch.noise))
    with VolumeDenoiser(parts["unet"], parts["depth_attention"]) as denoiser:
        sample = torch.cat([noisy[scene, batch.views].flatten(0, 1), pictures], 1)
        output = denoiser(sample, t, context, frustums)
    return F.mse_loss(output, scheduler.get_velocity(clean, noise, t))  # pyright: ignore[reportArgumentType]


def empty_frustums(config, count: int) -> list[Tensor]:
    """Return zeros in the shape of `MultiViewVolume.frustums`, as in the unconditional case."""
    depth, side = config.frustum_depth, config.latent_size
    return [
        torch.zeros(count, dim, depth >> level, side >> level, side >> level)
        for level, dim in enumerate(config.volume_dims)
    ]


def trained_autoencoder(scenes: Scenes, folder: Path, steps: int, seed: int) -> AutoencoderKL:
    """Return the prior's autoencoder, trained on gray backgrounds, after fine-tuning on white backgrounds."""
    if not (folder / "vae").is_dir():
        part = [np.concatenate([scenes.views[i], scenes.photos[i]]) for i in range(AUTOENCODER_SCENES)]
        pixels = np.concatenate(part)
        pictures = Pictures(pixels, np.zeros((len(pixels), 5), np.int16))  # no labels are needed
        vae = autoencoder.train(pictures, folder, steps, batch=16, seed=seed, init_from=TOYBOX / "vae")
        vae.save_pretrained(folder / "vae")
    return AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)


def trained_image_encoder(
    scenes: Scenes, folder: Path, steps: int, seed: int, init_from: Path | None, bf16: bool
) -> tuple[CLIPVisionModelWithProjection, ViewConditioner]:
    """Return the image encoder and the conditioner from the folder. Train both together if the folder lacks them."""
    if not (folder / "conditioner").is_dir():
        seeing = image_encoder.train(scenes, folder, steps, seed=seed, init_from=init_from, bf16=bf16)
        image_encoder.save(folder, seeing)
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32)
    return encoder, ViewConditioner.from_pretrained(folder / "conditioner")


def initial_parts(
    image_encoder: CLIPVisionModelWithProjection,
    conditioner: ViewConditioner,
    seed: int,
    init_from: Path | None = None,
) -> Parts:
    """Return all components as they are before the joint training.

    The image encoder and the conditioner come from their own training. Without `init_from`, the UNet starts from the
    prior and the volume networks are random. With `init_from`, the UNet and the volume networks come from this
    multi-view model.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = build_parts()
    if init_from is None:
        start_from_prior(parts["unet"], UNet2DConditionModel.from_pretrained(TOYBOX / "unet", dtype=torch.float32))
    else:
        for name in ("unet", "volume", "depth_attention"):
            earlier = type(parts[name]).from_pretrained(init_from / name, dtype=torch.float32)
            parts[name].load_state_dict(earlier.state_dict())
    parts["image_encoder"].load_state_dict(image_encoder.state_dict())
    parts["conditioner"].load_state_dict(conditioner.state_dict())
    # Freeze the image encoder: with the denoising loss alone, the encoder loses the facing direction of objects.
    parts["image_encoder"].requires_grad_(False)
    return parts


def train(arguments: argparse.Namespace) -> None:
    """Train in three stages as the module describes."""
    scenes, folder = load_dataset(arguments.data), arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.init_from is None:
        vae = trained_autoencoder(scenes, folder, arguments.autoencoder_steps, arguments.seed)
    else:
        vae = AutoencoderKL.from_pretrained(arguments.init_from / "vae", dtype=torch.float32)
    seeing = trained_image_encoder(
        scenes, folder, arguments.encoder_steps, arguments.seed, arguments.init_from, arguments.bf16
    )
    latents = encode_scenes(vae, scenes, folder / "latents.npz")
    parts, scheduler = initial_parts(*seeing, arguments.seed, arguments.init_from), build_multiview_scheduler()
    ring, sizes = parts["volume"].ring, (arguments.scenes, arguments.views)

    def losses_at(step: int) -> dict[str, Tensor]:
        batch = Batch(scenes, latents, ring, batch_rng(arguments.seed + 3, step), sizes)
        return {"loss": multiview_loss(parts, scheduler, batch)}

    optimize(
        parts, losses_at, Recipe(arguments.steps, arguments.peak), folder / "multiview.safetensors",
        lambda average: export(arguments.export, vae, average), arguments.export_every,
    )  # fmt: skip


def export(folder: Path, vae: AutoencoderKL, average: EMA) -> None:
    """Write the average as a pipeline folder."""
    parts = build_parts()
    parts.load_state_dict(average.values)
    save_multiview(folder, vae, parts)


def main() -> None:
    """Run the training from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("toybox-multiview-data"))
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-multiview-training"))
    parser.add_argument("--export", type=Path, default=Path("toybox-multiview-training/pipeline"))
    parser.add_argument("--export-every", type=int, default=500)
    parser.add_argument("--autoencoder-steps", type=int, default=700)
    parser.add_argument("--encoder-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--scenes", type=int, default=9, help="scenes per step")
    parser.add_argument("--views", type=int, default=2, help="views of each scene to denoise per step")
    parser.add_argument("--peak", type=float, default=7e-4, help="peak learning rate")
    parser.add_argument(
        "--init-from",
        type=Path,
        help="multi-view model to start from; its autoencoder is used unchanged",
    )
    parser.add_argument(
        "--bf16", action="store_true", help="train the image encoder in bfloat16, faster on CPUs with AMX"
    )
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
