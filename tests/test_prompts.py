"""What Toybox reads of a prompt, with its tokenizer and without it, as the command line does."""

import pytest

from hifa import TOYBOX
from hifa.prompts import PromptError, check_prompt, check_toybox_prompt
from hifa.space.ui.prompt_help import unknown_words
from hifa.toybox.models import build_tokenizer


@pytest.fixture(scope="module", params=["built", "packaged"])
def tokenizer(request):
    from transformers import AutoTokenizer

    return build_tokenizer() if request.param == "built" else AutoTokenizer.from_pretrained(TOYBOX / "tokenizer")


@pytest.mark.parametrize("prompt", ["a red mushroom.", "“A red mushroom!”", "a red - mushroom?", "a red mushroom…"])
def test_punctuation_says_nothing(tokenizer, prompt):
    assert tokenizer(prompt).input_ids == tokenizer("a red mushroom").input_ids
    check_prompt(tokenizer, prompt)
    check_toybox_prompt(prompt)
    assert not unknown_words(prompt)


@pytest.mark.parametrize(
    "prompt, words",
    [
        ("a red zebra.", "the word 'zebra.'"),
        ("红色 mushroom", "'红色'"),
        ("a red/blue ball", "'red/blue'"),
        ("a photo of", "'a photo of' names no object"),
        ("a red cream", "names no object"),
        ("...", "names no object"),
    ],
)
def test_both_checks_refuse_the_same(tokenizer, prompt, words):
    with pytest.raises(PromptError, match=words):
        check_prompt(tokenizer, prompt)
    with pytest.raises(PromptError, match=words):
        check_toybox_prompt(prompt)


@pytest.mark.parametrize("prompt", ["a teddy-bear", "ice cream", "a doughnut on a desk", "a photo of a TOP hat"])
def test_every_name_of_an_object_will_do(tokenizer, prompt):
    check_prompt(tokenizer, prompt, "a shiny photo of")  # what is not wanted need not be an object
    check_toybox_prompt(prompt, "a shiny photo of")


def test_hints_wait_while_a_word_is_typed():
    assert unknown_words("a red mushr") == [] != unknown_words("a red mushr.")
