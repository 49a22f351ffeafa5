"""Sizes of a multi-view model, and functions that build its untrained parts. The defaults are SyncDreamer's."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from .conditioning import ViewConditioner
from .depth_attention import DepthAttention
from .volume import MultiViewVolume


@dataclass(frozen=True)
class ClipSize:
    """Size of the image encoder, by default ViT-L/14. `image_size` is in pixels, a multiple of `patch_size`."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    projection_dim: int = 768


@dataclass(frozen=True)
class VolumeSize:
    """Cameras and sizes of the volume networks; see `MultiViewVolume`."""

    num_views: int = 16
    elevation_deg: float = 30.0
    radius: float = 1.5
    focal_length: float = 35 / 32
    half_extent: float = 0.5
    frustum_half_depth: float = 0.86603
    encoder_dim: int = 16
    time_dim: int = 256
    volume_size: int = 32
    volume_dims: tuple[int, ...] = (64, 128, 256, 512)
    frustum_depth: int = 48
    norm_num_groups: int = 8


@dataclass(frozen=True)
class Architecture:
    """All sizes that must match a checkpoint.

    Args:
        latent_size: Height and width of the latents.
        unet_channels: Channels of the UNet at each resolution, from fine to coarse.
        cross_attention: Whether each of these resolutions has cross-attention.
        layers_per_block: Layers in each block of the UNet.
        attention_heads: `attention_head_dim` of diffusers, which is the number of heads in Stable Diffusion's UNet.
        cross_attention_dim: Width of the context.
        context_hidden_dim: See `ViewConditioner`.
        unet_norm_num_groups: Groups of the UNet's group norms.
        prediction_type: Output of the UNet: `"epsilon"` or `"v_prediction"`.
        vae_channels, vae_layers, vae_norm_num_groups: Sizes of the autoencoder; channels from fine to coarse.
        latent_channels: Channels of the latents.
        clip, volume: Sizes of the image encoder and of the volume networks.
    """

    latent_size: int = 32
    unet_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    cross_attention: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2
    attention_heads: int = 8
    cross_attention_dim: int = 768
    context_hidden_dim: int = 0
    unet_norm_num_groups: int = 32
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    vae_norm_num_groups: int = 32
    latent_channels: int = 4
    clip: ClipSize = field(default_factory=ClipSize)
    volume: VolumeSize = field(default_factory=VolumeSize)

    @property
    def image_size(self) -> int:
        """Return the height and width of the images in pixels."""
        return self.latent_size * 2 ** (len(self.vae_channels) - 1)

    @property
    def up_block_types(self) -> tuple[str, ...]:
        """Return the types of the up blocks of the UNet, from coarse to fine."""
        return tuple("CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(self.cross_attention))


def build_unet(architecture: Architecture) -> UNet2DConditionModel:
    """Build Stable Diffusion's UNet. The latent of the input image is concatenated to the noisy latent."""
    return UNet2DConditionModel(
        sample_size=architecture.latent_size,
        in_channels=2 * architecture.latent_channels,
        out_channels=architecture.latent_channels,
        block_out_channels=architecture.unet_channels,
        layers_per_block=architecture.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in architecture.cross_attention),
        up_block_types=architecture.up_block_types,
        cross_attention_dim=architecture.cross_attention_dim,
        attention_head_dim=architecture.attention_heads,
        norm_num_groups=architecture.unet_norm_num_groups,
    )


def build_vae(architecture: Architecture) -> AutoencoderKL:
    """Build Stable Diffusion's autoencoder."""
    blocks = len(architecture.vae_channels)
    return AutoencoderKL(
        sample_size=architecture.image_size,
        latent_channels=architecture.latent_channels,
        block_out_channels=architecture.vae_channels,  # pyright: ignore[reportArgumentType]
        layers_per_block=architecture.vae_layers,
        norm_num_groups=architecture.vae_norm_num_groups,
        down_block_types=("DownEncoderBlock2D",) * blocks,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * blocks,  # pyright: ignore[reportArgumentType]
    )


def build_image_encoder(size: ClipSize) -> CLIPVisionModelWithProjection:
    """Build the image encoder. The activation of OpenAI's CLIP, quick GELU, is the default of transformers."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**asdict(size)))


def build_volume(architecture: Architecture) -> MultiViewVolume:
    """Build the volume networks."""
    return MultiViewVolume(
        latent_channels=architecture.latent_channels,
        latent_size=architecture.latent_size,
        **asdict(architecture.volume),
    )


def build_depth_attention(architecture: Architecture) -> DepthAttention:
    """Build the depth attention of the UNet."""
    return DepthAttention(
        block_out_channels=architecture.unet_channels,
        layers_per_block=architecture.layers_per_block,
        up_block_types=architecture.up_block_types,
        volume_dims=architecture.volume.volume_dims,
        norm_num_groups=architecture.volume.norm_num_groups,
    )


def build_conditioner(architecture: Architecture) -> ViewConditioner:
    """Build the trainable layers of the conditioning."""
    return ViewConditioner(
        image_embed_dim=architecture.clip.projection_dim,
        cross_attention_dim=architecture.cross_attention_dim,
        time_dim=architecture.volume.time_dim,
        context_hidden_dim=architecture.context_hidden_dim,
    )


def build_scheduler(prediction_type: Literal["epsilon", "v_prediction"] = "epsilon") -> DDIMScheduler:
    """Build SyncDreamer's DDIM sampler.

    With 50 steps, the timesteps are 1, 21, ..., 981. The last step ends at the first noise level of the schedule.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction_type,
    )


def build_models(architecture: Architecture | None = None) -> dict[str, Any]:
    """Build the models of `SyncDreamerPipeline` with random weights, by their names in the pipeline."""
    architecture = architecture or Architecture()
    return {
        "vae": build_vae(architecture),
        "image_encoder": build_image_encoder(architecture.clip),
        "unet": build_unet(architecture),
        "volume": build_volume(architecture),
        "depth_attention": build_depth_attention(architecture),
        "conditioner": build_conditioner(architecture),
    }
