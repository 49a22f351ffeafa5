"""A stock UNet with depth attention: forward hooks that live as long as a `with` block."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .depth_attention import DepthAttention


class VolumeDenoiser:
    """The UNet of a multi-view model.

    The hooks are put on once, on entering, and taken off on leaving: the UNet is left as it was found. The volumes
    are an argument of every call and are forgotten at its end.

        with VolumeDenoiser(unet, depth_attention) as denoiser:
            output = denoiser(sample, timestep, context, volumes)

    Args:
        unet: Its sites must be those that `depth_attention` was made for.
        depth_attention: One transformer for each site.
    """

    def __init__(self, unet: UNet2DConditionModel, depth_attention: DepthAttention):
        self.unet, self.depth_attention = unet, depth_attention
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._volumes: list[Tensor] = []

    def __enter__(self) -> "VolumeDenoiser":
        for index, site in enumerate(self.depth_attention.sites):
            module = self.unet.get_submodule(site.module)
            self._handles.append(module.register_forward_hook(self._hook(index)))
        return self

    def __exit__(self, *error: Any) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, index: int):
        def attend(module: nn.Module, inputs: tuple, output: Tensor | tuple[Tensor]) -> Tensor | tuple[Tensor]:
            if isinstance(output, tuple):  # the transformers of the UNet return one
                return (self.depth_attention(index, output[0], self._volumes), *output[1:])
            return self.depth_attention(index, output, self._volumes)

        return attend

    def __call__(self, sample: Tensor, timestep: Tensor | int, context: Tensor, volumes: list[Tensor]) -> Tensor:
        """The model's output, without guidance.

        Args:
            sample: `(B, in_channels, h, w)`: the noisy latents and, behind them, that of the input image.
            timestep: Of all of them.
            context: `(B, 1, cross_attention_dim)`.
            volumes: Levels from fine to coarse for the same B, from `MultiViewVolume.frustums`.

        Returns:
            `(B, out_channels, h, w)`.
        """
        self._volumes = volumes
        try:
            dtype = self.unet.dtype
            return self.unet(sample.to(dtype), timestep, context.to(dtype), return_dict=False)[0]
        finally:
            self._volumes = []


def predict(
    denoiser: VolumeDenoiser,
    latents: Tensor,
    image_latent: Tensor,
    timestep: Tensor | int,
    context: Tensor,
    volumes: list[Tensor],
    guidance_scale: float,
) -> Tensor:
    """Guided output s_u + w (s - s_u) for some views (Ho and Salimans 2022); w = 1 skips s_u.

    The unconditional half sees zeros in place of the context, of the image's latent and of every volume.

    Args:
        latents: `(B, C, h, w)`, noisy.
        image_latent: `(B, C, h, w)` of the input image, unscaled.
        timestep: Of all of them.
        context: `(B, 1, cross_attention_dim)`.
        volumes: Levels for the same B.
        guidance_scale: w.
    """
    if guidance_scale == 1:
        return denoiser(torch.cat([latents, image_latent], 1), timestep, context, volumes)

    def with_zeros(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x)])

    sample = torch.cat([latents.repeat(2, 1, 1, 1), with_zeros(image_latent)], 1)
    output = denoiser(sample, timestep, with_zeros(context), [with_zeros(volume) for volume in volumes])
    conditional, unconditional = output.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
