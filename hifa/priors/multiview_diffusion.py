"""Prior of a multi-view diffusion model, which denoises several views of one object jointly.

Each view is conditioned on its camera. MVDream (Shi et al. 2024) is such a model. Without cameras the same UNet is a
2D prior for single views.
"""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from .denoising import to_epsilon, to_sample
from .latent_diffusion import LatentDiffusionPrior
from .prompt_guidance import Guidance, rescale_guidance
from .view_attention import CameraEmbedding, across_views, as_2d_model, check_embedding


class MultiviewDiffusionPrior(LatentDiffusionPrior):
    """Multi-view prior, where z is a batch of latents of V views `(V, C, h, w)`.

    Without poses in the guidance, z is the latent of a single view.

    Args:
        vae, unet, scheduler, image_size: As for `LatentDiffusionPrior`.
        camera_embedding: Camera embedding of the UNet.

    Raises:
        ValueError: If the components do not belong to one model.
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
        """Return the guided noise eps_hat of noisy latents `(V, C, h, w)` of one object at timestep t.

        Without poses in the guidance, predict the noise of a single view like any 2D prior.
        """
        if guidance.poses is None:
            with as_2d_model():
                return super().predict_noise(latents, t, guidance)
        asked, views = len(guidance.prompts), len(latents)
        poses = guidance.poses.to(latents.device, self.dtype).repeat(asked, 1)
        embeds = guidance.prompts.tokens.to(self.dtype).repeat_interleave(views, 0)
        with across_views(self.unet, self.camera_embedding, views):
            batch = latents.to(self.dtype).repeat(asked, 1, 1, 1)
            outputs = self.unet(batch, t, encoder_hidden_states=embeds, class_labels=poses, return_dict=False)[0]
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        # Merge the views of an object into one image with V * C channels: guidance combines all views at once.
        outputs = outputs[:, : latents.shape[1]].reshape(asked, -1, *latents.shape[2:])
        joint, alpha_cumprod = latents.reshape(1, *outputs.shape[1:]), float(self.alphas_cumprod[t])
        guided = to_epsilon(guidance.combine(outputs), joint, alpha_cumprod, self.prediction_type)
        if guidance.sample_rescale:
            positive = to_epsilon(outputs[-1:], joint, alpha_cumprod, self.prediction_type)
            guided = rescaled_noise(guided, positive, joint, alpha_cumprod, guidance.sample_rescale)
        return guided.view_as(latents)


def rescaled_noise(epsilon: Tensor, positive: Tensor, z_t: Tensor, alpha_cumprod: float, rescale: float) -> Tensor:
    """Rescale the guided noise such that the clean estimate keeps the contrast of the unguided estimate.

    `rescale_guidance` is applied to the estimate of z and not to the noise (MVDream section 3.2; Lin et al. 2023,
    "Common Diffusion Noise Schedules", equations 15 and 16). The returned noise belongs to the rescaled estimate.

    Args:
        epsilon: `(1, V * C, h, w)` guided noise.
        positive: `(1, V * C, h, w)` noise predicted for the prompt alone.
        z_t: `(1, V * C, h, w)` noisy latents.
        alpha_cumprod: alpha_t^2.
        rescale: phi in [0, 1], see `rescale_guidance`.
    """
    z_hat, z_positive = to_sample(epsilon, z_t, alpha_cumprod), to_sample(positive, z_t, alpha_cumprod)
    rescaled = rescale_guidance(z_hat, z_positive, rescale)
    return (z_t - alpha_cumprod**0.5 * rescaled) / (1 - alpha_cumprod) ** 0.5
