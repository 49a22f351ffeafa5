"""Selection among several sheets of one image: the best seed, and the elevation if it is unknown.

SyncDreamer's results vary with the seed, and its authors selected the best of four by eye. Here, candidates are ranked
by consistency(sheet).score x input_agreement(sheet, image, elevation), both from `consistency.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from .consistency import Consistency, consistency, input_agreement
from .input_image import prepare_image
from .pipeline_syncdreamer import SyncDreamerPipeline


# Training range of SyncDreamer.
ELEVATIONS_DEG = (-10.0, 0.0, 10.0, 20.0, 30.0, 40.0)


@dataclass(frozen=True)
class Candidate:
    """Generated sheet with its scores.

    Args:
        images: `(views, H, W, 3)` in [0, 1].
        seed: Seed of the generator.
        elevation_deg: Assumed elevation of the input image in degrees.
        consistency: Agreement of the views with each other.
        agreement: Agreement with the input image in [0, 1].
    """

    images: Tensor
    seed: int
    elevation_deg: float
    consistency: Consistency
    agreement: float

    @property
    def score(self) -> float:
        """Return the score in [0, 1] for ranking candidates."""
        return self.consistency.score * self.agreement


def rank(
    pipe: SyncDreamerPipeline,
    image: PIL.Image.Image,
    trials: Iterable[tuple[int, float]],
    **settings: Any,
) -> list[Candidate]:
    """Generate a sheet for each pair of seed and elevation in degrees, and sort the sheets by score, best first.

    Args:
        pipe: Multi-view model.
        image: Input image.
        trials: Pairs (seed, elevation in degrees).
        settings: Arguments for the pipeline call: `num_inference_steps`, `crop_size`, ...
    """
    config = pipe.volume.config
    framing = {name: settings[name] for name in ("crop_size", "alpha_threshold") if name in settings}
    framing = {"crop_size": pipe.config.crop_size} | framing
    picture = prepare_image(image, pipe.image_size, **framing).movedim(0, -1) / 2 + 0.5
    candidates = []
    for seed, elevation in trials:
        generator = torch.Generator().manual_seed(seed)
        images = pipe(image, elevation, generator=generator, output_type="pt", **settings).images.cpu()  # pyright: ignore[reportAttributeAccessIssue]
        seen = consistency(images, pipe.ring, config.half_extent)
        agreement = input_agreement(images, picture, elevation, pipe.ring, config.half_extent)
        candidates.append(Candidate(images, seed, elevation, seen, agreement))
    return sorted(candidates, key=lambda candidate: candidate.score, reverse=True)


def best_of_seeds(
    pipe: SyncDreamerPipeline, image: PIL.Image.Image, elevation_deg: float, seeds: Iterable[int], **settings: Any
) -> list[Candidate]:
    """Generate one sheet for each seed, and sort the sheets by score, best first."""
    return rank(pipe, image, [(seed, elevation_deg) for seed in seeds], **settings)


def sweep_elevation(
    pipe: SyncDreamerPipeline,
    image: PIL.Image.Image,
    elevations_deg: Iterable[float] = ELEVATIONS_DEG,
    seed: int = 0,
    **settings: Any,
) -> list[Candidate]:
    """Generate one sheet for each elevation with the same seed, and sort the sheets by score, best first.

    The elevation of the first candidate is the estimate.
    """
    return rank(pipe, image, [(seed, elevation) for elevation in elevations_deg], **settings)
