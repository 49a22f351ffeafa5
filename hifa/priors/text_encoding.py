"""Encoding of prompts by the text encoders of a prior, and checks of the embeddings."""

import gc

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from ..cameras import VIEWS
from ..prompts import PromptError, check_embeds, check_prompt, max_tokens
from .prompt_embeddings import PromptEmbeddings
from .sdxl import encode_with_both, is_sdxl, pooled_dim


@torch.no_grad()
def encode_prompt(pipe: DiffusionPipeline, prompt: str, negative_prompt: str = "") -> PromptEmbeddings:
    """Encode the negative prompt, the prompt, and the prompt with each view suffix.

    Args:
        pipe: Pipeline, for the text encoders and tokenizers.
        prompt: Prompt.
        negative_prompt: Negative prompt.
    """
    texts = [negative_prompt, prompt, *(f"{prompt}, {view}" for view in VIEWS)]
    device = pipe._execution_device
    if pipe.text_encoder_2 is not None:
        encoders, tokenizers = (pipe.text_encoder, pipe.text_encoder_2), (pipe.tokenizer, pipe.tokenizer_2)
        tokens, pooled = encode_with_both(texts, encoders, tokenizers, device)
        if not negative_prompt and pipe.config["force_zeros_for_empty_prompt"]:
            tokens[0], pooled[0] = 0, 0
        return PromptEmbeddings(tokens, pooled)
    if pipe.vae is None:  # DeepFloyd IF was trained on lowercase captions.
        texts = [text.lower().strip() for text in texts]
    batch = pipe.tokenizer(
        texts, padding="max_length", max_length=max_tokens(pipe.tokenizer), truncation=True, return_tensors="pt"
    ).to(device)
    # CLIP was trained with padding tokens and T5 with a mask.
    mask = batch.attention_mask if isinstance(pipe.text_encoder, T5EncoderModel) else None
    return PromptEmbeddings(pipe.text_encoder(batch.input_ids, attention_mask=mask)[0])


def check_text(pipe: DiffusionPipeline, prompt: str | None, negative_prompt: str | None, guided: bool) -> str:
    """Check a prompt.

    Args:
        pipe: Pipeline, for the tokenizer.
        prompt: Prompt, or `None`.
        negative_prompt: Negative prompt, or `None`.
        guided: Whether given views guide the run. A prompt that the prior cannot encode is then no error.

    Returns:
        A note for the user if the run continues without the prompt; otherwise empty.

    Raises:
        TypeError, ValueError: If the prompt is invalid, or there is no text encoder.
    """
    if prompt is None and guided:
        return ""
    needed = [pipe.text_encoder, pipe.tokenizer]
    if is_sdxl(pipe.unet):
        needed += [pipe.text_encoder_2, pipe.tokenizer_2]
    if None in needed:
        raise ValueError("No text encoder is loaded. Pass prompt_embeds, or load the model with its text encoder.")
    try:
        check_prompt(pipe.tokenizer, prompt, negative_prompt)
    except PromptError as error:
        if not guided:
            raise
        return f"The object is reconstructed from the views only, without the prior: {error}"
    return ""


def check_embeddings(embeddings: PromptEmbeddings, unet: UNet2DConditionModel) -> None:
    """Check that embeddings have the shapes that a UNet expects.

    Raises:
        ValueError: If a shape is wrong, for example because the embeddings belong to another kind of model.
    """
    check_embeds(embeddings.tokens, unet)
    expected = (2 + len(VIEWS), pooled_dim(unet)) if is_sdxl(unet) else None
    got = None if embeddings.pooled is None else tuple(embeddings.pooled.shape)
    if got != expected:
        raise ValueError(
            f"The pooled part of prompt_embeds must be {expected} for this model, got {got}. Use encode_prompt."
        )


def check_second_encoder(unet: UNet2DConditionModel, text_encoder_2: CLIPTextModelWithProjection | None) -> None:
    """Check that the second text encoder of SDXL has the pooled width that the UNet expects.

    The refiner of SDXL fails this check, because its UNet also gets an aesthetic score.

    Raises:
        ValueError: If the widths differ.
    """
    if text_encoder_2 is None or not is_sdxl(unet):
        return
    wanted, given = pooled_dim(unet), text_encoder_2.config.projection_dim
    if wanted != given:
        raise ValueError(
            f"The UNet expects a pooled embedding of {wanted} numbers, but text_encoder_2 returns {given}. SDXL's "
            "refiner is such a model, and it only refines images. Load the base model."
        )


def release_text_encoders(pipe: DiffusionPipeline) -> None:
    """Free the text encoders of a pipeline."""
    # Each hook of `enable_model_cpu_offload` holds a reference to its model and to the previous hook.
    offloaded = bool(getattr(pipe, "_all_hooks", None))
    if offloaded:
        pipe.remove_all_hooks()
    pipe.register_modules(text_encoder=None, text_encoder_2=None)
    gc.collect()  # A model that had a hook is part of a reference cycle.
    if offloaded:
        pipe.enable_model_cpu_offload(device=pipe._offload_device)
