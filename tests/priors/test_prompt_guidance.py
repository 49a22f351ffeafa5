"""Guidance: classifier-free with a strength of its own for the view, and Perp-Neg, by hand."""

import pytest
import torch

from hifa.cameras import VIEWS, Camera
from hifa.priors.prompt_embeddings import PromptEmbeddings
from hifa.priors.prompt_guidance import classifier_free, perp_neg, perp_neg_weights, perpendicular


def randn(seed: int, shape: tuple[int, ...] = (1, 4, 8, 8)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


EMBEDDINGS = PromptEmbeddings(randn(7, (2 + len(VIEWS), 5, 3)))
NEGATIVE, PLAIN, FRONT, SIDE, BACK, OVERHEAD = EMBEDDINGS.tokens


@pytest.mark.parametrize(
    "scale, k, asked", [(1.0, 1.0, [BACK]), (7.5, 1.0, [NEGATIVE, BACK]), (7.5, 2.0, [NEGATIVE, PLAIN, BACK])]
)
def test_only_what_is_needed_is_asked(scale, k, asked):
    guidance = classifier_free(EMBEDDINGS, VIEWS.index("back view"), scale, k, 0.0)
    assert torch.equal(guidance.prompts.tokens, torch.stack(asked))


def test_rescaling_brings_back_the_standard_deviation():
    negative, positive = randn(0), randn(1)
    combine = classifier_free(EMBEDDINGS, 0, 20.0, 1.0, 1.0).combine
    assert combine(torch.cat([negative, positive])).std() == pytest.approx(positive.std().item(), rel=1e-5)


def test_perpendicular_by_hand():
    x, direction = (torch.tensor(v).view(1, 1, 1, 2) for v in ([3.0, 4.0], [2.0, 0.0]))
    torch.testing.assert_close(perpendicular(x, direction), torch.tensor([0.0, 4.0]).view(1, 1, 1, 2))
    assert not perpendicular(x, x).abs().max() > 1e-6


@pytest.mark.parametrize(
    "azimuth, mixed, negatives",
    [
        (0, FRONT, (FRONT, SIDE)),
        (60, FRONT / 3 + SIDE * 2 / 3, (FRONT, SIDE)),
        (-60, FRONT / 3 + SIDE * 2 / 3, (FRONT, SIDE)),
        (120, SIDE * 2 / 3 + BACK / 3, (SIDE, FRONT)),
        (180, BACK, (SIDE, FRONT)),
        (240, SIDE * 2 / 3 + BACK / 3, (SIDE, FRONT)),
    ],
)
def test_prompts_of_perp_neg(azimuth, mixed, negatives):
    prompts = perp_neg(EMBEDDINGS, Camera(azimuth, 15.0), 100.0, 2.0).prompts
    torch.testing.assert_close(prompts.tokens, torch.stack([NEGATIVE, mixed, *negatives]))


def test_perp_neg_by_hand():
    """At azimuth 60, with the formula written out for four outputs."""
    u, c, front, side = outputs = randn(3, (4, 4, 8, 8))
    guidance = perp_neg(EMBEDDINGS, Camera(60.0, 15.0), 10.0, 2.0)
    w_front, w_side = perp_neg_weights(60.0, 2.0)
    direction, expected = c - u, c - u
    for other, weight in ((front - u, w_front), (side - u, w_side)):
        expected = expected + weight * (other - (other * direction).sum() / (direction**2).sum() * direction)
    torch.testing.assert_close(guidance.combine(outputs)[0], u + 10 * expected, rtol=1e-4, atol=1e-4)


def test_a_negative_along_the_prompt_changes_nothing():
    u, c = randn(4), randn(5)
    guidance = perp_neg(EMBEDDINGS, Camera(150.0, 15.0), 10.0, 2.0)
    outputs = torch.cat([u, c, u + 0.3 * (c - u), u - 2 * (c - u)])
    torch.testing.assert_close(guidance.combine(outputs), u + 10 * (c - u), rtol=1e-4, atol=1e-4)


def test_perp_neg_knows_no_overhead():
    ours = perp_neg(EMBEDDINGS, Camera(20.0, 75.0), 10.0, 2.0)
    assert torch.equal(ours.prompts.tokens, torch.stack([NEGATIVE, OVERHEAD]))
    negative, positive = randn(0), randn(1)
    expected = negative + 10 * (positive - negative)
    torch.testing.assert_close(ours.combine(torch.cat([negative, positive])), expected)


def test_weights_grow_with_their_strength_and_are_those_of_the_mirrored_camera():
    for azimuth in (10.0, 70.0, 100.0, 170.0):
        single, double = perp_neg_weights(azimuth, 1.0), perp_neg_weights(azimuth, 2.0)
        assert double == pytest.approx([2 * weight for weight in single])
        assert perp_neg_weights(-azimuth, 1.0) == single == perp_neg_weights(360 - azimuth, 1.0)
