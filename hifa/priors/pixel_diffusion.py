"""Prior of a pixel-space diffusion model: stage 1 of DeepFloyd IF with 64 x 64 pixels (HiFA section 5.3)."""

# The keys of `config` are attributes, which diffusers does not declare.
# pyright: reportAttributeAccessIssue=false

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from .prior import DiffusionPrior


class PixelDiffusionPrior(DiffusionPrior):
    """Pixel-space prior, where z is the image itself, in [-1, 1].

    If the UNet has six output channels, the last three, which are variances, are ignored.

    Args:
        unet, scheduler: diffusers components. If `thresholding` is set in the scheduler configuration, as for IF,
            estimates are limited by dynamic thresholding (Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion
            Models", section 2.3). Otherwise, if `clip_sample` is set, estimates are clipped to [-1, 1].
        concat_channels: Number of additional input channels of the UNet.

    Raises:
        ValueError: If the UNet has a different number of input channels, or the prediction type is unknown.
    """

    def __init__(self, unet: UNet2DConditionModel, scheduler: DDIMScheduler, concat_channels: int = 0):
        super().__init__(unet, scheduler, channels=3, concat_channels=concat_channels)
        self.settings = scheduler.config

    @property
    def image_size(self) -> int:
        """Return the height and width of the images that the prior takes, in pixels."""
        return self.unet.config.sample_size

    def encode(self, x: Tensor) -> Tensor:
        """Return z = 2 x - 1: `(B, 3, H, W)` in [0, 1] -> `(B, 3, H, W)` in [-1, 1]."""
        return 2 * x - 1

    def decode(self, z: Tensor) -> None:
        """Return `None`, because z is the image itself."""
        return None

    def limit(self, z_hat: Tensor) -> Tensor:
        """Threshold or clip the predicted image, as the scheduler configuration specifies."""
        if self.settings.thresholding:
            return dynamic_threshold(z_hat, self.settings.dynamic_thresholding_ratio, self.settings.sample_max_value)
        return z_hat.clamp(-1, 1) if self.settings.clip_sample else z_hat


def dynamic_threshold(x: Tensor, ratio: float, largest: float) -> Tensor:
    """Clip to [-s, s] and divide by s (Saharia et al. 2022, section 2.3).

    s is the `ratio` quantile of the absolute values of an image, clamped to [1, `largest`].

    Args:
        x: `(B, C, H, W)`. Each image has its own threshold s.
        ratio: Quantile, in [0, 1].
        largest: Upper limit of s.
    """
    s = torch.quantile(x.flatten(1).abs(), ratio, dim=1).clamp(1, largest)[:, None, None, None]
    return x.clamp(-s, s) / s
