r"""Train the Toybox multi-view model, a small SyncDreamer, on the rings of `multiview_dataset`.

    python -m hifa.toybox.multiview_dataset --output-dir toybox-multiview-data
    python -m hifa.toybox.train_multiview --data toybox-multiview-data --output-dir toybox-multiview-training

In three stages, each kept in the output folder and skipped or resumed when run again: the prior's autoencoder is
taught white backgrounds (`vae`), image encoder and conditioner learn to see (`image_encoder` and `conditioner`, see
`train_image_encoder`), and all parts but these two encoders are trained together, the UNet from the prior's. Seeded.
`--export DIR` gets the moving average as a pipeline folder every `--export-every` steps.

The embedded weights were made in four rounds, each from the one before. The third, 40 minutes for the encoder and as
long again for the rest on one busy core with AMX, is the one in which they learnt which way an object faces: a longer
training of the encoder, more weight on the facing, and an encoder that stays as it is while the rest is trained.

    python -m hifa.toybox.multiview_dataset --output-dir D --scenes 5000
    python -m hifa.toybox.train_multiview --data D --output-dir T --init-from hifa/toybox/multiview_weights --bf16 \
        --encoder-steps 12000 --steps 3600 --export T/pipeline

The first 8,900 steps of its encoder saw the first 1,900 of these scenes only, which were all there were by then. The
fourth took other scenes and less time, 25 minutes and half an hour of one core, and its losses were falling too:

    python -m hifa.toybox.multiview_dataset --output-dir D --scenes 4000 --first-seed 10005000
    python -m hifa.toybox.train_multiview --data D --output-dir T --init-from hifa/toybox/multiview_weights --bf16 \
        --encoder-steps 6000 --steps 2200 --seed 1 --export T/pipeline
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from ..multiview import ViewRing
from ..multiview.conditioning import ViewConditioner, clip_embedding, view_embedding
from ..multiview.denoiser import VolumeDenoiser
from . import train_autoencoder, train_image_encoder
from .dataset import Pictures
from .multiview_dataset import Scenes, draw_photos, drawn_pixels, load_dataset
from .multiview_models import build_multiview_scheduler, build_parts, save_multiview, start_from_prior
from .train_autoencoder import to_images
from .training import Average, Recipe, batch_rng, optimise


PRIOR = Path(__file__).parent / "weights"
AUTOENCODER_SCENES = 400  # that the autoencoder is trained on; it has seen the objects before
UNCONDITIONAL_SHARE = 0.05  # of the scenes that nothing is told of, for classifier-free guidance
BLIND_SHARE, BLIND_FROM = 0.8, 950  # of the steps that have no volume, and their timesteps
NOISY_SHARE, NOISY_FROM = 0.6, 800  # of the timesteps, where the photo decides and not the noisy views


class Batch:
    """What a step is trained on: S scenes, n of the sixteen views of each to be denoised.

    Most steps are `blind`: where all is noise the volumes show nothing, and a step without them takes half the time.

    Args:
        latents: `(S, 16, 4, 16, 16)` clean, scaled, from the view of the photo on.
        picture: `(S, 4, 16, 16)` latent of the photo, unscaled.
        photo: `(S, 3, 64, 64)` in [-1, 1].
        v_embed: `(S, 16, 4)`.
        noise: As `latents`.
        t: `(S,)`.
        views: `(S, n)`.
        told: `(S,)` bool: False where the model is told nothing.
        blind: No volume is made.
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
    """Latent means of a training set, float16; behind the plain ones those of the mirrored pictures.

    Args:
        views: `(2, n, 16, 4, 16, 16)` scaled.
        photos: `(2, n, p, 4, 16, 16)` unscaled, as the UNet is shown them.
    """

    def __init__(self, views: Tensor, photos: Tensor):
        self.views, self.photos = views, photos


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, scenes: Scenes, cache: Path) -> SceneLatents:
    """The latents, kept in `cache`."""
    if not cache.exists():
        views, photos = [], []
        for index in range(len(scenes)):
            images = to_images(torch.from_numpy(np.concatenate([scenes.views[index], scenes.photos[index]])))
            means = torch.stack([vae.encode(x.contiguous()).latent_dist.mean for x in (images, images.flip(-1))])
            views.append((means[:, : scenes.views.shape[1]] * vae.config.scaling_factor).half())
            photos.append(means[:, scenes.views.shape[1] :].half())
        np.savez(cache, views=torch.stack(views, 1).numpy(), photos=torch.stack(photos, 1).numpy())
    with np.load(cache) as file:
        latents = SceneLatents(torch.from_numpy(file["views"]), torch.from_numpy(file["photos"]))
    if latents.views.shape[1] != len(scenes):
        raise ValueError(f"{cache} is of {latents.views.shape[1]} scenes, not {len(scenes)}; remove it.")
    return latents


def draw_timesteps(rng: np.random.Generator, count: int) -> np.ndarray:
    """`(count,)` timesteps: most of them from the noisiest fifth, which is the hardest, the others from all."""
    noisy = rng.random(count) < NOISY_SHARE
    return np.where(noisy, rng.integers(NOISY_FROM, 1000, count), rng.integers(0, 1000, count))


def multiview_loss(parts: nn.ModuleDict, scheduler: DDIMScheduler, batch: Batch) -> Tensor:
    """Mean squared error of v for the chosen views (Salimans and Ho 2022, appendix D; SyncDreamer section 3.2).

    All views of a scene have the same timestep, and its volume is made from all of them.
    """
    count, targets = batch.views.shape
    scene = torch.arange(count)[:, None]
    t_all = batch.t.repeat_interleave(batch.latents.shape[1])
    noisy = scheduler.add_noise(batch.latents.flatten(0, 1), batch.noise.flatten(0, 1), t_all)
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
    return F.mse_loss(output, scheduler.get_velocity(clean, noise, t))


def empty_frustums(config, count: int) -> list[Tensor]:
    """Zeros in the shape of `MultiViewVolume.frustums`, as for the unconditional case."""
    depth, side = config.frustum_depth, config.latent_size
    return [
        torch.zeros(count, dim, depth >> level, side >> level, side >> level)
        for level, dim in enumerate(config.volume_dims)
    ]


def trained_autoencoder(scenes: Scenes, folder: Path, steps: int, seed: int) -> AutoencoderKL:
    """The prior's autoencoder, taught pictures on white: the prior's have gray backgrounds only."""
    if not (folder / "vae").is_dir():
        part = [np.concatenate([scenes.views[i], scenes.photos[i]]) for i in range(AUTOENCODER_SCENES)]
        pixels = np.concatenate(part)
        pictures = Pictures(pixels, np.zeros((len(pixels), 5), np.int16))  # no labels are needed
        vae = train_autoencoder.train(pictures, folder, steps, batch=16, seed=seed, init_from=PRIOR / "vae")
        vae.save_pretrained(folder / "vae")
    return AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)


def trained_image_encoder(
    scenes: Scenes, folder: Path, steps: int, seed: int, init_from: Path | None, bf16: bool
) -> tuple[CLIPVisionModelWithProjection, ViewConditioner]:
    """It and the conditioner, which were trained together."""
    if not (folder / "conditioner").is_dir():
        seeing = train_image_encoder.train(scenes, folder, steps, seed=seed, init_from=init_from, bf16=bf16)
        train_image_encoder.save(folder, seeing)
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32)
    return encoder, ViewConditioner.from_pretrained(folder / "conditioner")


def initial_parts(
    image_encoder: CLIPVisionModelWithProjection,
    conditioner: ViewConditioner,
    seed: int,
    init_from: Path | None = None,
) -> nn.ModuleDict:
    """Image encoder and conditioner from their own training; the UNet from the prior and the volumes random, or both
    from an earlier multi-view model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = build_parts()
    if init_from is None:
        start_from_prior(parts["unet"], UNet2DConditionModel.from_pretrained(PRIOR / "unet", dtype=torch.float32))
    else:
        for name in ("unet", "volume", "depth_attention"):
            earlier = type(parts[name]).from_pretrained(init_from / name, dtype=torch.float32)
            parts[name].load_state_dict(earlier.state_dict())
    parts["image_encoder"].load_state_dict(image_encoder.state_dict())
    parts["conditioner"].load_state_dict(conditioner.state_dict())
    # What it knows is asked for by losses of its own: by this one alone it forgets which way a photo faces.
    parts["image_encoder"].requires_grad_(False)
    return parts


def train(arguments: argparse.Namespace) -> None:
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

    optimise(
        parts, losses_at, Recipe(arguments.steps, arguments.peak), folder / "multiview.safetensors",
        lambda average: export(arguments.export, vae, average), arguments.export_every,
    )  # fmt: skip


def export(folder: Path, vae: AutoencoderKL, average: Average) -> None:
    parts = build_parts()
    parts.load_state_dict(average.values)
    save_multiview(folder, vae, parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("toybox-multiview-data"))
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-multiview-training"))
    parser.add_argument("--export", type=Path, default=Path("toybox-multiview-training/pipeline"))
    parser.add_argument("--export-every", type=int, default=500)
    parser.add_argument("--autoencoder-steps", type=int, default=700)
    parser.add_argument("--encoder-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--scenes", type=int, default=9, help="in a step")
    parser.add_argument("--views", type=int, default=2, help="of each scene that are denoised in a step")
    parser.add_argument("--peak", type=float, default=7e-4, help="learning rate")
    parser.add_argument(
        "--init-from",
        type=Path,
        help="an earlier multi-view model: its autoencoder is kept, all else begins with it",
    )
    parser.add_argument("--bf16", action="store_true", help="first train the encoder in bfloat16: faster with AMX")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
