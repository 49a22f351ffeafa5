"""What a prior can read of a prompt, found out before any work."""

from typing import TYPE_CHECKING

from .toybox.vocabulary import explain_no_object, explain_unknown_word, names_object, unknown_words
from .view_words import VIEWS


if TYPE_CHECKING:  # the command line checks prompts before it loads anything
    from diffusers import UNet2DConditionModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


LARGE_VOCABULARY = 1000  # words; a tokenizer with fewer is Toybox's


class PromptError(ValueError):
    """A prompt that the prior cannot read: too long, or with words that it does not know."""


def check_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str | None, negative_prompt: str | None = "") -> None:
    """Check that a prior can read a prompt with the words of each view, and a negative prompt.

    Raises:
        TypeError: If one is not a string; a negative prompt may be `None`.
        ValueError: For an empty prompt.
        PromptError: For an overlong one, a word that the tokenizer does not know, or with Toybox no object.
    """
    _check_texts(prompt, negative_prompt)
    longest = max((f"{prompt}, {view}" for view in VIEWS), key=len)
    for name, text in (("prompt with its view", longest), ("negative prompt", negative_prompt or "")):
        _check_words(tokenizer, text)
        length, limit = len(tokenizer(text).input_ids), max_tokens(tokenizer)
        if length > limit:
            raise PromptError(f"The {name} takes {length} tokens; the prior reads {limit}: {text!r}. Shorten it.")
    if len(tokenizer) < LARGE_VOCABULARY and not names_object(prompt):
        raise PromptError(explain_no_object(prompt))


def check_toybox_prompt(prompt: str | None, negative_prompt: str | None = "") -> None:
    """What `check_prompt` says of Toybox but for the length, without a tokenizer; errors as there."""
    _check_texts(prompt, negative_prompt)
    for word in unknown_words(f"{prompt} {negative_prompt or ''}"):
        raise PromptError(explain_unknown_word(word))
    if not names_object(prompt):
        raise PromptError(explain_no_object(prompt))


def _check_texts(prompt: str | None, negative_prompt: str | None) -> None:
    if not isinstance(prompt, str) or not isinstance(negative_prompt, str | None):
        raise TypeError(f"prompt and negative_prompt must be strings, got {prompt!r} and {negative_prompt!r}.")
    if not prompt.strip():
        raise ValueError(f"The prompt is empty ({prompt!r}). Say what to make, such as 'a red mushroom'.")


def _check_words(tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
    """A tokenizer of whole words marks the unknown ones; one of word pieces, such as CLIP's, knows them all."""
    unknown = getattr(tokenizer, "unk_token", None)
    if unknown is None or unknown == tokenizer.eos_token:
        return
    for word in text.replace(",", " ").split():
        if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids:
            if len(tokenizer) >= LARGE_VOCABULARY:
                raise PromptError(f"The prior's tokenizer cannot read {word!r}. Say it in other words.")
            raise PromptError(explain_unknown_word(word))


def max_tokens(tokenizer: "PreTrainedTokenizerBase") -> int:
    """How long a prompt may be: 77, as CLIP and DeepFloyd IF read, or less if the tokenizer says so. T5's own limit is
    512, or none."""
    return min(77, tokenizer.model_max_length)


def check_embeds(embeds: "Tensor", unet: "UNet2DConditionModel") -> None:
    """Check that embeddings can be those of a prompt for a UNet.

    Args:
        embeds: `(2 + len(VIEWS), tokens, dim)`, see `HiFAPipeline.encode_prompt`.

    Raises:
        ValueError: If they have another shape.
    """
    expected = (2 + len(VIEWS), "tokens", text_width(unet))
    if embeds.ndim != 3 or (len(embeds), embeds.shape[2]) != expected[::2]:
        raise ValueError(
            f"prompt_embeds must be ({', '.join(map(str, expected))}) for this model, as encode_prompt gives them; "
            f"got {tuple(embeds.shape)}."
        )


def check_reads(unet: "UNet2DConditionModel | None", text_encoder: "PreTrainedModel | None") -> None:
    """Check that a UNet reads what a text encoder writes. One that is told more than that, as SDXL's is, has another
    encoder beside it, and is left alone.

    Raises:
        ValueError: If the embeddings are of another width.
    """
    if unet is None or text_encoder is None or unet.config.addition_embed_type == "text_time":
        return
    wanted, given = text_width(unet), text_encoder.config.hidden_size
    if wanted != given:
        raise ValueError(
            f"The UNet reads text embeddings of {wanted} numbers, but the text encoder writes {given}: they belong to "
            "different models."
        )


def text_width(unet: "UNet2DConditionModel") -> int:
    """Numbers in each token's embedding that a UNet reads."""
    return unet.config.encoder_hid_dim or unet.config.cross_attention_dim
