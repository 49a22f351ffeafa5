"""Checks of prompts and text embeddings for a prior, which run before any expensive work."""

# The keys of `config` are attributes, which diffusers does not declare.
# pyright: reportAttributeAccessIssue=false

from typing import TYPE_CHECKING

from .toybox.vocabulary import explain_no_object, explain_unknown_word, names_object, unknown_words
from .view_words import VIEWS


if TYPE_CHECKING:  # the CLI checks prompts before these slow imports
    from diffusers import UNet2DConditionModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


LARGE_VOCABULARY = 1000  # words; a tokenizer with fewer words is that of Toybox


class PromptError(ValueError):
    """Error for a prompt that the prior cannot encode: too long, with unknown words, or without an object."""


def check_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str | None, negative_prompt: str | None = "") -> None:
    """Check that a prior can encode a prompt with each view suffix, and a negative prompt.

    Raises:
        TypeError: If a prompt is not a string. The negative prompt may be `None`.
        ValueError: If the prompt is empty.
        PromptError: If a prompt is too long, has a word that is not in the vocabulary, or (Toybox only) names no
            object.
    """
    prompt = _checked(prompt, negative_prompt)
    longest = max((f"{prompt}, {view}" for view in VIEWS), key=len)
    for name, text in (("prompt with view words", longest), ("negative prompt", negative_prompt or "")):
        _check_words(tokenizer, text)
        length, limit = len(tokenizer(text).input_ids), max_tokens(tokenizer)
        if length > limit:
            raise PromptError(f"The {name} has {length} tokens; the prior accepts {limit}: {text!r}. Shorten it.")
    if len(tokenizer) < LARGE_VOCABULARY and not names_object(prompt):
        raise PromptError(explain_no_object(prompt))


def check_toybox_prompt(prompt: str | None, negative_prompt: str | None = "") -> None:
    """Check a prompt for Toybox as `check_prompt` does, but without a tokenizer and without the length limit.

    Raises:
        TypeError, ValueError, PromptError: See `check_prompt`.
    """
    prompt = _checked(prompt, negative_prompt)
    for word in unknown_words(f"{prompt} {negative_prompt or ''}"):
        raise PromptError(explain_unknown_word(word))
    if not names_object(prompt):
        raise PromptError(explain_no_object(prompt))


def _checked(prompt: str | None, negative_prompt: str | None) -> str:
    """Return the prompt, after checks of both texts."""
    if not isinstance(prompt, str) or not isinstance(negative_prompt, str | None):
        raise TypeError(f"prompt and negative_prompt must be strings, got {prompt!r} and {negative_prompt!r}.")
    if not prompt.strip():
        raise ValueError(f"The prompt is empty ({prompt!r}). Describe an object, such as 'a red mushroom'.")
    return prompt


def _check_words(tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
    """Check that all words of a text are in the vocabulary of a tokenizer.

    Word tokenizers mark unknown words. Tokenizers of word pieces, such as CLIP's, have no unknown words.
    """
    unknown = getattr(tokenizer, "unk_token", None)
    if unknown is None or unknown == tokenizer.eos_token:
        return
    for word in text.replace(",", " ").split():
        if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids:
            if len(tokenizer) >= LARGE_VOCABULARY:
                raise PromptError(f"The prior's tokenizer cannot encode {word!r}. Use other words.")
            raise PromptError(explain_unknown_word(word))


def max_tokens(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the maximum number of tokens in a prompt.

    The maximum is 77, as in CLIP and DeepFloyd IF, or the limit of the tokenizer if that limit is lower. T5's own
    limit is 512, or none.
    """
    return min(77, tokenizer.model_max_length)


def check_embeds(embeds: "Tensor", unet: "UNet2DConditionModel") -> None:
    """Check that prompt embeddings fit a UNet.

    Args:
        embeds: `(2 + len(VIEWS), tokens, dim)`, see `HiFAPipeline.encode_prompt`.
        unet: UNet of the prior.

    Raises:
        ValueError: If the embeddings have another shape.
    """
    expected = (2 + len(VIEWS), "tokens", text_width(unet))
    if embeds.ndim != 3 or (len(embeds), embeds.shape[2]) != expected[::2]:
        raise ValueError(
            f"prompt_embeds must be ({', '.join(map(str, expected))}) for this model, as returned by encode_prompt; "
            f"got {tuple(embeds.shape)}."
        )


def check_reads(unet: "UNet2DConditionModel | None", text_encoder: "PreTrainedModel | None") -> None:
    """Check that the text embeddings of an encoder have the width that a UNet expects.

    UNets with additional conditioning, such as that of SDXL, use a second text encoder and are not checked.

    Raises:
        ValueError: If the widths differ.
    """
    if unet is None or text_encoder is None or unet.config.addition_embed_type == "text_time":
        return
    wanted, given = text_width(unet), text_encoder.config.hidden_size
    if wanted != given:
        raise ValueError(
            f"The UNet expects text embeddings of width {wanted}, but the text encoder returns width {given}. "
            "Use components of the same model."
        )


def text_width(unet: "UNet2DConditionModel") -> int:
    """Return the width of the text embeddings that a UNet expects: values per token."""
    return unet.config.encoder_hid_dim or unet.config.cross_attention_dim
