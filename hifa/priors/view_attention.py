"""Attention across views and camera embedding, which MVDream adds to a 2D UNet.

Reference: Shi et al. 2024, "MVDream: Multi-view Diffusion for 3D Generation", section 3.1.
"""

# diffusers declares neither the attributes of `config` nor that other modules may replace those of a UNet.
# pyright: reportAttributeAccessIssue=false

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from ..cameras import POSE_DIM


# `across_views` changes a UNet temporarily, and several runs may share one UNet.
_ONE_AT_A_TIME = threading.RLock()


class CameraEmbedding(ModelMixin, ConfigMixin):
    """Embedding of camera poses, which is added to the time embedding of the UNet.

    The embedding is separate from the UNet, so that the UNet stays an ordinary 2D model.

    Args:
        embedding_dim: Length of the time embedding of the UNet.
    """

    config: Any  # The arguments of `__init__` are its attributes.

    @register_to_config
    def __init__(self, embedding_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(POSE_DIM, embedding_dim)
        self.linear_2 = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, poses: Tensor) -> Tensor:
        """Embed poses `(B, 16)`, see `cameras.pose_numbers`, to `(B, embedding_dim)`."""
        return self.linear_2(F.silu(self.linear_1(poses)))


class AttentionAcrossViews(AttnProcessor2_0):
    """Processor of joint self-attention over the tokens of all views of an object. The processor has no weights.

    Args:
        num_views: Number of views V. A batch contains B objects with V views each. The view index varies fastest.
    """

    def __init__(self, num_views: int):
        super().__init__()
        self.num_views = num_views

    def __call__(self, attn: Attention, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        """Attend over the tokens of all views of an object."""
        batch, length, width = hidden_states.shape
        joint = hidden_states.reshape(batch // self.num_views, self.num_views * length, width)
        return super().__call__(attn, joint, *args, **kwargs).reshape(batch, length, width)


def self_attentions(unet: nn.Module) -> list[Attention]:
    """Return the self-attention of every transformer block of a UNet."""
    return [module.attn1 for module in unet.modules() if isinstance(module, BasicTransformerBlock)]


@contextmanager
def across_views(unet: UNet2DConditionModel, embedding: CameraEmbedding, num_views: int) -> Iterator[None]:
    """Make a UNet denoise `num_views` views jointly, with camera poses passed as `class_labels`.

    On exit, even after an exception, the UNet is the original 2D model again. Other threads wait until exit.
    """
    with _ONE_AT_A_TIME:
        attentions = self_attentions(unet)
        processors = [attention.processor for attention in attentions]
        try:
            unet.class_embedding = embedding
            for attention in attentions:
                attention.processor = AttentionAcrossViews(num_views)
            yield
        finally:
            unet.class_embedding = None
            for attention, processor in zip(attentions, processors, strict=True):
                attention.processor = processor


@contextmanager
def as_2d_model() -> Iterator[None]:
    """Keep other threads from entering `across_views` until exit."""
    with _ONE_AT_A_TIME:
        yield


def check_embedding(unet: UNet2DConditionModel, embedding: CameraEmbedding) -> None:
    """Check that a camera embedding fits a UNet.

    Raises:
        ValueError: If the time embedding of the UNet has another length, the UNet already has class embeddings, or
            the UNet has no self-attention.
    """
    wanted = unet.config.time_embedding_dim or 4 * unet.config.block_out_channels[0]
    if embedding.config.embedding_dim != wanted:
        raise ValueError(
            f"camera_embedding has length {embedding.config.embedding_dim}, but the time embedding of the UNet has "
            f"length {wanted}. Use the camera_embedding and the UNet of one model."
        )
    if unet.config.class_embed_type is not None or unet.config.num_class_embeds is not None:
        raise ValueError("The UNet already has class embeddings. Use a UNet without them for a camera_embedding.")
    if not self_attentions(unet):
        raise ValueError("The UNet has no self-attention, which joint denoising of views needs. Use another UNet.")


@torch.no_grad()
def fresh_embedding(unet: UNet2DConditionModel) -> CameraEmbedding:
    """Return an initial camera embedding for training. The output is zero, because the second layer is zero."""
    embedding = CameraEmbedding(unet.config.time_embedding_dim or 4 * unet.config.block_out_channels[0])
    nn.init.zeros_(embedding.linear_2.weight)
    nn.init.zeros_(embedding.linear_2.bias)
    return embedding
