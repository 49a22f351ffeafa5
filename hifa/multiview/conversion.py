"""Conversion between the published checkpoint, `syncdreamer-pretrain.ckpt`, and the models of the pipeline.

Every parameter of the models has a `Source`: a published tensor, or a part of one. Both directions of the conversion
use the same table, so that one direction inverts the other.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .cameras import ViewRing


UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "clip_image_encoder.model."
VISUAL = f"{CLIP}visual."

# Unused tensors of the published file. The camera poses are only compared with those of the model.
UNUSED_SCHEDULE = (
    "betas", "alphas", "alphas_cumprod", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped",
)  # fmt: skip
UNUSED_CAMERAS = ("poses", "Ks", "azimuth")
UNUSED_TEXT = tuple(
    CLIP + name
    for name in (
        "positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight",
        "ln_final.bias",
    )
)  # fmt: skip
UNUSED = UNUSED_SCHEDULE + UNUSED_CAMERAS + UNUSED_TEXT


class Source(NamedTuple):
    """Published tensor from which a parameter is read.

    Args:
        key: Name in the published file.
        part: Index of query, key or value along the first axis, if the three are stored in one tensor.
        transposed: Whether the published tensor is transposed.
    """

    key: str
    part: int | None = None
    transposed: bool = False


def _replaced(name: str, rules: Iterable[tuple[str, str | Callable[[re.Match], str]]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
UNET_ENDS = (
    (r"^conv_in", "input_blocks.0.0"),
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
)


def unet_source(name: str, layers: int, has_attention: Callable[[int], bool]) -> Source:
    """Return the source of a parameter of `UNet2DConditionModel`, in the block numbering of latent-diffusion.

    Args:
        name: Name of the parameter.
        layers: `layers_per_block` of the UNet. The published numbering counts `layers + 1` entries per block: a
            down block has its layers and its downsampler, and an up block has one more layer than a down block.
        has_attention: Whether an up block has cross-attention, which shifts the index of its upsampler by one.
    """
    match = re.match(r"(down|up|mid)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", name)
    if match is None:
        return Source(UNET + _replaced(name, UNET_ENDS))
    side, kind, layer = match[1], match[3], int(match[4])
    block, rest = int(match[2] or 0), name[match.end() :]
    if kind == "resnets":
        rest = _replaced(rest, RESNET)
    if side == "mid":
        return Source(f"{UNET}middle_block.{2 * layer + (kind == 'attentions')}.{rest}")
    if kind == "downsamplers":
        return Source(f"{UNET}input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}")
    if kind == "upsamplers":
        return Source(f"{UNET}output_blocks.{block * (layers + 1) + layers}.{1 + has_attention(block)}.{rest}")
    index = block * (layers + 1) + layer + (side == "down")
    return Source(f"{UNET}{'input' if side == 'down' else 'output'}_blocks.{index}.{int(kind == 'attentions')}.{rest}")


def vae_source(name: str, levels: int) -> Source:
    """Return the source of a parameter of `AutoencoderKL` with `levels` resolutions.

    The published up blocks are numbered in reverse order.
    """
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    rules = (
        (r"down_blocks\.", "down."),
        (r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"resnets\.", "block."),
        (r"downsamplers\.0", "downsample"),
        (r"upsamplers\.0", "upsample"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"group_norm", "norm"),
        (r"to_(q|k|v)\.", r"\1."),
        (r"to_out\.0", "proj_out"),
        (r"conv_norm_out", "norm_out"),
    )
    return Source(VAE + _replaced(name, rules))


def clip_source(name: str) -> Source:
    """Return the source of a parameter of `CLIPVisionModelWithProjection`, in OpenAI's names."""
    if name == "visual_projection.weight":
        return Source(f"{VISUAL}proj", transposed=True)
    projection = re.search(r"layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$", name)
    if projection:
        layer, kind, end = projection.groups()
        return Source(f"{VISUAL}transformer.resblocks.{layer}.attn.in_proj_{end}", part="qkv".index(kind))
    rules = (
        (r"^vision_model\.(embeddings\.)?", ""),
        (r"^patch_embedding", "conv1"),
        (r"^position_embedding\.weight", "positional_embedding"),
        (r"^pre_layrnorm", "ln_pre"),
        (r"^post_layernorm", "ln_post"),
        (r"^encoder\.layers", "transformer.resblocks"),
        (r"self_attn", "attn"),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"fc1", "c_fc"),
        (r"fc2", "c_proj"),
    )
    return Source(VISUAL + _replaced(name, rules))


def depth_attention_source(name: str) -> Source:
    """Return the source of a parameter of `DepthAttention`.

    Index 0 is the middle block; the layers of the up blocks follow in order.
    """
    _, index, rest = name.split(".", 2)
    rules = (
        (r"^proj_in", "proj_in.0"),
        (r"^norm_in", "proj_in.1"),
        (r"^proj_context", "proj_context.0"),
        (r"^norm_context", "proj_context.1"),
        (r"^to_", "depth_attn.to_"),
        (r"^norm1", "proj_out.0"),
        (r"^conv1", "proj_out.2"),
        (r"^norm2", "proj_out.3"),
        (r"^conv2", "proj_out.5"),
    )
    place = "middle_conditions" if index == "0" else f"output_conditions.{int(index) - 1}"
    return Source(f"{UNET}{place}.{_replaced(rest, rules)}")


ENCODER_BLOCK = (
    (r"^conv_in", "init_conv"),
    (r"^norm_out", "final_out.0"),
    (r"^conv_out", "final_out.2"),
    (r"\.time_proj", ".time_embed"),
    (r"\.view_proj", ".view_embed"),
    (r"\.norm1", ".conv.0"),
    (r"\.conv1", ".conv.2"),
    (r"\.norm2", ".conv.3"),
    (r"\.conv2", ".conv.5"),
    (r"^blocks\.(\d)", r"out_conv\1"),
)
VOLUME_BLOCK = ((r"time_proj", "t_conv"), (r"view_proj", "v_conv"))


def _spatial_block(level: int, index: int) -> str:
    """Return the published name of a block of the spatial network.

    Level 0 has conv0. Level i has the strided conv{2 i - 1}, then conv{2 i}_0 and conv{2 i}_1.
    """
    if level == 0:
        return "conv0"
    return f"conv{2 * level - 1}" if index == 0 else f"conv{2 * level}_{index - 1}"


def volume_source(name: str, levels: int) -> Source:
    """Return the source of a parameter of `MultiViewVolume` whose volumes have `levels` resolutions."""
    net, rest = name.split(".", 1)
    if net == "encoder":
        return Source(f"spatial_volume.target_encoder.{_replaced(rest, ENCODER_BLOCK)}")
    spatial = net == "spatial_net"
    prefix = "spatial_volume.spatial_volume_feats." if spatial else "spatial_volume.frustum_volume_feats."
    match = re.match(r"(down|up)\.(\d+)\.(?:(\d+)\.)?", rest)
    if match is None:
        return Source(prefix + rest.replace("conv_in", "init_conv" if spatial else "conv0"))
    level, parameter = int(match[2]), _replaced(rest[match.end() :], VOLUME_BLOCK)
    if match[1] == "up":
        # Numbered from the coarsest level. The spatial network continues the numbering of its down blocks: conv7,
        # conv8, conv9.
        step = levels - 2 - level
        block = f"conv{2 * levels - 1 + step}" if spatial else f"up{step}"
        return Source(f"{prefix}{block}.{parameter}")
    block = _spatial_block(level, int(match[3])) if spatial else f"conv{2 * level - 1 + int(match[3])}"
    return Source(f"{prefix}{block}.{re.sub(r'^norm', 'bn', parameter)}")


def conditioner_source(name: str) -> Source:
    """Return the source of a parameter of `ViewConditioner`."""
    return Source(name.replace("context_proj", "cc_projection").replace("time_mlp", "time_embed"))


def _rule(part: str, model: Any) -> Callable[[str], Source]:
    if part == "unet":
        kinds = model.config.up_block_types
        return lambda name: unet_source(name, model.config.layers_per_block, lambda block: "CrossAttn" in kinds[block])
    if part == "vae":
        return lambda name: vae_source(name, len(model.config.block_out_channels))
    if part == "volume":
        return lambda name: volume_source(name, len(model.config.volume_dims))
    return {
        "image_encoder": clip_source,
        "depth_attention": depth_attention_source,
        "conditioner": conditioner_source,
    }[part]


def sources(models: dict[str, nn.Module]) -> dict[str, dict[str, Source]]:
    """Return the source of every tensor in the state dicts of models.

    Args:
        models: Models by their names in the pipeline.

    Returns:
        For each model, the source of each tensor by name.
    """
    return {part: {name: _rule(part, model)(name) for name in model.state_dict()} for part, model in models.items()}


def _take(tensor: Tensor, source: Source, shape: torch.Size) -> Tensor:
    """Convert a published tensor to a parameter of a given shape.

    Axes of size 1 may differ, because a 1x1 convolution is equivalent to a linear layer.

    Raises:
        ValueError: If the tensor has another shape, or no floating-point type.
    """
    wanted = tuple(reversed(shape)) if source.transposed else tuple(shape)
    wanted = wanted if source.part is None else (3 * wanted[0], *wanted[1:])
    if _without_ones(tensor.shape) != _without_ones(wanted) or not tensor.is_floating_point():
        raise ValueError(
            f"{source.key} has shape {tuple(tensor.shape)} and type {tensor.dtype}; the model needs a floating-point "
            f"tensor of shape {wanted}."
        )
    if source.part is not None:
        tensor = tensor.chunk(3)[source.part].clone()  # safetensors cannot save shared memory
    if source.transposed:
        tensor = tensor.T.contiguous()
    return tensor.reshape(shape)


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def check_keys(
    published: dict[str, Tensor], table: dict[str, dict[str, Source]], unused: Collection[str], name: str
) -> None:
    """Check that a published checkpoint has exactly the tensors of a table, apart from unused tensors.

    Args:
        published: Tensors of the checkpoint.
        table: Sources from `sources`.
        unused: Keys of the checkpoint that no model needs.
        name: Name of the checkpoint for the error message.

    Raises:
        ValueError: If tensors are missing or unknown.
    """
    wanted = {source.key for names in table.values() for source in names.values()}
    missing, left = sorted(wanted - published.keys()), sorted(published.keys() - wanted - set(unused))
    if missing or left:
        raise ValueError(
            f"The file is not a {name} checkpoint of this size: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}) and {len(left)} are unknown ({', '.join(left[:3])})."
        )


def check_cameras(published: dict[str, Tensor], ring: ViewRing) -> None:
    """Check that the cameras of a checkpoint, for which its weights were trained, match the ring.

    Raises:
        ValueError: If the cameras differ.
    """
    if "poses" not in published:
        return
    poses, ours = published["poses"].float(), ring.world_to_camera()
    if poses.shape != ours.shape or not torch.allclose(poses, ours, atol=1e-3):
        raise ValueError(
            f"The checkpoint was made for cameras other than {ring.num_views} at elevation "
            f"{ring.elevation_deg:g} degrees and radius {ring.radius:g}."
        )


def load_published(models: dict[str, Any], published: dict[str, Tensor]) -> None:
    """Load a published checkpoint into models without copying its tensors.

    Args:
        models: Models by their names in the pipeline; may be on the meta device.
        published: Tensors of the checkpoint.

    Raises:
        ValueError: If a tensor is missing, unknown or of the wrong shape, or if the cameras differ.
    """
    table = sources(models)
    check_keys(published, table, UNUSED, "SyncDreamer")
    if "volume" in models:
        check_cameras(published, models["volume"].ring)
    assign(models, published, table)


def assign(models: dict[str, nn.Module], published: dict[str, Tensor], table: dict[str, dict[str, Source]]) -> None:
    """Assign the published tensors of a table to models.

    Raises:
        ValueError: If a tensor has the wrong shape.
    """
    for part, model in models.items():
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        state = {name: _take(published[src.key], src, shapes[name]) for name, src in table[part].items()}
        model.load_state_dict(state, strict=True, assign=True)


def to_published(models: dict[str, nn.Module], layout: dict[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
    """Return the weights of models under the published names, without `UNUSED`.

    Args:
        models: Models by their names in the pipeline.
        layout: Shapes of the published tensors. Without `layout`, the weights of linear layers stay matrices, even if
            the published layers are 1x1 convolutions.
    """
    parts: dict[str, dict[int, Tensor]] = {}
    for model, names in sources(models).items():
        state = models[model].state_dict()
        for name, source in names.items():
            tensor = state[name].T if source.transposed else state[name]
            parts.setdefault(source.key, {})[source.part or 0] = tensor
    published = {
        key: torch.cat([row[part] for part in sorted(row)]) if len(row) > 1 else row[0] for key, row in parts.items()
    }
    if layout is None:
        return published
    return {key: tensor.reshape(tuple(layout[key])) for key, tensor in published.items()}
