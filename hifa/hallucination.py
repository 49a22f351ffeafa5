"""From a photo to sixteen views of its object, by a multi-view model (HiFA section 5.4)."""

from typing import Any

import PIL.Image
import torch
from diffusers.utils import logging

from .multiview import SyncDreamerPipeline
from .pictures import prepare_picture


logger = logging.get_logger(__name__)


def check_photo_inputs(image: Any, views: Any, elevation_deg: float | None, multiview: Any) -> None:
    """Refuse what cannot become views, before any work.

    Raises:
        ValueError: If views are given as well, or the elevation or the multi-view model is missing.
        TypeError: If `multiview` is something else.
    """
    if views is not None:
        raise ValueError("Give either image, of which views are hallucinated, or views, not both.")
    if multiview is None:
        raise ValueError(
            "image needs multiview, which hallucinates its views, such as SyncDreamerPipeline.from_single_file(); "
            "or give sixteen views from elsewhere as views."
        )
    if not isinstance(multiview, SyncDreamerPipeline):
        raise TypeError(f"multiview must be a SyncDreamerPipeline, got {type(multiview).__name__}.")
    if elevation_deg is None:
        raise ValueError(
            "image needs elevation_deg, of its camera above the horizon: 0 is level, 30 a little from above. "
            "hifa.multiview.sweep_elevation estimates it."
        )
    multiview.check_inputs(elevation_deg)


def hallucinate_views(
    multiview: SyncDreamerPipeline,
    image: PIL.Image.Image,
    elevation_deg: float,
    generator: torch.Generator,
    settings: dict[str, Any],
) -> list[PIL.Image.Image]:
    """Views of the object in a photo from the cameras of `multiview.ring`.

    Args:
        image: See `pictures.prepare_picture`.
        elevation_deg: Of its camera above the horizon, degrees.
        generator: Source of all randomness.
        settings: Of the call of `multiview`.
    """
    prepared = prepare_picture(image, multiview.image_size)
    for warning in prepared.warnings:
        logger.warning(warning)
    return multiview(prepared.image, elevation_deg, generator=generator, **settings).images
