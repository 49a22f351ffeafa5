"""Selection of the prior class and of the preset, based on the components of a model."""

from typing import TYPE_CHECKING

from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, SchedulerMixin, UNet2DConditionModel

from ..config import HiFAConfig
from .latent_diffusion import LatentDiffusionPrior
from .multiview_diffusion import MultiviewDiffusionPrior
from .pixel_diffusion import PixelDiffusionPrior
from .prior import DiffusionPrior
from .sdxl import SDXLPrior, is_sdxl
from .super_resolution import SuperResolutionPrior, enlarges


if TYPE_CHECKING:
    from .view_attention import CameraEmbedding

SMALL = 64  # pixels per side; larger priors get the presets for a GPU


def build_prior(
    vae: AutoencoderKL | AutoencoderTiny | None,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    image_noising_scheduler: SchedulerMixin | None = None,
    camera_embedding: "CameraEmbedding | None" = None,
    image_size: int = 0,
) -> DiffusionPrior:
    """Build the prior of a model.

    Args:
        vae: See `HiFAPipeline`.
        unet: See `HiFAPipeline`.
        scheduler: See `HiFAPipeline`.
        image_noising_scheduler: See `HiFAPipeline`.
        camera_embedding: See `HiFAPipeline`.
        image_size: Input size of the prior in pixels per side; 0 for the size that the prior was trained on.

    Raises:
        ValueError: If the components do not fit together, or the prior does not support this size.
    """
    if vae is None:
        if image_size:
            raise ValueError(
                f"prior_size is for latent priors, and this prior has a fixed size, got {image_size}. "
                "Set prior_size=0."
            )
        if enlarges(unet):
            return SuperResolutionPrior(unet, scheduler, image_noising_scheduler)
        return PixelDiffusionPrior(unet, scheduler)
    if camera_embedding is not None:
        return MultiviewDiffusionPrior(vae, unet, scheduler, camera_embedding, image_size)
    return (SDXLPrior if is_sdxl(unet) else LatentDiffusionPrior)(vae, unet, scheduler, image_size)


def preset_for(prior: DiffusionPrior, views: bool = False, prompt: bool = True, image: bool = False) -> HiFAConfig:
    """Return the preset for a run.

    | Prior                           | Prompt              | Prompt and views        | Views only         |
    |---------------------------------|---------------------|-------------------------|--------------------|
    | up to 64 pixels (Toybox)        | `fast`              | `guided`                | `reconstruction`;  |
    | larger (Stable Diffusion)       | `preview`           | `guided_preview`        | `hallucinated` for |
    | pixel-space (DeepFloyd IF)      | `preview`, at 64    | `guided_preview`, at 64 | hallucinated views |
    | super-resolution (IF's stage 2) | `preview`           | `guided_preview`        |                    |
    | multi-view (MVDream)            | `multiview_preview` | `guided_preview`        |                    |

    Args:
        prior: Prior.
        views: Whether the run has given views.
        prompt: Whether the run has a prompt that the prior can encode.
        image: Whether the views are hallucinated.
    """
    if views and not prompt:  # The run does not use the prior.
        return HiFAConfig.hallucinated() if image else HiFAConfig.reconstruction()
    if not is_large(prior):
        return HiFAConfig.guided() if views else HiFAConfig.fast()
    if isinstance(prior, MultiviewDiffusionPrior) and not views:
        return HiFAConfig.multiview_preview()
    preset = HiFAConfig.guided_preview if views else HiFAConfig.preview
    if isinstance(prior, SuperResolutionPrior):  # The guidance scale is that of IF's own pipeline.
        return preset(guidance_scale=4.0)
    if isinstance(prior, PixelDiffusionPrior):  # The input size of the prior. IF saturates less than Stable Diffusion.
        return preset(render_size=64, start_render_size=64, growth_end=0.0, guidance_scale=20.0)
    return preset()


def is_large(prior: DiffusionPrior) -> bool:
    """Return whether a prior is larger than Toybox."""
    return isinstance(prior, PixelDiffusionPrior) or prior.image_size > SMALL
