"""Vocabulary of Toybox: kinds, colors, synonyms, views, and the phrases of captions."""

import difflib
import re

from ..view_words import VIEWS


# sRGB in [0, 1]. The colors remain distinct under the world's shading.
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.08, 0.08),
    "orange": (0.98, 0.50, 0.06),
    "yellow": (0.98, 0.87, 0.10),
    "green": (0.12, 0.60, 0.16),
    "cyan": (0.10, 0.80, 0.82),
    "blue": (0.12, 0.24, 0.86),
    "purple": (0.50, 0.14, 0.70),
    "pink": (0.98, 0.55, 0.74),
    "brown": (0.42, 0.23, 0.10),
    "white": (0.95, 0.95, 0.95),
    "gray": (0.50, 0.50, 0.51),
    "black": (0.09, 0.09, 0.10),
}

COLOR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue", "navy"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "brown": ("brown", "chocolate"),
    "white": ("white", "ivory"),
    "gray": ("gray", "grey"),
    "black": ("black", "ebony"),
}

KIND_WORDS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "sphere"),
    "cube": ("cube", "box", "block"),
    "donut": ("donut", "doughnut"),
    "mug": ("mug", "cup"),
    "mushroom": ("mushroom", "toadstool"),
    "chair": ("chair", "seat"),
    "table": ("table", "desk"),
    "house": ("house", "cottage"),
    "car": ("car", "automobile"),
    "rocket": ("rocket", "spaceship"),
    "snowman": ("snowman",),
    "ice cream": ("ice cream", "ice cream cone"),
    "tree": ("tree", "fir tree"),
    "duck": ("duck", "rubber duck"),
    "teddy bear": ("teddy bear", "teddy", "bear"),
    "bottle": ("bottle", "flask"),
    "lamp": ("lamp", "table lamp"),
    "sailboat": ("sailboat", "boat", "ship"),
    "airplane": ("airplane", "plane"),
    "umbrella": ("umbrella", "parasol"),
    "sofa": ("sofa", "couch"),
    "rabbit": ("rabbit", "bunny"),
    "robot": ("robot", "android"),
    "top hat": ("top hat", "hat"),
}

# Phrases before the object. The article agrees with the next word.
OPENINGS = (
    "{a} ",
    "{a} ",
    "{a} ",
    "",
    "the ",
    "one ",
    "a photo of {a} ",
    "a 3d model of {a} ",
    "a picture of {a} ",
    "a toy of {a} ",
    "a rendering of {a} ",
)
SIZE_WORDS = ("", "", "", "", "small ", "big ", "shiny ")

_FILLERS = (
    "a",
    "an",
    "the",
    "one",
    "photo",
    "picture",
    "rendering",
    "3d",
    "model",
    "toy",
    "of",
    "on",
    "top",
    "sitting",
    "standing",
    "placed",
    "small",
    "big",
    "shiny",
    ",",
    "view",
)


# Ignored characters, which the tokenizer replaces by spaces.
PUNCTUATION = "[.!?;:\"'()…“”‘’–—-]"


def words(text: str) -> list[str]:
    """Return the lowercase words and commas of a caption, as the tokenizer splits them."""
    return re.findall(r"[a-z0-9]+|,", text.lower())


def all_words() -> list[str]:
    """Return every word that captions can contain, sorted."""
    phrases = [*_FILLERS, *VIEWS]
    for synonyms in (*COLOR_WORDS.values(), *KIND_WORDS.values()):
        phrases.extend(synonyms)
    return sorted({word for phrase in phrases for word in words(phrase)})


def unknown_words(text: str) -> list[str]:
    """Return the words of a prompt that are outside of the vocabulary, as typed."""
    known = set(all_words())
    typed = text.replace(",", " ").split()
    return [word for word in typed if not known.issuperset(re.sub(PUNCTUATION, " ", word.lower()).split())]


def names_object(text: str) -> bool:
    """Return whether a prompt names a kind or a synonym of a kind."""
    padded = f" {' '.join(words(text))} "
    return any(f" {phrase} " in padded for synonyms in KIND_WORDS.values() for phrase in synonyms)


def nearest_words(word: str, count: int = 3) -> list[str]:
    """Return the known words whose spelling is closest to `word`."""
    return difflib.get_close_matches(word.lower(), all_words(), n=count, cutoff=0.0)


def explain_unknown_word(word: str) -> str:
    """Return the error message for a word outside of the vocabulary."""
    return (
        f"The embedded Toybox prior does not know the word {word!r}. Similar words: "
        f"{', '.join(map(repr, nearest_words(word)))}. {_what_it_knows()}"
    )


def explain_no_object(prompt: str) -> str:
    """Return the error message for a prompt that names no object."""
    return f"The prompt {prompt!r} names no object that the embedded Toybox prior can make. {_what_it_knows()}"


def _what_it_knows() -> str:
    return (
        f"Objects: {', '.join(KIND_WORDS)}. Colors: {', '.join(COLOR_WORDS)}. Pairs such as 'a red ball on a blue "
        "cube' work, too. For other subjects, use an open-vocabulary prior on a GPU: "
        "HiFAPipeline.from_pretrained('stable-diffusion-v1-5/stable-diffusion-v1-5') in Python, --model on the "
        "command line, or another Prior in the app."
    )
