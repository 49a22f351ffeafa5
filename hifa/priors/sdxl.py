"""Prior of Stable Diffusion XL (Podell et al. 2023): two text encoders, pooled embeddings and size conditioning."""

# The keys of `config` are attributes, which diffusers does not declare.
# pyright: reportAttributeAccessIssue=false

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..prompts import max_tokens
from .latent_diffusion import LatentDiffusionPrior
from .prompt_guidance import Guidance


SIZES = 6  # values of the size conditioning: original height and width, crop offsets, target height and width


class SDXLPrior(LatentDiffusionPrior):
    """SDXL prior, whose UNet also takes the pooled embedding of the prompt and size conditioning.

    The size conditioning describes an uncropped image of the prior's own size. Arguments as for
    `LatentDiffusionPrior`.
    """

    def conditions(self, guidance: Guidance) -> dict[str, Any]:
        """Return the embeddings, the pooled embeddings and the size conditioning.

        Raises:
            ValueError: If the guidance has no pooled embeddings.
        """
        pooled = guidance.prompts.pooled
        if pooled is None:
            raise ValueError("SDXL needs pooled embeddings, but the run has none. Use the prior that started the run.")
        pooled = pooled.to(self.dtype)
        sizes = torch.tensor([self.image_size, self.image_size, 0, 0, self.image_size, self.image_size])
        sizes = sizes.to(pooled).expand(len(pooled), SIZES)
        return {**super().conditions(guidance), "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


def is_sdxl(unet: UNet2DConditionModel) -> bool:
    """Return whether a UNet takes a pooled embedding and size conditioning, as the UNet of SDXL does."""
    return unet.config.addition_embed_type == "text_time"


def pooled_dim(unet: UNet2DConditionModel) -> int:
    """Return the length of the pooled embedding that an SDXL UNet takes."""
    return unet.config.projection_class_embeddings_input_dim - SIZES * unet.config.addition_time_embed_dim


def overflows_in_half(vae: AutoencoderKL | AutoencoderTiny) -> bool:
    """Return whether an SDXL autoencoder is in float16 although `force_upcast` is set in its configuration.

    `force_upcast` has no meaning for the autoencoders of Stable Diffusion 1 and 2, where the flag is set by default.
    """
    return vae.dtype == torch.float16 and bool(vae.config.force_upcast)


def encode_with_both(
    texts: list[str],
    encoders: tuple[PreTrainedModel, PreTrainedModel],
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Encode texts with both text encoders of SDXL.

    The embeddings are the concatenated hidden states before the last layer of both encoders. The pooled embedding is
    that of the second encoder.

    Args:
        texts: Prompts.
        encoders: CLIP text models. The second text model has a projection.
        tokenizers: Tokenizers of the text models.
        device: Device of the text models.

    Returns:
        Embeddings `(n, tokens, dim)` and pooled embeddings `(n, pooled)`.
    """
    states = []
    for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
        tokens = tokenizer(
            texts, padding="max_length", max_length=max_tokens(tokenizer), truncation=True, return_tensors="pt"
        )
        output = encoder(tokens.input_ids.to(device), output_hidden_states=True)
        states.append(output.hidden_states[-2])
    return torch.cat(states, -1), output.text_embeds
