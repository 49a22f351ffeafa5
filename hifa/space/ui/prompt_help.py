"""Prompt help for priors with a small vocabulary: hints about unknown words while typing, and a word list."""

import html
import re

from transformers import PreTrainedTokenizerBase

from ...toybox.vocabulary import COLORS, KIND_WORDS, PUNCTUATION, all_words, nearest_words


def knows_few_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer has a small vocabulary of whole words.

    Such a tokenizer has a separate token for unknown words. A word-piece tokenizer, such as CLIP's, encodes any word.
    """
    return tokenizer.unk_token is not None and tokenizer.unk_token != tokenizer.eos_token


def unknown_words(text: str) -> list[str]:
    """Return the words outside of the vocabulary, except for an unfinished last word that begins a known word."""
    known = set(all_words())
    words = re.sub(f"{PUNCTUATION}|,", " ", text.lower()).split()
    typing = text[-1:].isalnum() and bool(words)
    return [
        word
        for index, word in enumerate(words)
        if word not in known and not (typing and index == len(words) - 1 and any(k.startswith(word) for k in known))
    ]


def prompt_hint(text: str) -> str:
    """Return HTML with the unknown words and the nearest known words; empty if all words are known."""
    hints = [
        f"<p><b>{html.escape(word)}</b> is not in Toybox's vocabulary. Try {', '.join(nearest_words(word))}.</p>"
        for word in dict.fromkeys(unknown_words(text[:500]))
    ]
    return f"<div class='hint' role='status'>{''.join(hints)}</div>" if hints else ""


def vocabulary_html() -> str:
    """Return HTML with all kinds of objects and their synonyms, and all colors with a swatch."""
    kinds = ", ".join(
        kind + (f" <i>({', '.join(others)})</i>" if (others := [w for w in words if w != kind]) else "")
        for kind, words in KIND_WORDS.items()
    )
    colors = ", ".join(
        "<span style='display:inline-block;width:.8em;height:.8em;border-radius:50%;border:1px solid #8888;"
        f"background:rgb({','.join(str(round(255 * value)) for value in rgb)})'></span>&nbsp;{color}"
        for color, rgb in COLORS.items()
    )
    return (
        "<p>The embedded Toybox prior was trained on objects in one color, alone or one on top of another, as in "
        f"“a red ball on a blue cube”.</p><p><b>Objects:</b> {kinds}</p><p><b>Colors:</b> {colors}</p>"
    )
