"""Help with prompts for a prior that knows few words: which are unknown, while typing, and what there is."""

import html
import re

from transformers import PreTrainedTokenizerBase

from ..toybox.vocabulary import COLOURS, KIND_WORDS, PUNCTUATION, all_words, nearest_words


def knows_few_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """A tokenizer of whole words marks the unknown ones; one of word pieces, such as CLIP's, knows them all."""
    return tokenizer.unk_token is not None and tokenizer.unk_token != tokenizer.eos_token


def unknown_words(text: str) -> list[str]:
    """Words outside of the vocabulary. The last one is left alone while it may become a known one."""
    known = set(all_words())
    words = re.sub(f"{PUNCTUATION}|,", " ", text.lower()).split()
    typing = text[-1:].isalnum() and bool(words)
    return [
        word
        for index, word in enumerate(words)
        if word not in known and not (typing and index == len(words) - 1 and any(k.startswith(word) for k in known))
    ]


def prompt_hint(text: str) -> str:
    """HTML: unknown words and the nearest known ones; empty if there are none."""
    hints = [
        f"<p><b>{html.escape(word)}</b> is not in Toybox's vocabulary; near are {', '.join(nearest_words(word))}.</p>"
        for word in dict.fromkeys(unknown_words(text[:500]))
    ]
    return f"<div class='hint' role='status'>{''.join(hints)}</div>" if hints else ""


def vocabulary_html() -> str:
    """Kinds with their synonyms and colours with their shade."""
    kinds = ", ".join(
        kind + (f" <i>({', '.join(others)})</i>" if (others := [w for w in words if w != kind]) else "")
        for kind, words in KIND_WORDS.items()
    )
    colours = ", ".join(
        "<span style='display:inline-block;width:.8em;height:.8em;border-radius:50%;border:1px solid #8888;"
        f"background:rgb({','.join(str(round(255 * value)) for value in rgb)})'></span>&nbsp;{colour}"
        for colour, rgb in COLOURS.items()
    )
    return (
        "<p>The embedded Toybox prior was trained on a small world: an object in one colour, or one on another, as in "
        f"“a red ball on a blue cube”.</p><p><b>Objects:</b> {kinds}</p><p><b>Colours:</b> {colours}</p>"
    )
