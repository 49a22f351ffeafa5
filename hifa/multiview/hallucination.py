"""Hallucination of sixteen views of the object in a photo by a multi-view model (HiFA section 5.4)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils import logging
from torch import Tensor

from ..cameras import Camera
from ..photo_cutout import PreparedPicture, prepare_picture
from . import SyncDreamerPipeline, best_of_seeds, sweep_elevation
from .given_views import ring_cameras
from .input_image import prepare_image


MAX_SEEDS = 64
CALL_SETTINGS = ("num_inference_steps", "guidance_scale", "eta", "view_chunk")
FRAMING = ("crop_size", "alpha_threshold")
EMBEDDED_NOTE = "The views come from the embedded Toybox model, which supports Toybox objects only."

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Hallucination:
    """Views of the object in a photo.

    Args:
        images: `(views, H, W, 3)` in [0, 1] on white, at the cameras of the model's ring.
        elevation_deg: Elevation of the photo's camera above the horizon in degrees, given or estimated.
        note: Warnings for the user; empty if there are none.
    """

    images: Tensor
    elevation_deg: float
    note: str


@dataclass(frozen=True)
class Photo:
    """A photo as input of `HiFAPipeline`, with the settings for hallucinating views.

    Args:
        image: Input of `photo_cutout.prepare_picture`, or its result, which is used unchanged.
        elevation_deg: Elevation of the photo's camera above the horizon in degrees. With `None`,
            `multiview.selection.sweep_elevation` estimates the elevation from one sheet of views for each candidate.
            The note of the run contains the estimate.
        multiview: Model that generates sixteen views. With the Toybox prior, the default is the embedded model, which
            supports Toybox objects only.
        view_seeds: Number of sheets to generate, from 1 to 64. The best sheet is used, see `multiview.selection`.
        settings: Arguments for the call of `multiview`, from `CALL_SETTINGS` and `FRAMING`, such as
            `num_inference_steps` and `guidance_scale`.

    Raises:
        TypeError: If `multiview` is not a `SyncDreamerPipeline`.
        ValueError: If a setting is invalid.

    Examples:
        >>> pipe("a duck", image=Photo("duck.png", elevation_deg=20))
        >>> pipe(image=Photo("chicken.png", elevation_deg=30, multiview=SyncDreamerPipeline.from_single_file()))
    """

    image: PIL.Image.Image | str | Path | PreparedPicture
    elevation_deg: float | None = None
    multiview: SyncDreamerPipeline | None = None
    view_seeds: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.multiview, SyncDreamerPipeline | None):
            raise TypeError(f"multiview must be a SyncDreamerPipeline, got {type(self.multiview).__name__}.")
        unknown = sorted(set(self.settings) - {*CALL_SETTINGS, *FRAMING})
        if unknown:
            known = ", ".join((*CALL_SETTINGS, *FRAMING))
            raise ValueError(f"The settings of a Photo are {known}; got {', '.join(unknown)}.")
        seeds = self.view_seeds
        if not isinstance(seeds, int) or isinstance(seeds, bool) or not 1 <= seeds <= MAX_SEEDS:
            raise ValueError(f"view_seeds must be an integer from 1 to {MAX_SEEDS}, got {seeds!r}.")

    def prepare(self, embedded: SyncDreamerPipeline | None = None) -> "PreparedPhoto":
        """Check the photo and remove the background.

        Args:
            embedded: Multi-view model to use if the photo specifies none.

        Raises:
            ValueError: If there is no multi-view model, if the photo cannot be used, or if a setting is out of range.
        """
        multiview = self.multiview or embedded
        if multiview is None:
            raise ValueError(
                "image with this prior needs a model that hallucinates views, such as Photo(image, "
                "multiview=SyncDreamerPipeline.from_single_file()). Alternatively, pass sixteen views as views."
            )
        return PreparedPhoto(self, multiview)


class PreparedPhoto:
    """A photo without background and the model that hallucinates views. `Photo.prepare` creates the object.

    The first call of `hallucinate` generates the views.

    Args:
        photo: Photo with its settings.
        multiview: Model that generates the views.

    Raises:
        ValueError: If the photo cannot be used, or if a setting is out of range.
    """

    def __init__(self, photo: Photo, multiview: SyncDreamerPipeline):
        self.multiview, self.elevation_deg, self.view_seeds = multiview, photo.elevation_deg, photo.view_seeds
        self.settings = {name: value for name, value in photo.settings.items() if value is not None}
        checked = {name: value for name, value in self.settings.items() if name in CALL_SETTINGS}
        multiview.check_inputs(0.0 if self.elevation_deg is None else self.elevation_deg, **checked)
        # At least 256 pixels: a small model crops and downscales the object itself, which keeps the object sharper.
        image, size = photo.image, max(256, multiview.image_size)
        self.picture = image if isinstance(image, PreparedPicture) else prepare_picture(image, size)
        framing = {"crop_size": multiview.config.crop_size} | self.settings
        framing = {name: framing[name] for name in FRAMING if name in framing}
        self._input = prepare_image(self.picture.image, multiview.image_size, **framing)
        self._hallucination: Hallucination | None = None

    def model_input(self) -> PIL.Image.Image:
        """Return the input image of the multi-view model, RGB on white."""
        pixels = ((self._input.movedim(0, -1).numpy() + 1) * 127.5).round().clip(0, 255)
        return PIL.Image.fromarray(pixels.astype(np.uint8))

    def cameras(self, bound: float) -> tuple[Camera, ...]:
        """Return the cameras of the views in the world of a field.

        Args:
            bound: Half extent of the field in world units.
        """
        return ring_cameras(bound, self.multiview.ring, self.multiview.volume.config.half_extent)

    def hallucinate(self, generator: torch.Generator) -> Hallucination:
        """Generate the views. Further calls return the same views.

        Args:
            generator: CPU generator for all random numbers.
        """
        if self._hallucination is None:
            notes = [*self.picture.warnings, *([EMBEDDED_NOTE] if self.multiview.embedded else [])]
            for note in notes:
                logger.warning(note)
            images, elevation = self._choose(generator)
            if self.elevation_deg is None:
                notes.append(f"The elevation of the picture's camera was estimated: {elevation:g} degrees.")
                logger.warning(notes[-1])
            self._hallucination = Hallucination(images, elevation, " ".join(notes))
        return self._hallucination

    def _choose(self, generator: torch.Generator) -> tuple[Tensor, float]:
        """Return the images and the elevation of the best sheet."""
        image, elevation = self.picture.image, self.elevation_deg
        if elevation is not None and self.view_seeds == 1:
            call = self.multiview(image, elevation, generator=generator, output_type="pt", **self.settings)
            return call.images, elevation  # pyright: ignore[reportAttributeAccessIssue]
        seeds, found = torch.randint(2**31 - 1, (self.view_seeds,), generator=generator).tolist(), []
        if elevation is None:
            found = sweep_elevation(self.multiview, image, seed=seeds.pop(), **self.settings)[:1]
            elevation = found[0].elevation_deg
        found += best_of_seeds(self.multiview, image, elevation, seeds, **self.settings)
        return max(found, key=lambda candidate: candidate.score).images, elevation
