"""Guard against optimizer steps with gradients that are not finite.

The guard computes one gradient norm and needs no extra GPU synchronization.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


LARGEST_NORM = 1e18  # Above this norm, the squared gradients of Adam and Adan can overflow in float32.


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Compute the L2 norm `()` of all gradients together, as `torch.nn.utils.clip_grad_norm_` does.

    The norm is infinite or NaN if an entry of a gradient is.
    """
    return torch.nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None])


def is_safe(norm: float) -> bool:
    """Return whether an optimizer may step with gradients of this norm; `False` for NaN."""
    return norm <= LARGEST_NORM


def read_together(values: Sequence[Tensor]) -> list[float]:
    """Return scalar tensors as Python numbers in one transfer.

    Each `item()` would synchronize with the GPU.
    """
    return torch.stack([value.to(values[0].device) for value in values]).tolist()
