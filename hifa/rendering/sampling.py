"""Sampling along rays: stratified coarse samples, then kernel-smoothed importance samples (HiFA section 4.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cameras import Rays


BOXCAR = (1.0, 1.0, 1.0)


def box_intersection(rays: Rays, bound: float) -> tuple[Tensor, Tensor]:
    """Return the distances `(n_rays,)` at which each ray enters and leaves the cube [-bound, bound]^3.

    Both distances are equal if the ray misses the cube.
    """
    # A zero component of the direction would give 0 / 0 = NaN for an origin on a face.
    directions = torch.where(rays.directions.abs() < 1e-9, torch.full_like(rays.directions, 1e-9), rays.directions)
    first, second = (-bound - rays.origins) / directions, (bound - rays.origins) / directions
    near = torch.minimum(first, second).amax(-1).clamp_min(0.0)
    far = torch.maximum(first, second).amin(-1)
    return near, torch.maximum(near, far)


def stratified_edges(near: Tensor, far: Tensor, n_samples: int, offset: Tensor | None = None) -> Tensor:
    """Return the edges `(n_rays, n_samples + 1)` of equal cells between near and far.

    Args:
        near: `(n_rays,)` distances of the first edges.
        far: `(n_rays,)` distances of the last edges.
        n_samples: Number of cells.
        offset: `(n_rays,)` in [0, 1): shifts all edges of a ray by up to half a cell in either direction, clipped to
            [near, far]. 0.5 is no shift. Unlike jitter inside each cell, a common shift leaves no gaps between cells.
    """
    steps = torch.linspace(0, 1, n_samples + 1, device=near.device, dtype=near.dtype).expand(len(near), -1)
    if offset is not None:
        steps = (steps + (offset[:, None] - 0.5) / n_samples).clamp(0, 1)
    return near[:, None] + (far - near)[:, None] * steps


def smooth_weights(weights: Tensor, kernel: Sequence[float]) -> Tensor:
    """Smooth weights with a kernel: v_i = sum_j K_j v_(i + j - floor(N/2)) / sum_j K_j (HiFA section 4.2).

    Weights beyond the ends of a ray count as zero. The kernel does not wrap around.

    Args:
        weights: `(n_rays, n)`.
        kernel: Odd number of non-negative values, `(1, 1, 1)` in the paper. `(1,)` leaves the weights unchanged.

    Raises:
        ValueError: If the kernel has an even length, a negative value, or a sum of 0.
    """
    if len(kernel) % 2 == 0 or sum(kernel) <= 0 or min(kernel) < 0:
        raise ValueError(
            f"The smoothing kernel must have an odd number of non-negative values, not all 0, got {list(kernel)}."
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
    """Draw samples from the smoothed weights by inverse transform sampling.

    The density of the samples is piecewise constant between edges.

    Args:
        edges: `(n_rays, n + 1)` increasing distances.
        weights: `(n_rays, n)` non-negative, one per cell. No gradient flows through the weights.
        n_samples: Number of samples per ray.
        kernel: See `smooth_weights`.
        offset: `(n_rays,)` in [0, 1): position of each equally spaced quantile inside its interval. The default is
            0.5.

    Returns:
        `(n_rays, n_samples)` sorted distances.
    """
    # The floor makes sampling uniform in empty space, and gives every cell a chance of new samples.
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
    """Return edges `(n_rays, n + 1)` halfway between sorted samples `z` `(n_rays, n)`, with symmetric outer cells."""
    middle = 0.5 * (z[:, 1:] + z[:, :-1])
    first, last = 2 * z[:, :1] - middle[:, :1], 2 * z[:, -1:] - middle[:, -1:]
    return torch.cat([first, middle, last], -1)
