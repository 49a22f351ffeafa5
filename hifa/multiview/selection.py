"""Choosing among several sheets of one picture: the best seed, and the elevation when nobody knows it.

SyncDreamer's results differ from seed to seed, and its authors picked the best of four by eye. Here candidates are
ranked by consistency(sheet).score x input_agreement(sheet, picture, elevation), both in `consistency.py`.
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


# What SyncDreamer was trained on.
ELEVATIONS_DEG = (-10.0, 0.0, 10.0, 20.0, 30.0, 40.0)


@dataclass(frozen=True)
class Candidate:
    """A generated sheet and what it is worth.

    Args:
        images: `(views, H, W, 3)` in [0, 1].
        seed: Of its generator.
        elevation_deg: That the picture was taken to have.
        consistency: Agreement of the views with each other.
        agreement: With the picture, [0, 1].
    """

    images: Tensor
    seed: int
    elevation_deg: float
    consistency: Consistency
    agreement: float

    @property
    def score(self) -> float:
        """By which candidates are ranked, [0, 1]."""
        return self.consistency.score * self.agreement


def rank(
    pipe: SyncDreamerPipeline,
    image: PIL.Image.Image,
    trials: Iterable[tuple[int, float]],
    **settings: Any,
) -> list[Candidate]:
    """Generate a sheet for each (seed, elevation in degrees), best first.

    Args:
        settings: Of the pipeline's call: `num_inference_steps`, `crop_size`, ...
    """
    config = pipe.volume.config
    framing = {name: settings[name] for name in ("crop_size", "alpha_threshold") if name in settings}
    framing = {"crop_size": pipe.config.crop_size} | framing
    picture = prepare_image(image, pipe.image_size, **framing).movedim(0, -1) / 2 + 0.5
    candidates = []
    for seed, elevation in trials:
        generator = torch.Generator().manual_seed(seed)
        images = pipe(image, elevation, generator=generator, output_type="pt", **settings).images.cpu()
        seen = consistency(images, pipe.ring, config.half_extent)
        agreement = input_agreement(images, picture, elevation, pipe.ring, config.half_extent)
        candidates.append(Candidate(images, seed, elevation, seen, agreement))
    return sorted(candidates, key=lambda candidate: candidate.score, reverse=True)


def best_of_seeds(
    pipe: SyncDreamerPipeline, image: PIL.Image.Image, elevation_deg: float, seeds: Iterable[int], **settings: Any
) -> list[Candidate]:
    """One sheet for each seed, best first."""
    return rank(pipe, image, [(seed, elevation_deg) for seed in seeds], **settings)


def sweep_elevation(
    pipe: SyncDreamerPipeline,
    image: PIL.Image.Image,
    elevations_deg: Iterable[float] = ELEVATIONS_DEG,
    seed: int = 0,
    **settings: Any,
) -> list[Candidate]:
    """One sheet for each elevation from the same noise, best first: `[0].elevation_deg` is the estimate."""
    return rank(pipe, image, [(seed, elevation) for elevation in elevations_deg], **settings)
