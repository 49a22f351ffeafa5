"""What a prior can read of a prompt, found out before any work."""

from transformers import PreTrainedTokenizerBase

from .cameras import VIEWS
from .toybox.vocabulary import explain_unknown_word


class PromptError(ValueError):
    """A prompt that the prior cannot read: too long, or with words that it does not know."""


def check_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | None, negative_prompt: str | None = "") -> None:
    """Check that a prior can read a prompt with the words of each view, and a negative prompt.

    Raises:
        TypeError: If one is not a string; a negative prompt may be `None`.
        ValueError: For an empty prompt.
        PromptError: For an overlong one, or a word that the tokenizer does not know.
    """
    if not isinstance(prompt, str) or not isinstance(negative_prompt, str | None):
        raise TypeError(f"prompt and negative_prompt must be strings, got {prompt!r} and {negative_prompt!r}.")
    if not prompt.strip():
        raise ValueError(f"The prompt is empty ({prompt!r}). Say what to make, such as 'a red mushroom'.")
    longest = max((f"{prompt}, {view}" for view in VIEWS), key=len)
    for text in (longest, negative_prompt or ""):
        _check_words(tokenizer, text)
        length, limit = len(tokenizer(text).input_ids), tokenizer.model_max_length
        if length > limit:
            raise PromptError(
                f"The prompt takes {length} tokens with its view; the prior reads {limit}: {text!r}. Shorten it."
            )


def _check_words(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """A tokenizer of whole words marks the unknown ones; one of word pieces, such as CLIP's, knows them all."""
    unknown = getattr(tokenizer, "unk_token", None)
    if unknown is None or unknown == tokenizer.eos_token:
        return
    for word in text.replace(",", " ").split():
        if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids:
            raise PromptError(explain_unknown_word(word))
