"""Hallucination of sixteen views of the object in a photo by a multi-view model (HiFA section 5.4)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils import logging
from torch import Tensor

from ..cameras import Camera
from ..pictures import PreparedPicture, prepare_picture
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


class Photo:
    """A photo with the settings for hallucinating views.

    The constructor checks the photo and removes the background. The first call of `hallucinate` generates the views.

    Args:
        image: Input of `pictures.prepare_picture`, or its result, which is used unchanged.
        multiview: Model that generates the views.
        elevation_deg: Elevation of the photo's camera above the horizon in degrees. With `None`,
            `multiview.selection.sweep_elevation` estimates the elevation from one sheet of views for each candidate.
        view_seeds: Number of sheets to generate, from 1 to 64. The best sheet is used, see `multiview.selection`.
        settings: Arguments for the call of `multiview`, from `CALL_SETTINGS` and `FRAMING`.

    Raises:
        TypeError: If `multiview` is not a `SyncDreamerPipeline`.
        ValueError: If `multiview` is `None`, if the photo cannot be used, or if a setting is invalid.
    """

    def __init__(
        self,
        image: PIL.Image.Image | str | Path | PreparedPicture,
        multiview: SyncDreamerPipeline | None,
        elevation_deg: float | None = None,
        view_seeds: int = 1,
        settings: dict[str, Any] | None = None,
    ):
        self.multiview, self.elevation_deg, self.view_seeds = multiview, elevation_deg, view_seeds
        self.settings = {name: value for name, value in (settings or {}).items() if value is not None}
        self._check()
        # At least 256 pixels: a small model crops and downscales the object itself, which keeps the object sharper.
        prepared = isinstance(image, PreparedPicture)
        self.picture = image if prepared else prepare_picture(image, max(256, multiview.image_size))
        framing = {"crop_size": multiview.config.crop_size} | self.settings
        framing = {name: framing[name] for name in FRAMING if name in framing}
        self._seen = prepare_image(self.picture.image, multiview.image_size, **framing)
        self._hallucination: Hallucination | None = None

    def _check(self) -> None:
        if self.multiview is None:
            raise ValueError(
                "image with this prior needs multiview, a model that hallucinates views, such as "
                "SyncDreamerPipeline.from_single_file(). Alternatively, pass sixteen views as views."
            )
        if not isinstance(self.multiview, SyncDreamerPipeline):
            raise TypeError(f"multiview must be a SyncDreamerPipeline, got {type(self.multiview).__name__}.")
        unknown = sorted(set(self.settings) - {*CALL_SETTINGS, *FRAMING})
        if unknown:
            known = ", ".join((*CALL_SETTINGS, *FRAMING))
            raise ValueError(f"multiview_settings accepts {known}; got {', '.join(unknown)}.")
        seeds = self.view_seeds
        if not isinstance(seeds, int) or isinstance(seeds, bool) or not 1 <= seeds <= MAX_SEEDS:
            raise ValueError(f"view_seeds must be an integer from 1 to {MAX_SEEDS}, got {seeds!r}.")
        checked = {name: value for name, value in self.settings.items() if name in CALL_SETTINGS}
        self.multiview.check_inputs(0.0 if self.elevation_deg is None else self.elevation_deg, **checked)

    @property
    def seen(self) -> PIL.Image.Image:
        """Return the input image of the multi-view model, RGB on white."""
        pixels = ((self._seen.movedim(0, -1).numpy() + 1) * 127.5).round().clip(0, 255)
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
            return call.images, elevation
        seeds, found = torch.randint(2**31 - 1, (self.view_seeds,), generator=generator).tolist(), []
        if elevation is None:
            found = sweep_elevation(self.multiview, image, seed=seeds.pop(), **self.settings)[:1]
            elevation = found[0].elevation_deg
        found += best_of_seeds(self.multiview, image, elevation, seeds, **self.settings)
        return max(found, key=lambda candidate: candidate.score).images, elevation
