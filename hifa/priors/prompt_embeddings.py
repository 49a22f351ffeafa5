"""Text embeddings of the prompts of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptEmbeddings:
    """Embeddings of several prompts, one row for each prompt.

    The embeddings of a run have the rows negative prompt, prompt, and the prompt with each suffix of `cameras.VIEWS`.
    The properties and `for_view` select rows of such embeddings.

    Args:
        tokens: `(n, tokens, dim)` embeddings.
        pooled: `(n, pooled)` pooled embeddings of the same prompts, for a prior that takes them (SDXL).
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Sequence[int]) -> Self:
        """Return the embeddings of several rows."""
        rows = list(rows)
        return type(self)(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    @property
    def negative(self) -> Self:
        """Return the row of the negative prompt."""
        return self[[0]]

    @property
    def prompt(self) -> Self:
        """Return the row of the prompt without a view suffix."""
        return self[[1]]

    def for_view(self, view: int) -> Self:
        """Return the row of the prompt with the suffix `cameras.VIEWS[view]`."""
        return self[[2 + view]]

    def mixed(self, other: Self, share: float) -> Self:
        """Return `share * self + (1 - share) * other`, for tokens and pooled embeddings."""
        pooled = None if self.pooled is None else share * self.pooled + (1 - share) * cast(Tensor, other.pooled)
        return type(self)(share * self.tokens + (1 - share) * other.tokens, pooled)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the rows of several embeddings."""
        pooled = None if parts[0].pooled is None else torch.cat([cast(Tensor, part.pooled) for part in parts])
        return cls(torch.cat([part.tokens for part in parts]), pooled)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None, copy: bool = False) -> Self:
        """Return the embeddings on a device, optionally in another data type or as a copy."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype, copy=copy)
        return type(self)(self.tokens.to(device, dtype, copy=copy), pooled)
