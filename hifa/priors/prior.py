"""The 2D prior: what a diffusion model would make of a rendered image (HiFA section 4.1, algorithm 1)."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from .denoising import PREDICTION_TYPES, add_noise, denoise, to_epsilon
from .guidance import Guidance


class DiffusionPrior(ABC):
    """Encoder E, decoder D and denoiser eps of a diffusion model, frozen; z is what it denoises.

    Args:
        unet, scheduler: diffusers components; epsilon, v and sample prediction are understood.
        channels: Of z.
        beside: Further channels that the UNet takes, see the method of that name.

    Raises:
        ValueError: If the UNet takes other things than z, or predicts something else.
    """

    def __init__(self, unet: UNet2DConditionModel, scheduler: DDIMScheduler, channels: int, beside: int = 0):
        if unet.config.in_channels != channels + beside:
            raise ValueError(
                f"The UNet takes {unet.config.in_channels} channels, but what it denoises has {channels}: it inpaints "
                "or edits images. Give a model that makes images from text alone."
            )
        if scheduler.config.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type {scheduler.config.prediction_type!r} of the scheduler is not one of "
                f"{', '.join(PREDICTION_TYPES)}."
            )
        self.unet = unet
        self.alphas_cumprod = scheduler.alphas_cumprod
        self.prediction_type = scheduler.config.prediction_type
        # The level that denoising ends at: 1 or, with set_alpha_to_one=False, the first of the schedule.
        self.final_alpha_cumprod = float(scheduler.final_alpha_cumprod)

    @property
    def dtype(self) -> torch.dtype:
        """In which the UNet takes what it is shown."""
        # `unet.dtype` walks through all parameters, a millisecond. It alone knows what diffusers' hooks cast to.
        first = self.unet.conv_in
        return self.unet.dtype if hasattr(first, "_diffusers_hook") else first.weight.dtype

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Pixels per side of what the prior is shown."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """z = E(x): `(B, 3, H, W)` in [0, 1] -> `(B, C, h, w)` float32, differentiable."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor | None:
        """x_hat = D(z_hat): `(B, C, h, w)` -> `(B, 3, H, W)` float32, clipped to [0, 1]; `None` where z is the image
        itself, so that a residual in image space would be the one in z again."""

    def limit(self, z_hat: Tensor) -> Tensor:
        """Bring an estimate of z back to where z can be."""
        return z_hat

    @torch.no_grad()
    def estimate(
        self, z: Tensor, t: int, guidance: Guidance, stride: float, eta: float, generator: torch.Generator | None
    ) -> Tensor:
        """z_hat: noise z to timestep t, then denoise it (algorithm 1, steps 3 to 5).

        Args:
            z: `(V, C, h, w)`; one view, unless the prior sees several at once.
            t: Timestep.
            guidance: What is asked, and how the answers are combined.
            stride: r in (0, 1]: multi-step denoising jumps r x 1000 timesteps at a time; 1 is a single step.
            eta: Share of fresh noise in each jump, 0 (DDIM) to 1 (ancestral).
            generator: Source of all randomness.
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
        """z_t = alpha_t z + sigma_t eps, without a graph, and the noise eps that was drawn for it."""
        noise = randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        return add_noise(z.detach(), noise, float(self.alphas_cumprod[t])), noise

    def beside(self, z: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """What the UNet is shown beside every noisy version of z, in channels of its own: nothing."""
        return None

    def conditions(self, guidance: Guidance) -> dict[str, Any]:
        """What the UNet is told beside noisy images and the timestep: its named arguments."""
        return {"encoder_hidden_states": guidance.embeds.to(self.dtype)}

    def predict_noise(self, latents: Tensor, t: int, guidance: Guidance) -> Tensor:
        """eps_hat, guided: of noisy latents `(1, C, h, w)` at timestep t."""
        shown = latents if guidance.beside is None else torch.cat([latents, guidance.beside], 1)
        batch = shown.to(self.dtype).expand(len(guidance.embeds), -1, -1, -1)
        outputs = self.unet(batch, t, **self.conditions(guidance), return_dict=False)[0]
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # of half precision; double stays
        # What a model with learned variances says of them is of no use here.
        output = guidance.combine(outputs[:, : latents.shape[1]])
        return to_epsilon(output, latents, float(self.alphas_cumprod[t]), self.prediction_type)


def to_prior_size(colour: Tensor, size: int, image_size: int) -> Tensor:
    """Images x `(V, 3, image_size, image_size)` of the prior's size from rays' colours `(V * size * size, 3)`."""
    x = colour.view(-1, size, size, 3).permute(0, 3, 1, 2)
    if size == image_size:
        return x
    antialias = size > image_size
    return F.interpolate(x, (image_size, image_size), mode="bilinear", align_corners=False, antialias=antialias)
