"""The prior of Stable Diffusion XL (Podell et al. 2023): two text encoders, a pooled embedding, the image's sizes."""

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..prompts import max_tokens
from .guidance import Guidance
from .latent_diffusion import LatentDiffusionPrior


SIZES = 6  # numbers that describe an image: its original height and width, where it was cut, its height and width


class SDXLPrior(LatentDiffusionPrior):
    """The UNet is also told the pooled embedding of the prompt and the size of the image: a whole one of its own size.

    Arguments as for `LatentDiffusionPrior`.
    """

    def conditions(self, guidance: Guidance) -> dict[str, Any]:
        """The pooled embeddings and sizes beside the embeddings.

        Raises:
            ValueError: Without pooled embeddings.
        """
        if guidance.pooled is None:
            raise ValueError("SDXL reads pooled embeddings too; this run has none, and is of another prior.")
        pooled = guidance.pooled.to(self.dtype)
        sizes = torch.tensor([self.image_size, self.image_size, 0, 0, self.image_size, self.image_size])
        sizes = sizes.to(pooled).expand(len(pooled), SIZES)
        return {**super().conditions(guidance), "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


def is_sdxl(unet: UNet2DConditionModel) -> bool:
    """Whether the UNet expects a pooled embedding and sizes."""
    return unet.config.addition_embed_type == "text_time"


def pooled_dim(unet: UNet2DConditionModel) -> int:
    """Length of the pooled embedding that a UNet of SDXL reads."""
    return unet.config.projection_class_embeddings_input_dim - SIZES * unet.config.addition_time_embed_dim


def overflows_in_half(vae: AutoencoderKL | AutoencoderTiny) -> bool:
    """Whether an autoencoder of SDXL is in float16 and says that it must not be.

    `force_upcast` means nothing in the autoencoders of Stable Diffusion 1 and 2, which have it by default.
    """
    return vae.dtype == torch.float16 and bool(vae.config.force_upcast)


def encode_with_both(
    texts: list[str],
    encoders: tuple[PreTrainedModel, PreTrainedModel],
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Embeddings `(n, tokens, dim)` of texts and their pooled ones `(n, pooled)`.

    The states before the last layer of both encoders stand side by side; the pooled one is the second encoder's.

    Args:
        encoders: CLIP text models, the second one with a projection.
    """
    states = []
    for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
        tokens = tokenizer(
            texts, padding="max_length", max_length=max_tokens(tokenizer), truncation=True, return_tensors="pt"
        )
        output = encoder(tokens.input_ids.to(device), output_hidden_states=True)
        states.append(output.hidden_states[-2])
    return torch.cat(states, -1), output.text_embeds
