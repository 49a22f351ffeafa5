"""UNet of diffusers with depth attention, which forward hooks add inside a `with` block."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .depth_attention import DepthAttention


class VolumeDenoiser:
    """UNet of a multi-view model with depth attention.

    The context manager registers the hooks on entry and removes them on exit, which restores the UNet. The volumes are
    arguments of every call and are released when the call ends.

        with VolumeDenoiser(unet, depth_attention) as denoiser:
            output = denoiser(sample, timestep, context, volumes)

    Args:
        unet: UNet with the sites that `depth_attention` was built for.
        depth_attention: Depth attention with one transformer for each site.
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
            if isinstance(output, tuple):  # the transformers of the UNet return a tuple
                return (self.depth_attention(index, output[0], self._volumes), *output[1:])
            return self.depth_attention(index, output, self._volumes)

        return attend

    def __call__(self, sample: Tensor, timestep: Tensor | int, context: Tensor, volumes: list[Tensor]) -> Tensor:
        """Return the output of the UNet without guidance.

        Args:
            sample: `(B, in_channels, h, w)`, the noisy latents followed by the latent of the input image.
            timestep: Timestep of all samples.
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
    """Return the guided output s_u + w (s - s_u) for some views (Ho and Salimans 2022); w = 1 skips s_u.

    For the unconditional output s_u, the context, the latent of the input image and every volume are zero.

    Args:
        denoiser: Denoiser inside its `with` block.
        latents: `(B, C, h, w)`, noisy.
        image_latent: `(B, C, h, w)` latent of the input image, unscaled.
        timestep: Timestep of all latents.
        context: `(B, 1, cross_attention_dim)`.
        volumes: Levels from fine to coarse for the same B.
        guidance_scale: w.

    Returns:
        `(B, C, h, w)`.
    """
    if guidance_scale == 1:
        return denoiser(torch.cat([latents, image_latent], 1), timestep, context, volumes)

    def with_zeros(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x)])

    sample = torch.cat([latents.repeat(2, 1, 1, 1), with_zeros(image_latent)], 1)
    output = denoiser(sample, timestep, with_zeros(context), [with_zeros(volume) for volume in volumes])
    conditional, unconditional = output.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
