"""Train the image encoder and the conditioner of the Toybox multi-view model.

    python -m hifa.toybox.training.image_encoder --data toybox-multiview-data --output-dir toybox-training

The image encoder replaces CLIP, which SyncDreamer uses pretrained. Two auxiliary networks provide the training signal
and are discarded after the training:

- The painter predicts each view at 16x16 pixels from the context that the UNet receives for this view. With the
  painter loss, the encoder learns the kind, the colors and the size of an object.
- The namer predicts kinds, colors and the azimuth of the photo from the embedding. The painter loss alone is not
  enough to learn the facing direction, because blurred views have nearly the same painter loss.

Training is seeded and resumes from `image_encoder.safetensors`.
"""

import argparse
import math
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...multiview import ViewRing
from ...multiview.architecture import build_conditioner, build_image_encoder
from ...multiview.conditioning import clip_embedding, view_embedding
from .. import world
from .autoencoder import to_images
from .loop import Parts, Recipe, batch_rng, optimize
from .multiview_dataset import PhotoDraw, Scenes, draw_photos, drawn_pixels, load_dataset
from .multiview_models import ARCHITECTURE


COARSE = 16  # pixels per side of the painted views
# Factor on the initial weights of the view embedding, which has 4 values. The embedding of the photo has 128 values.
VIEW_SCALE = 8.0
HARMONICS = (1, 2, 4)  # multiples of the azimuth: a table has a symmetry of half a turn, a cube of a quarter turn
NAMED = (
    len(world.KINDS),
    len(world.COLORS),
    len(world.KINDS) + 1,
    len(world.COLORS) + 1,
)  # the last two have a class for no object
NAMING_WEIGHT, FACING_WEIGHT = 0.03, 1.0


def build_model(init_from: Path | None = None) -> Parts:
    """Build the image encoder, the conditioner, the painter and the namer.

    Args:
        init_from: Folder of a multi-view model whose image encoder and conditioner are the starting point.
    """
    conditioner = build_conditioner(ARCHITECTURE)
    with torch.no_grad():
        conditioner.context_proj[0].weight[:, -conditioner.config.view_dim :] *= VIEW_SCALE  # pyright: ignore[reportIndexIssue]
    dim = ARCHITECTURE.cross_attention_dim
    painter = nn.Sequential(nn.Linear(dim, 512), nn.SiLU(), nn.Linear(512, 3 * COARSE**2))
    encoder = build_image_encoder(ARCHITECTURE.clip)
    embeddings = encoder.vision_model.embeddings
    with torch.no_grad():
        embeddings.position_embedding.weight[1:] = waves(8, ARCHITECTURE.clip.hidden_size)
    if init_from is not None:
        for name, part in (("image_encoder", encoder), ("conditioner", conditioner)):
            earlier = type(part).from_pretrained(init_from / name, dtype=torch.float32)
            part.load_state_dict(earlier.state_dict())
    namer = nn.Linear(ARCHITECTURE.clip.projection_dim, sum(NAMED) + 2 * len(HARMONICS))
    return Parts({"image_encoder": encoder, "conditioner": conditioner, "painter": painter, "namer": namer})


def waves(side: int, dim: int) -> Tensor:
    """Return position embeddings of `side`^2 patches: `(side^2, dim)` sines and cosines of row and column.

    CLIP initializes position embeddings with noise of standard deviation 0.02, and patch embeddings are twenty times
    larger. A short training would end before the encoder had learned the positions of patches.
    """
    frequency = math.pi * 2.0 ** torch.linspace(-1, math.log2(side) - 1, dim // 4)  # from half a turn per side upward
    phase = torch.linspace(-1, 1, side)[:, None] * frequency
    line = torch.cat([phase.sin(), phase.cos()], 1)  # (side, dim / 2)
    return torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], 2).reshape(side**2, dim)


def coarse_views(scenes: Scenes) -> Tensor:
    """Return the views reduced to `(n, 16, 3, 16, 16)` float16 in [-1, 1]."""
    parts = [F.avg_pool2d(to_images(torch.from_numpy(views)), 64 // COARSE).half() for views in scenes.views]
    return torch.stack(parts)


class Batch(NamedTuple):
    """Photos, and the targets to predict from the photos.

    Args:
        images: `(B, 3, 64, 64)` in [-1, 1].
        v_embed: `(B, 16, 4)` from `view_embedding`.
        views: `(B, 16, 3, 16, 16)`, starting with the view of the photo.
        names: `(B, 4)` int64: kind, color, kind below, color below. For a single object, the last two are the
            additional last class.
        facing: `(B, 2 len(HARMONICS))` sines and cosines of multiples of the photo's azimuth.
    """

    images: Tensor
    v_embed: Tensor
    views: Tensor
    names: Tensor
    facing: Tensor


def draw_batch(scenes: Scenes, coarse: Tensor, rng: np.random.Generator, batch: int) -> Batch:
    """Draw `batch` random photos."""
    draw = draw_photos(scenes, rng, batch)
    images = to_images(torch.from_numpy(drawn_pixels(scenes, draw)))
    v_embed = view_embedding(torch.from_numpy(scenes.elevation_deg[draw.scene, draw.photo]), ViewRing())
    views = coarse[torch.from_numpy(draw.scene)[:, None], torch.from_numpy(draw.order)].float()
    mirrored = torch.from_numpy(draw.mirrored)[:, None, None, None, None]
    return Batch(
        images, v_embed, torch.where(mirrored, views.flip(-1), views), names_of(scenes, draw), facing(scenes, draw)
    )


def names_of(scenes: Scenes, draw: PhotoDraw) -> Tensor:
    """Return the class indices `(B, 4)` int64, as in `Batch`."""
    names = torch.from_numpy(scenes.labels[draw.scene]).long()
    nothing = torch.tensor(NAMED) - 1
    return torch.where(names < 0, nothing, names)


def facing(scenes: Scenes, draw: PhotoDraw) -> Tensor:
    """Return the targets `(B, 2 len(HARMONICS))`, as in `Batch`. A mirrored photo has the negative azimuth."""
    step = 2 * math.pi / scenes.views.shape[1]
    azimuth = np.radians(scenes.azimuth_deg[draw.scene]) + step * scenes.first_view[draw.scene, draw.photo]
    angles = np.where(draw.mirrored, -azimuth, azimuth)[:, None] * np.array(HARMONICS)
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], 1)).float()


def losses(model: Parts, batch: Batch, bf16: bool = False) -> dict[str, Tensor]:
    """Return the weighted sum of the losses, and its terms.

    Args:
        model: Result of `build_model`.
        batch: Photos and targets.
        bf16: Run the encoder in bfloat16, which is a third faster on a CPU with AMX.

    Returns:
        `loss`; `painting`: mean squared error of the painted views, values in [-1, 1]; `naming`: sum of the four
        cross-entropies, nats; `facing`: mean squared error of the sines and cosines.
    """
    # Fused attention has a slow backward pass in bfloat16. Plain matrix products are slow in float32.
    attention = SDPBackend.MATH if bf16 else SDPBackend.FLASH_ATTENTION
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), sdpa_kernel(attention):
        embeds = clip_embedding(model["image_encoder"], batch.images)
    embeds = embeds.float()
    painted = model["painter"](model["conditioner"].embed_context(embeds, batch.v_embed))
    painting = F.mse_loss(painted.view_as(batch.views), batch.views)
    *named, told = model["namer"](embeds).split([*NAMED, 2 * len(HARMONICS)], 1)
    terms = (F.cross_entropy(logits, name) for logits, name in zip(named, batch.names.T, strict=True))
    naming = cast(Tensor, sum(terms))
    facing = F.mse_loss(told, batch.facing)
    loss = painting + NAMING_WEIGHT * naming + FACING_WEIGHT * facing
    return {"loss": loss, "painting": painting, "naming": naming, "facing": facing}


def train(
    scenes: Scenes,
    folder: Path,
    steps: int,
    batch: int = 32,
    seed: int = 0,
    peak: float = 1e-3,
    init_from: Path | None = None,
    bf16: bool = False,
) -> Parts:
    """Train and return the modules `image_encoder` and `conditioner`."""
    folder.mkdir(parents=True, exist_ok=True)
    coarse = coarse_views(scenes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(init_from)

    def losses_at(step: int) -> dict[str, Tensor]:
        return losses(model, draw_batch(scenes, coarse, batch_rng(seed + 2, step), batch), bf16)

    average = optimize(model, losses_at, Recipe(steps, peak, weight_decay=1e-2), folder / "image_encoder.safetensors")
    model.load_state_dict(average.values)
    del model["painter"], model["namer"]
    return model


def save(folder: Path, model: Parts) -> None:
    """Save the modules as the subfolders `image_encoder` and `conditioner`."""
    for name in ("image_encoder", "conditioner"):
        model[name].save_pretrained(folder / name)


def main() -> None:
    """Run the training from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("toybox-multiview-data"))
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-training"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init-from", type=Path, help="folder of a multi-view model to start from")
    parser.add_argument("--bf16", action="store_true", help="run the encoder in bfloat16, faster on CPUs with AMX")
    arguments = parser.parse_args()
    model = train(
        load_dataset(arguments.data), arguments.output_dir, arguments.steps, arguments.batch, arguments.seed,
        init_from=arguments.init_from, bf16=arguments.bf16,
    )  # fmt: skip
    save(arguments.output_dir, model)


if __name__ == "__main__":
    main()
