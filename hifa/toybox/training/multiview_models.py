"""Components of the Toybox multi-view model: those of SyncDreamer at the size of the Toybox prior."""

from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from ...multiview import Architecture, SyncDreamerPipeline
from ...multiview.architecture import (
    ClipSize,
    VolumeSize,
    build_conditioner,
    build_depth_attention,
    build_image_encoder,
    build_unet,
    build_volume,
)
from ..models import build_scheduler
from .loop import Parts


CROP_SIZE = 50  # pixels, longer side of a framed object in an image of 64 pixels (SyncDreamer: 200 of 256)
# The UNet has four more input channels than the prior's UNet and is otherwise the same, so training can start from the
# prior's weights. Scenes lie in a ball of radius 0.48 in ring units, so the frustums need not reach the corners of the
# cube.
ARCHITECTURE = Architecture(
    latent_size=16,
    unet_channels=(64, 96, 128),
    cross_attention=(False, True, True),
    layers_per_block=1,
    attention_heads=32,
    cross_attention_dim=128,
    context_hidden_dim=512,
    unet_norm_num_groups=16,
    prediction_type="v_prediction",
    vae_channels=(16, 48, 64),
    vae_layers=1,
    vae_norm_num_groups=8,
    clip=ClipSize(
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        projection_dim=128,
    ),
    volume=VolumeSize(
        encoder_dim=8,
        time_dim=128,
        volume_size=16,
        volume_dims=(16, 32, 48),
        frustum_depth=16,
        frustum_half_depth=0.5,
    ),
)
# Default arguments of a pipeline call. One sampling step predicts the mean of all views that are consistent with the
# photo. After such a short training, this mean is closest to the truth. On six scenes after 800 training steps, one
# sampling step reaches 21.0 dB. Three sampling steps reach 19.5 dB.
CALL_DEFAULTS = {"num_inference_steps": 1, "guidance_scale": 1.0, "eta": 0.0, "crop_size": CROP_SIZE}


def build_multiview_scheduler() -> DDIMScheduler:
    """Build the prior's noise schedule, rescaled to end in pure noise.

    Reference: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps Are Flawed", sections 3.1 to 3.3.
    Without the rescaling, the signal that is left at t = 999 turns white backgrounds gray.
    """
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}
    return cast(DDIMScheduler, DDIMScheduler.from_config(build_scheduler().config, **changes))


def build_parts() -> Parts:
    """Build all components that are trained together, with random weights."""
    return Parts(
        {
            "unet": build_unet(ARCHITECTURE),
            "volume": build_volume(ARCHITECTURE),
            "depth_attention": build_depth_attention(ARCHITECTURE),
            "conditioner": build_conditioner(ARCHITECTURE),
            "image_encoder": build_image_encoder(ARCHITECTURE.clip),
        }
    )


@torch.no_grad()
def start_from_prior(unet: UNet2DConditionModel, prior: UNet2DConditionModel) -> None:
    """Copy the prior's weights into a UNet. Weights for the latent of the photo start at zero, as in Zero123."""
    weights = prior.state_dict()
    widened = torch.zeros_like(unet.conv_in.weight)
    widened[:, : prior.conv_in.in_channels] = prior.conv_in.weight
    unet.load_state_dict({**weights, "conv_in.weight": widened})


def save_multiview(folder: Path, vae: AutoencoderKL, parts: Parts) -> None:
    """Write a folder that `SyncDreamerPipeline.from_pretrained` reads: float16, in shards of at most 9 MB."""
    # Config entries that start with an underscore describe the local installation, not the model.
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    copy = cast(AutoencoderKL, AutoencoderKL.from_config(config))
    copy.load_state_dict(vae.state_dict())
    pipeline = SyncDreamerPipeline(
        vae=copy.half(),
        image_encoder=parts["image_encoder"].half(),
        unet=parts["unet"].half(),
        volume=parts["volume"].half(),
        depth_attention=parts["depth_attention"].half(),
        conditioner=parts["conditioner"].half(),
        scheduler=build_multiview_scheduler(),
        **CALL_DEFAULTS,
    )
    pipeline.save_pretrained(folder, max_shard_size="9MB")
