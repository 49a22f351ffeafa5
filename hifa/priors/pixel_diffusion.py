"""The prior of a pixel-space diffusion model: stage 1 of DeepFloyd IF, 64x64 (HiFA section 5.3)."""

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from .prior import DiffusionPrior


class PixelDiffusionPrior(DiffusionPrior):
    """z is the image itself, in [-1, 1]. The second half of a six-channel output, the variances, is left alone.

    Args:
        unet, scheduler: diffusers components. With `thresholding` in the scheduler's settings, as IF has it, estimates
            are limited dynamically (Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models", section
            2.3); else with `clip_sample` they are clipped.
        beside: Further channels that the UNet takes.

    Raises:
        ValueError: If the UNet takes something else.
    """

    def __init__(self, unet: UNet2DConditionModel, scheduler: DDIMScheduler, beside: int = 0):
        super().__init__(unet, scheduler, channels=3, beside=beside)
        self.settings = scheduler.config

    @property
    def image_size(self) -> int:
        return self.unet.config.sample_size

    def encode(self, x: Tensor) -> Tensor:
        return 2 * x - 1

    def decode(self, z: Tensor) -> None:
        return None

    def limit(self, z_hat: Tensor) -> Tensor:
        if self.settings.thresholding:
            return dynamic_threshold(z_hat, self.settings.dynamic_thresholding_ratio, self.settings.sample_max_value)
        return z_hat.clamp(-1, 1) if self.settings.clip_sample else z_hat


def dynamic_threshold(x: Tensor, ratio: float, largest: float) -> Tensor:
    """Clip to [-s, s] and divide by s, where s is the `ratio` quantile of the absolute values, between 1 and `largest`
    (Saharia et al. 2022, section 2.3).

    Args:
        x: `(B, C, H, W)`; every image has a threshold of its own.
    """
    s = torch.quantile(x.flatten(1).abs(), ratio, dim=1).clamp(1, largest)[:, None, None, None]
    return x.clamp(-s, s) / s
