"""What keeps an optimizer from a step that would spoil the parameters, at the price of one norm and no extra wait."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


LARGEST_NORM = 1e18  # beyond, the squares of gradients that Adam and Adan keep may overflow in float32


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """L2 norm `()` of all gradients together, as `torch.nn.utils.clip_grad_norm_` computes it. It is infinite or NaN
    if an entry is."""
    return torch.nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None])


def is_safe(norm: float) -> bool:
    """Whether an optimizer may step by gradients of this norm; `False` for NaN."""
    return norm <= LARGEST_NORM


def read_together(values: Sequence[Tensor]) -> list[float]:
    """Scalars of one device as numbers, by one transfer: each `item()` would wait for the GPU."""
    return torch.stack([value.to(values[0].device) for value in values]).tolist()
