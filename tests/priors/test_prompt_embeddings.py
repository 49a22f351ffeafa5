"""Test the embeddings of several prompts: rows, mixtures and concatenations, with and without a pooled part."""

import pytest
import torch

from hifa import PromptEmbeddings
from hifa.cameras import VIEWS


TOKENS = torch.randn(2 + len(VIEWS), 5, 3, generator=torch.Generator().manual_seed(0))
POOLED = torch.randn(2 + len(VIEWS), 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[None, POOLED], ids=["tokens", "pooled"])
def embeddings(request) -> PromptEmbeddings:
    return PromptEmbeddings(TOKENS, request.param)


def assert_parts(embeddings: PromptEmbeddings, whole: PromptEmbeddings, expected) -> None:
    """Check both parts of embeddings against a function of the parts of other embeddings."""
    assert torch.equal(embeddings.tokens, expected(whole.tokens))
    assert (embeddings.pooled is None) == (whole.pooled is None)
    if whole.pooled is not None:
        assert torch.equal(embeddings.pooled, expected(whole.pooled))


@pytest.mark.parametrize("rows", [[0, 2], (3, 1), [4], range(3)])
def test_rows(embeddings, rows):
    selected = embeddings[rows]
    assert len(selected) == len(rows) and len(embeddings) == 2 + len(VIEWS)
    assert_parts(selected, embeddings, lambda part: torch.stack([part[row] for row in rows]))


def test_rows_of_a_run(embeddings):
    assert_parts(embeddings.negative, embeddings, lambda part: part[:1])
    assert_parts(embeddings.prompt, embeddings, lambda part: part[1:2])
    for view in range(len(VIEWS)):
        assert_parts(embeddings.for_view(view), embeddings, lambda part, view=view: part[2 + view : 3 + view])


def test_mixtures(embeddings):
    front, side = embeddings.for_view(0), embeddings.for_view(1)
    assert_parts(front.mixed(side, 0.25), embeddings, lambda part: 0.25 * part[2:3] + 0.75 * part[3:4])


def test_concatenations(embeddings):
    parts = [embeddings.negative, embeddings[[3, 2]], embeddings.prompt]
    assert_parts(PromptEmbeddings.joined(parts), embeddings, lambda part: part[[0, 3, 2, 1]])


def test_copies_in_another_type(embeddings):
    half = embeddings.to(torch.device("cpu"), torch.float16)
    assert_parts(half, embeddings, lambda part: part.half())
    copy = embeddings.to(torch.device("cpu"), copy=True)
    copy.tokens.zero_()
    assert embeddings.tokens.abs().min() > 0 and torch.equal(embeddings.to(torch.device("cpu")).tokens, TOKENS)
