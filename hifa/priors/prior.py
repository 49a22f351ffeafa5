"""Base class of 2D priors, which estimate the clean version of a render (HiFA section 4.1, algorithm 1)."""

# The keys of `config` are attributes, which diffusers does not declare.
# pyright: reportAttributeAccessIssue=false

from abc import ABC, abstractmethod
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from .denoising import PREDICTION_TYPES, add_noise, denoise, to_epsilon
from .prompt_guidance import Guidance


class DiffusionPrior(ABC):
    """Frozen encoder E, decoder D and denoiser eps of a diffusion model. z is the image or latent that eps denoises.

    Args:
        unet, scheduler: diffusers components with epsilon, v or sample prediction.
        channels: Number of channels of z.
        concat_channels: Number of additional input channels of the UNet, see the method `concat_cond`.

    Raises:
        ValueError: If the UNet has a different number of input channels, or the prediction type is unknown.
    """

    def __init__(self, unet: UNet2DConditionModel, scheduler: DDIMScheduler, channels: int, concat_channels: int = 0):
        if unet.config.in_channels != channels + concat_channels:
            raise ValueError(
                f"The UNet takes {unet.config.in_channels} channels, but the denoised image or latent has {channels}: "
                "the model inpaints or edits images. Use a text-to-image model."
            )
        if scheduler.config.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"The scheduler has the unknown prediction_type {scheduler.config.prediction_type!r}. Use one of "
                f"{', '.join(PREDICTION_TYPES)}."
            )
        self.unet = unet
        self.alphas_cumprod = scheduler.alphas_cumprod
        self.prediction_type = scheduler.config.prediction_type
        # Cumulative product of alphas after the last step: 1, or the first of the schedule if set_alpha_to_one=False.
        self.final_alpha_cumprod = float(scheduler.final_alpha_cumprod)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the UNet inputs."""
        # `unet.dtype` iterates over all parameters, which takes 1 ms. With diffusers' layerwise casting hooks, only
        # `unet.dtype` returns the dtype of the computation.
        first = self.unet.conv_in
        return self.unet.dtype if hasattr(first, "_diffusers_hook") else first.weight.dtype

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Return the height and width of the images that the prior takes, in pixels."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return z = E(x): `(B, 3, H, W)` in [0, 1] -> `(B, C, h, w)` float32. Differentiable."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor | None:
        """Return x_hat = D(z_hat): `(B, C, h, w)` -> `(B, 3, H, W)` float32, clipped to [0, 1].

        Return `None` if z is the image itself, because the residual in image space is then proportional to that in z.
        """

    def limit(self, z_hat: Tensor) -> Tensor:
        """Clip or threshold the predicted clean sample. By default, return the sample unchanged."""
        return z_hat

    @torch.no_grad()
    def estimate(
        self, z: Tensor, t: int, guidance: Guidance, stride: float, eta: float, generator: torch.Generator | None
    ) -> Tensor:
        """Add noise to z at timestep t, then denoise the noisy z (algorithm 1, steps 3 to 5).

        Args:
            z: `(V, C, h, w)`. V is 1 unless the prior denoises several views jointly.
            t: Timestep.
            guidance: Prompts of the denoiser, and the combination of its outputs.
            stride: r in (0, 1]. Multi-step denoising jumps r x 1000 timesteps at a time. 1 is a single step.
            eta: Share of new noise in each jump, from 0 (DDIM) to 1 (ancestral sampling).
            generator: Source of all random numbers.

        Returns:
            z_hat, `(V, C, h, w)`.
        """
        z_t, _ = self.noisy(z, t, generator)

        def predict(latents: Tensor, timestep: int) -> Tensor:
            return self.predict_noise(latents, timestep, guidance)

        def draw_noise() -> Tensor:
            return randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)

        return denoise(
            z_t, t, predict, self.alphas_cumprod, self.final_alpha_cumprod, stride, eta, draw_noise,
            self.limit,
        )  # fmt: skip

    def noisy(self, z: Tensor, t: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return z_t = alpha_t z + sigma_t eps, detached from the graph of z, and the drawn noise eps."""
        noise = randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        return add_noise(z.detach(), noise, float(self.alphas_cumprod[t])), noise

    def concat_cond(self, z: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Return additional UNet input channels, the same for all noisy versions of z. The default is `None`."""
        return None

    def conditions(self, guidance: Guidance) -> dict[str, Any]:
        """Return the conditioning inputs of the UNet as keyword arguments."""
        return {"encoder_hidden_states": guidance.prompts.tokens.to(self.dtype)}

    def predict_noise(self, latents: Tensor, t: int, guidance: Guidance) -> Tensor:
        """Return the guided noise eps_hat of noisy latents `(1, C, h, w)` at timestep t."""
        shown = latents if guidance.concat_cond is None else torch.cat([latents, guidance.concat_cond], 1)
        batch = shown.to(self.dtype).expand(len(guidance.prompts), -1, -1, -1)
        outputs = self.unet(batch, t, **self.conditions(guidance), return_dict=False)[0]
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # half becomes float32; double stays
        # Drop the additional output channels of a model with learned variances.
        output = guidance.combine(outputs[:, : latents.shape[1]])
        return to_epsilon(output, latents, float(self.alphas_cumprod[t]), self.prediction_type)


def to_prior_size(color: Tensor, size: int, image_size: int) -> Tensor:
    """Convert ray colors `(V * size * size, 3)` to images x `(V, 3, image_size, image_size)` for the prior."""
    x = color.view(-1, size, size, 3).permute(0, 3, 1, 2)
    if size == image_size:
        return x
    antialias = size > image_size
    return F.interpolate(x, (image_size, image_size), mode="bilinear", align_corners=False, antialias=antialias)
