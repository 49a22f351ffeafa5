"""The prior of a multi-view diffusion model: several views of one object, denoised together, each with its camera.

MVDream (Shi et al. 2024) is such a model. Without cameras the same UNet is a 2D prior, which sees single views.
"""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from .denoising import to_epsilon, to_sample
from .guidance import Guidance, rescale_guidance
from .latent_diffusion import LatentDiffusionPrior
from .view_attention import CameraEmbedding, across_views, as_2d_model, check_embedding


class MultiviewDiffusionPrior(LatentDiffusionPrior):
    """Latents of V views `(V, C, h, w)`, if the guidance has their poses; else those of single views.

    Args:
        vae, unet, scheduler, image_size: As for `LatentDiffusionPrior`.
        camera_embedding: Of the UNet.

    Raises:
        ValueError: If they do not belong together.
    """

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        camera_embedding: CameraEmbedding,
        image_size: int = 0,
    ):
        super().__init__(vae, unet, scheduler, image_size)
        check_embedding(unet, camera_embedding)
        self.camera_embedding = camera_embedding

    def predict_noise(self, latents: Tensor, t: int, guidance: Guidance) -> Tensor:
        """eps_hat, guided: of noisy latents `(V, C, h, w)` of one object at timestep t.

        The noise of single views, without poses, is predicted as by any 2D prior.
        """
        if guidance.poses is None:
            with as_2d_model():
                return super().predict_noise(latents, t, guidance)
        asked, views = len(guidance.embeds), len(latents)
        poses = guidance.poses.to(latents.device, self.dtype).repeat(asked, 1)
        embeds = guidance.embeds.to(self.dtype).repeat_interleave(views, 0)
        with across_views(self.unet, self.camera_embedding, views):
            batch = latents.to(self.dtype).repeat(asked, 1, 1, 1)
            outputs = self.unet(batch, t, encoder_hidden_states=embeds, class_labels=poses, return_dict=False)[0]
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        # The views of an object as one image with more channels: its guidance is one for all of them.
        outputs = outputs[:, : latents.shape[1]].reshape(asked, -1, *latents.shape[2:])
        joint, alpha_cumprod = latents.reshape(1, *outputs.shape[1:]), float(self.alphas_cumprod[t])
        guided = to_epsilon(guidance.combine(outputs), joint, alpha_cumprod, self.prediction_type)
        if guidance.sample_rescale:
            positive = to_epsilon(outputs[-1:], joint, alpha_cumprod, self.prediction_type)
            guided = rescaled_noise(guided, positive, joint, alpha_cumprod, guidance.sample_rescale)
        return guided.view_as(latents)


def rescaled_noise(epsilon: Tensor, positive: Tensor, z_t: Tensor, alpha_cumprod: float, rescale: float) -> Tensor:
    """Return the noise whose estimate of z has its standard deviation mixed with that of the unguided estimate
    (MVDream section 3.2; Lin et al. 2023, "Common Diffusion Noise Schedules", equations 15 and 16, for the estimate).

    Args:
        epsilon, positive: `(1, V * C, h, w)` guided noise, and noise of the prompt alone.
        z_t: `(1, V * C, h, w)`.
        rescale: phi in [0, 1].
    """
    z_hat, z_positive = to_sample(epsilon, z_t, alpha_cumprod), to_sample(positive, z_t, alpha_cumprod)
    rescaled = rescale_guidance(z_hat, z_positive, rescale)
    return (z_t - alpha_cumprod**0.5 * rescaled) / (1 - alpha_cumprod) ** 0.5
