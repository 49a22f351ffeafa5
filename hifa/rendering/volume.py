"""Compositing along rays: HiFA section 4.2, equations 6 to 8, on nerfacc's batched functions."""

import nerfacc
import torch
from torch import Tensor


def weights_from_density(edges: Tensor, density: Tensor) -> Tensor:
    """Rendering weights nu `(n_rays, n)` of cells between `edges` `(n_rays, n + 1)` with `density` `(n_rays, n)`."""
    weights, _, _ = nerfacc.render_weight_from_density(edges[:, :-1], edges[:, 1:], density)
    return weights


def accumulate(weights: Tensor, values: Tensor | None = None) -> Tensor:
    """Sum over the samples of a ray: `(n_rays, n)` and `(n_rays, n, d)` -> `(n_rays, d)`; opacity without values."""
    return nerfacc.accumulate_along_rays(weights, values)


def depth_moments(weights: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of z along each ray (equations 6 and 7).

    The weights are normalised per ray, so a half-transparent ray has the same depth as an opaque one.

    Args:
        weights: nu `(n_rays, n)`.
        z: Distances along the ray `(n_rays, n)`.

    Returns:
        Depth mu_z and z-variance `(n_rays,)`; both 0 where all weights are 0.
    """
    share = weights / weights.sum(-1, keepdim=True).clamp_min(1e-5)
    depth = (share * z).sum(-1)
    return depth, (share * (z - depth[:, None]) ** 2).sum(-1)


def z_entropy(weights: Tensor, lengths: Tensor) -> Tensor:
    """Differential entropy of z along each ray, -sum_i n_i log p_i, as the public HiFA code has it; not in the paper.

    n are the weights normalised per ray, p their densities before that, weights over lengths, not below 1e-5.

    Args:
        weights: nu `(n_rays, n)`.
        lengths: Of the cells `(n_rays, n)`, world units.

    Returns:
        `(n_rays,)` in nats; 0 where all weights are 0.
    """
    share = weights / weights.sum(-1, keepdim=True).clamp_min(1e-5)
    return -(share * torch.log((weights / lengths.clamp_min(1e-5)).clamp_min(1e-5))).sum(-1)


def distortion(weights: Tensor, edges: Tensor) -> Tensor:
    """Distortion of each ray (Barron et al. 2022, "Mip-NeRF 360", equation 15), with which z-variance is compared:
    sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 (e_(i+1) - e_i), with m the middles of the cells.

    Distances are not brought to [0, 1] as there: an object has one scale, and rays cross it at a finite length.

    Args:
        weights: `(n_rays, n)`.
        edges: `(n_rays, n + 1)` increasing, world units.

    Returns:
        `(n_rays,)` world units.
    """
    lengths, middles = edges.diff(), 0.5 * (edges[:, 1:] + edges[:, :-1])
    # Sorted middles: |m_i - m_j| needs no pairs, only what lies before i.
    before = weights.cumsum(-1) - weights
    moment_before = (weights * middles).cumsum(-1) - weights * middles
    return 2 * (weights * (middles * before - moment_before)).sum(-1) + (weights**2 * lengths).sum(-1) / 3


def disparity(depth: Tensor) -> Tensor:
    """d = 1 / mu_z (equation 6); 0 where the depth is 0, that is where the ray meets nothing."""
    return torch.where(depth > 0, 1 / depth.clamp_min(1e-6), torch.zeros_like(depth))
