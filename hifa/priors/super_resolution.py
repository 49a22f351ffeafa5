"""The prior of a model that enlarges images: stage 2 of DeepFloyd IF, from 64 to 256 pixels (HiFA section 5.3 names
guidance by more than stage 1 as a future direction)."""

from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from .denoising import add_noise
from .guidance import Guidance
from .pixel_diffusion import PixelDiffusionPrior


SCALE, IMAGE_SIZE = 4, 256
NOISE_LEVEL = 250  # of the small image, as in IF's own pipeline


class SuperResolutionPrior(PixelDiffusionPrior):
    """z is the image itself, in [-1, 1], and the UNet sees beside it what it looks like small: its own quarter size,
    enlarged and noised. It adds detail to what is there and makes nothing new, so a run begins with stage 1.

    Args:
        unet, scheduler: As for `PixelDiffusionPrior`.
        image_noising_scheduler: Has the noise of the small image; `scheduler` without it, which is the same in IF.

    Raises:
        ValueError: If the UNet does not take a small image with its noise level.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        image_noising_scheduler: DDIMScheduler | None = None,
    ):
        super().__init__(unet, scheduler, beside=3)
        self.small_alpha_cumprod = float((image_noising_scheduler or scheduler).alphas_cumprod[NOISE_LEVEL])

    @property
    def image_size(self) -> int:
        return self.unet.config.sample_size or IMAGE_SIZE

    def beside(self, z: Tensor, generator: torch.Generator | None) -> Tensor:
        # The enlargement is IF's own, from corner to corner.
        small = F.interpolate(z.detach(), scale_factor=1 / SCALE, mode="bilinear", antialias=True)
        large = F.interpolate(small, z.shape[-2:], mode="bilinear", align_corners=True)
        noise = randn_tensor(large.shape, generator=generator, device=large.device, dtype=large.dtype)
        return add_noise(large, noise, self.small_alpha_cumprod)

    def conditions(self, guidance: Guidance) -> dict[str, Any]:
        embeds = guidance.embeds
        level = torch.full((len(embeds),), NOISE_LEVEL, device=embeds.device)
        return super().conditions(guidance) | {"class_labels": level}


def enlarges(unet: UNet2DConditionModel) -> bool:
    """Whether a UNet of pixels takes a small image with its noise level, as stage 2 of DeepFloyd IF does."""
    return unet.config.in_channels == 6 and unet.config.class_embed_type == "timestep"
