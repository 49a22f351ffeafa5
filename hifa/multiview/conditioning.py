"""Conditioning of the multi-view model on its input image.

The condition consists of the CLIP embedding, the latent and the camera elevation of the image.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from diffusers import AutoencoderKL, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from .cameras import ViewRing


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Condition(NamedTuple):
    """Condition of the multi-view model: input image and views.

    Args:
        picture: `(1, C, h, w)`, latent of the input image from `image_latent`.
        image_embeds: `(1, dim)`, CLIP embedding of the input image.
        v_embed: `(1, num_views, 4)` from `view_embedding`.
    """

    picture: Tensor
    image_embeds: Tensor
    v_embed: Tensor


class ViewConditioner(ModelMixin, ConfigMixin):
    """Small trainable layers of the conditioning. The defaults are SyncDreamer's.

    Args:
        image_embed_dim: Size of CLIP's image embedding.
        view_dim: Size of a view embedding.
        cross_attention_dim: Width of the UNet's context.
        time_dim: Size of the time embedding for the volume networks, which is separate from that of the UNet.
        context_hidden_dim: Width of two hidden layers between the embeddings and the context. 0 selects a linear map,
            as in SyncDreamer. The content of a view depends on products of object and camera features. A small UNet
            has few layers to compute such products, and gets better results with the hidden layers.
    """

    config: Any  # The arguments of `__init__` are its attributes.

    @register_to_config
    def __init__(
        self,
        image_embed_dim: int = 768,
        view_dim: int = 4,
        cross_attention_dim: int = 768,
        time_dim: int = 256,
        context_hidden_dim: int = 0,
    ):
        super().__init__()
        sizes = [image_embed_dim + view_dim, *(2 * [context_hidden_dim] if context_hidden_dim else [])]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.SiLU()]
        last = nn.Linear(sizes[-1], cross_attention_dim)
        self.context_proj = nn.Sequential(*layers, last) if layers else last
        self.time_mlp = nn.Sequential(nn.Linear(time_dim, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))

    def embed_time(self, timesteps: Tensor) -> Tensor:
        """Return the time embedding for the volume networks: `(B,)` -> `(B, time_dim)`."""
        waves = get_timestep_embedding(
            timesteps, self.config.time_dim, flip_sin_to_cos=True, downscale_freq_shift=0
        )  # float32
        return self.time_mlp(waves.to(self.dtype))

    def embed_context(self, image_embeds: Tensor, v_embed: Tensor) -> Tensor:
        """Return one context token for each view.

        Args:
            image_embeds: `(B, image_embed_dim)`.
            v_embed: `(B, n, view_dim)`.

        Returns:
            `(B * n, 1, cross_attention_dim)`.
        """
        image_embeds = image_embeds[:, None].expand(-1, v_embed.shape[1], -1)
        joined = torch.cat([image_embeds.to(self.dtype), v_embed.to(self.dtype)], dim=-1)
        return self.context_proj(joined.flatten(0, 1))[:, None]


def view_embedding(elevation_deg: float | Tensor, ring: ViewRing) -> Tensor:
    """Return the positions of a ring's views relative to the camera of the input image.

    In Zero123, elevation increases downward, so that the difference is input minus ring. The azimuth is relative to
    that of the input image, which is the azimuth of view 0.

    Args:
        elevation_deg: Elevation of the camera of the input image in degrees; a number or `(B,)`.
        ring: Cameras of the views.

    Returns:
        `(B, num_views, 4)` float32: difference of elevation in radians, sine and cosine of the azimuth, 0.
    """
    elevation = torch.as_tensor(elevation_deg, dtype=torch.float32).reshape(-1, 1)
    azimuth = torch.deg2rad(torch.tensor(ring.azimuths_deg, dtype=torch.float64)).float()
    difference = (elevation - ring.elevation_deg) * (math.pi / 180)
    batch = len(elevation)
    columns = [difference.expand(-1, ring.num_views), azimuth.sin().expand(batch, -1), azimuth.cos().expand(batch, -1)]
    return torch.stack([*columns, torch.zeros(batch, ring.num_views)], dim=-1)


def clip_embedding(image_encoder: CLIPVisionModelWithProjection, image: Tensor) -> Tensor:
    """Return the CLIP embedding of the input image as in Zero123.

    The image is resized to CLIP's input size with bicubic interpolation, without antialiasing or clamping.

    Args:
        image_encoder: CLIP's vision model.
        image: `(B, 3, H, H)` in [-1, 1].

    Returns:
        `(B, image_embed_dim)`.
    """
    size = cast(int, image_encoder.config.image_size)
    pixels = F.interpolate(image.float(), (size, size), mode="bicubic", align_corners=True) / 2 + 0.5
    mean, std = (pixels.new_tensor(value).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    return image_encoder(((pixels - mean) / std).to(image_encoder.dtype)).image_embeds


def image_latent(vae: AutoencoderKL, image: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return the latent that is concatenated to the noisy latents: an unscaled sample of the posterior.

    Zero123 was trained with the unscaled latent of the input image. The latents of the views are scaled as usual.

    Args:
        vae: Autoencoder.
        image: `(B, 3, H, H)` in [-1, 1].
        generator: Generator for the sample.

    Returns:
        `(B, latent_channels, h, h)` float32.
    """
    return vae.encode(image.to(vae.dtype)).latent_dist.sample(generator).float()  # pyright: ignore[reportAttributeAccessIssue]
