"""Prior of a super-resolution model: stage 2 of DeepFloyd IF, from 64 to 256 pixels.

HiFA section 5.3 names guidance by later stages of IF as a future direction.
"""

# The keys of `config` are attributes, which diffusers does not declare.
# pyright: reportAttributeAccessIssue=false

from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from .denoising import add_noise
from .pixel_diffusion import PixelDiffusionPrior
from .prompt_guidance import Guidance


SCALE, IMAGE_SIZE = 4, 256
NOISE_LEVEL = 250  # timestep of the noise in the small image, as in the IF pipeline


class SuperResolutionPrior(PixelDiffusionPrior):
    """Super-resolution prior, where z is the image itself, in [-1, 1].

    The UNet also takes a small image: z downsampled to a quarter of its size, upsampled again, and noised. The prior
    adds detail to existing content and creates no new content, so a run starts with stage 1.

    Args:
        unet, scheduler: As for `PixelDiffusionPrior`.
        image_noising_scheduler: Scheduler of the noise in the small image. The default is `scheduler`, which has the
            same noise levels in IF.

    Raises:
        ValueError: If the UNet does not take a small image in addition to z, or the prediction type is unknown.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        image_noising_scheduler: SchedulerMixin | None = None,
    ):
        super().__init__(unet, scheduler, concat_channels=3)
        self.small_alpha_cumprod = float((image_noising_scheduler or scheduler).alphas_cumprod[NOISE_LEVEL])

    @property
    def image_size(self) -> int:
        """Return the height and width of the enlarged images, in pixels."""
        return self.unet.config.sample_size or IMAGE_SIZE

    def concat_cond(self, z: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the small image, upsampled and noised, `(1, 3, H, W)`."""
        # Upsample with aligned corners, as the IF pipeline does.
        small = F.interpolate(z.detach(), scale_factor=1 / SCALE, mode="bilinear", antialias=True)
        large = F.interpolate(small, z.shape[-2:], mode="bilinear", align_corners=True)
        noise = randn_tensor(large.shape, generator=generator, device=large.device, dtype=large.dtype)
        return add_noise(large, noise, self.small_alpha_cumprod)

    def conditions(self, guidance: Guidance) -> dict[str, Any]:
        """Return the embeddings, and the noise level of the small image."""
        embeds = guidance.prompts.tokens
        level = torch.full((len(embeds),), NOISE_LEVEL, device=embeds.device)
        return super().conditions(guidance) | {"class_labels": level}


def enlarges(unet: UNet2DConditionModel) -> bool:
    """Return whether a pixel-space UNet takes a small image with a noise level, as stage 2 of DeepFloyd IF does."""
    return unet.config.in_channels == 6 and unet.config.class_embed_type == "timestep"
