"""Multi-resolution hash encoding (Mueller et al. 2022, "Instant Neural Graphics Primitives", section 3).

The encoding has three implementations: compiled loops for a CPU (`hash_grid_cpu`), Triton kernels for CUDA
(`hash_grid_triton`), and plain PyTorch for every other device and for CUDA without Triton.
"""

import math
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from .hash_grid_cpu import encode_backward, encode_forward, share_threads


PRIMES = (1, 2654435761, 805459861)
FEATURES = 2  # features per table entry (F), as in all experiments of the paper
HAS_TRITON = find_spec("triton") is not None


def level_resolutions(levels: int, base: int, finest: int) -> list[int]:
    """Return the cells per axis of each level, a geometric series from `base` to `finest` (equations 2 and 3)."""
    growth = (finest / base) ** (1 / max(levels - 1, 1))
    # The small term keeps the last level at `finest` when rounding makes the power slightly too small.
    return [math.floor(base * growth**level + 1e-6) for level in range(levels)]


def encode_torch(points: Tensor, table: Tensor, resolutions: list[int], entries: int) -> Tensor:
    """Encode points in plain PyTorch, on any device. Gradients reach the table only.

    Args:
        points: `(n, 3)` in [0, 1].
        table: `(levels * entries, 2)`.
        resolutions: Cells per axis of each level.
        entries: Table size of a level, a power of two.

    Returns:
        `(n, 2 * levels)`.
    """
    corners = torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)], device=points.device)
    encoded = []
    for level, resolution in enumerate(resolutions):
        scaled = points.clamp(0, 1) * resolution
        cell = scaled.floor().clamp(max=resolution - 1)
        fraction = scaled - cell
        corner = cell.long()[:, None] + corners  # (n, 8, 3)
        if (resolution + 1) ** 3 <= entries:
            index = corner[..., 0] + (resolution + 1) * (corner[..., 1] + (resolution + 1) * corner[..., 2])
        else:
            index = corner[..., 0] * PRIMES[0] ^ corner[..., 1] * PRIMES[1] ^ corner[..., 2] * PRIMES[2]
            index = index & (entries - 1)
        weight = torch.where(corners == 1, fraction[:, None], 1 - fraction[:, None]).prod(-1)  # (n, 8)
        encoded.append(
            nn.functional.embedding_bag(index + level * entries, table, per_sample_weights=weight, mode="sum")
        )
    return torch.cat(encoded, -1)


def implementation(device_type: str, has_triton: bool) -> str:
    """Return the implementation for a device type: `"loops"`, `"triton"` or `"torch"`."""
    if device_type == "cpu":
        return "loops"
    return "triton" if device_type == "cuda" and has_triton else "torch"


class _EncodeOnCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, points: Tensor, table: Tensor, resolutions: Tensor, entries: int) -> Tensor:
        ctx.save_for_backward(points, resolutions)
        ctx.entries, ctx.table_shape = entries, table.shape
        out = torch.empty(len(points), FEATURES * len(resolutions))
        share_threads()
        encode_forward(points.numpy(), table.detach().numpy(), resolutions.numpy(), entries, out.numpy())
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        points, resolutions = ctx.saved_tensors
        grad_table = torch.zeros(ctx.table_shape)
        share_threads()
        encode_backward(
            points.numpy(), grad.contiguous().numpy(), resolutions.numpy(), ctx.entries, grad_table.numpy()
        )
        return None, grad_table, None, None


class HashGrid(nn.Module):
    """Trainable multi-resolution hash grid.

    Args:
        levels: Number of levels L.
        base_resolution, max_resolution: Cells per axis of the first and the last level.
        log2_hashmap_size: log2 of the table size T of a level. A level with more than T grid points is hashed.
    """

    resolutions: Tensor

    def __init__(self, levels: int, base_resolution: int, max_resolution: int, log2_hashmap_size: int):
        super().__init__()
        self.entries = 2**log2_hashmap_size
        resolutions = level_resolutions(levels, base_resolution, max_resolution)
        self.register_buffer("resolutions", torch.tensor(resolutions), persistent=False)
        self.table = nn.Parameter(torch.empty(levels * self.entries, FEATURES))
        self.out_features = FEATURES * levels

    def reset(self, generator: torch.Generator | None) -> None:
        """Initialize the table uniformly in [-1e-4, 1e-4], as in the paper."""
        with torch.no_grad():
            values = torch.rand(self.table.shape, generator=generator, device=generator.device if generator else None)
            self.table.copy_((2 * values - 1) * 1e-4)

    def forward(self, points: Tensor) -> Tensor:
        """Encode points `(n, 3)` in [0, 1] to `(n, 2 * levels)`. Gradients reach the table, not the points."""
        chosen = implementation(points.device.type, HAS_TRITON)
        if chosen == "loops":
            return _EncodeOnCPU.apply(points.detach().contiguous(), self.table, self.resolutions, self.entries)
        if chosen == "triton":
            from .hash_grid_triton import EncodeTriton  # importing Triton takes 1 s; a CPU does not need Triton

            return EncodeTriton.apply(points, self.table, self.resolutions, self.entries)
        return encode_torch(points, self.table, self.resolutions.tolist(), self.entries)
