"""Compositing along rays (HiFA section 4.2, equations 6 to 8), based on nerfacc's batched functions."""

import nerfacc
import torch
from torch import Tensor


def weights_from_density(edges: Tensor, density: Tensor) -> Tensor:
    """Return rendering weights nu `(n_rays, n)` of the cells between edges.

    Args:
        edges: `(n_rays, n + 1)` increasing distances, world units.
        density: `(n_rays, n)` density of each cell, per world unit.
    """
    weights, _, _ = nerfacc.render_weight_from_density(edges[:, :-1], edges[:, 1:], density)
    return weights


def accumulate(weights: Tensor, values: Tensor | None = None) -> Tensor:
    """Sum weighted values over the samples of each ray.

    Args:
        weights: `(n_rays, n)`.
        values: `(n_rays, n, d)`. By default, the weights are summed, which gives the opacity with d = 1.

    Returns:
        `(n_rays, d)`.
    """
    return nerfacc.accumulate_along_rays(weights, values)


def depth_moments(weights: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of z along each ray (equations 6 and 7).

    The weights are normalized per ray, so a half-transparent ray has the same depth as an opaque ray.

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
    """Return the differential entropy of z along each ray, -sum_i n_i log p_i.

    The entropy is in the public HiFA code but not in the paper. n_i are the weights normalized per ray. p_i are the
    weights before normalization, divided by the cell lengths, with a lower limit of 1e-5.

    Args:
        weights: nu `(n_rays, n)`.
        lengths: Cell lengths `(n_rays, n)`, world units.

    Returns:
        `(n_rays,)` in nats; 0 where all weights are 0.
    """
    share = weights / weights.sum(-1, keepdim=True).clamp_min(1e-5)
    return -(share * torch.log((weights / lengths.clamp_min(1e-5)).clamp_min(1e-5))).sum(-1)


def distortion(weights: Tensor, edges: Tensor) -> Tensor:
    """Return the distortion of each ray (Barron et al. 2022, "Mip-NeRF 360", equation 15), a baseline for z-variance.

    The distortion is sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 (e_(i+1) - e_i), where m are the cell centers.
    Unlike in Mip-NeRF 360, distances are not normalized to [0, 1]: an object has one scale, and the part of a ray
    inside the cube has a finite length.

    Args:
        weights: `(n_rays, n)`.
        edges: `(n_rays, n + 1)` increasing, world units.

    Returns:
        `(n_rays,)` world units.
    """
    lengths, middles = edges.diff(), 0.5 * (edges[:, 1:] + edges[:, :-1])
    # The centers are sorted, so prefix sums replace the sum over pairs.
    before = weights.cumsum(-1) - weights
    moment_before = (weights * middles).cumsum(-1) - weights * middles
    return 2 * (weights * (middles * before - moment_before)).sum(-1) + (weights**2 * lengths).sum(-1) / 3


def disparity(depth: Tensor) -> Tensor:
    """Return the disparity d = 1 / mu_z (equation 6); 0 where the depth is 0, that is, where the ray meets nothing."""
    return torch.where(depth > 0, 1 / depth.clamp_min(1e-6), torch.zeros_like(depth))
