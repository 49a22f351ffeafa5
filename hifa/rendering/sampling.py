"""Where to sample a ray: stratified coarse samples, then kernel-smoothed importance sampling (HiFA section 4.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cameras import Rays


BOXCAR = (1.0, 1.0, 1.0)


def box_intersection(rays: Rays, bound: float) -> tuple[Tensor, Tensor]:
    """Distances `(n_rays,)` at which each ray enters and leaves the cube [-bound, bound]^3; equal where it misses."""
    # A direction component of zero would make 0 * inf = NaN on the face itself.
    directions = torch.where(rays.directions.abs() < 1e-9, torch.full_like(rays.directions, 1e-9), rays.directions)
    first, second = (-bound - rays.origins) / directions, (bound - rays.origins) / directions
    near = torch.minimum(first, second).amax(-1).clamp_min(0.0)
    far = torch.maximum(first, second).amin(-1)
    return near, torch.maximum(near, far)


def stratified_edges(near: Tensor, far: Tensor, n_samples: int, offset: Tensor | None = None) -> Tensor:
    """Edges `(n_rays, n_samples + 1)` of equal cells between near and far.

    Args:
        near, far: `(n_rays,)`.
        n_samples: Number of cells.
        offset: `(n_rays,)` in [0, 1): shifts all edges of a ray by up to half a cell either way, clipped to
            [near, far], in place of jitter within each cell: neighbouring cells keep touching. 0.5 is no shift.
    """
    steps = torch.linspace(0, 1, n_samples + 1, device=near.device, dtype=near.dtype).expand(len(near), -1)
    if offset is not None:
        steps = (steps + (offset[:, None] - 0.5) / n_samples).clamp(0, 1)
    return near[:, None] + (far - near)[:, None] * steps


def smooth_weights(weights: Tensor, kernel: Sequence[float]) -> Tensor:
    """Kernel smoothing: v_i = sum_j K_j v_(i + j - floor(N/2)) / sum_j K_j (HiFA section 4.2).

    Weights beyond either end of the ray count as zero; nothing wraps around.

    Args:
        weights: `(n_rays, n)`.
        kernel: Odd number of non-negative values, `(1, 1, 1)` in the paper; `(1,)` changes nothing.

    Raises:
        ValueError: If the kernel's length is even or its sum is not positive.
    """
    if len(kernel) % 2 == 0 or sum(kernel) <= 0 or min(kernel) < 0:
        raise ValueError(
            f"The smoothing kernel needs an odd number of non-negative values, not all 0; got {list(kernel)}."
        )
    if len(kernel) == 1:
        return weights
    taps = weights.new_tensor(list(kernel)) / sum(kernel)
    return torch.nn.functional.conv1d(weights[:, None], taps[None, None], padding=len(kernel) // 2)[:, 0]


def importance_samples(
    edges: Tensor,
    weights: Tensor,
    n_samples: int,
    kernel: Sequence[float] = BOXCAR,
    offset: Tensor | None = None,
) -> Tensor:
    """Inverse-transform sampling of the smoothed weights, piecewise constant between edges.

    Args:
        edges: `(n_rays, n + 1)` increasing.
        weights: `(n_rays, n)`, one per cell, non-negative; no gradient flows through them.
        n_samples: Samples per ray.
        kernel: See `smooth_weights`.
        offset: `(n_rays,)` in [0, 1): position of the equally spaced quantiles in their cells; 0.5 without it.

    Returns:
        `(n_rays, n_samples)` sorted distances.
    """
    # The floor keeps a ray through empty space well defined (uniform) and lets every cell be found again.
    pdf = weights.detach() + 1e-5
    pdf = smooth_weights(pdf / pdf.sum(-1, keepdim=True), kernel)
    cdf = torch.cumsum(pdf / pdf.sum(-1, keepdim=True), -1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], -1)
    offset = edges.new_full((len(edges),), 0.5) if offset is None else offset
    u = (torch.arange(n_samples, device=edges.device) + offset[:, None]) / n_samples
    above = torch.searchsorted(cdf, u.contiguous(), right=True).clamp(1, cdf.shape[-1] - 1)
    cdf_low, cdf_high = cdf.gather(-1, above - 1), cdf.gather(-1, above)
    low, high = edges.gather(-1, above - 1), edges.gather(-1, above)
    share = (u - cdf_low) / (cdf_high - cdf_low).clamp_min(1e-9)
    return low + (high - low) * share.clamp(0, 1)


def cells_around(z: Tensor) -> Tensor:
    """Edges `(n_rays, n + 1)` halfway between sorted samples `z` `(n_rays, n)`; the outer cells are symmetric."""
    middle = 0.5 * (z[:, 1:] + z[:, :-1])
    first, last = 2 * z[:, :1] - middle[:, :1], 2 * z[:, -1:] - middle[:, -1:]
    return torch.cat([first, middle, last], -1)
