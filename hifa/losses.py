"""Losses of the HiFA paper; z is a latent, x an image, hats mark the prior's estimates."""

import torch
from torch import Tensor


def sds_plus_loss(
    z: Tensor | None,
    z_hat: Tensor | None,
    x: Tensor,
    x_hat: Tensor | None,
    *,
    weight: float,
    lambda_latent: float,
    lambda_rgb: float,
) -> Tensor:
    """L_SDS+ (HiFA equation 4), one half of the weighted sums of squared residuals.

    w / 2 * (lambda_latent sum |z - z_hat|^2 + lambda_rgb sum |x - x_hat|^2). The one half makes the gradient
    w (z - z_hat), as in equation 2. Gradients reach x directly and, through z = E(x), through the encoder; the
    estimates are constants.

    Args:
        z, z_hat: `(B, C, h, w)` latents, or `None` for a prior without a latent space.
        x, x_hat: `(B, 3, H, W)` in [0, 1]; `x_hat` is `None` when lambda_rgb is 0.
        weight: w(t).
    """
    loss = x.new_zeros(())
    if z is not None and lambda_latent:
        loss = loss + lambda_latent * ((z - z_hat.detach()) ** 2).sum()
    if x_hat is not None and lambda_rgb:
        loss = loss + lambda_rgb * ((x - x_hat.detach()) ** 2).sum()
    return 0.5 * weight * loss


def z_variance_loss(z_variance: Tensor, opacity: Tensor) -> Tensor:
    """L_zvar (HiFA equation 8): mean over all rays of the z-variance where the opacity exceeds one half.

    Args:
        z_variance: `(n_rays,)` from `rendering.volume.depth_moments`, squared world units.
        opacity: `(n_rays,)` sum of the weights; only selects rays, no gradient.

    Returns:
        A scalar; 0, and never NaN, when no ray is opaque.
    """
    delta = (opacity.detach() > 0.5).to(z_variance.dtype)
    return (delta * z_variance).mean()


def opacity_loss(opacity: Tensor) -> Tensor:
    """Sparsity of DreamFusion (Poole et al. 2022, appendix A.2): mean sqrt(opacity^2 + 0.01), against haze."""
    return torch.sqrt(opacity**2 + 0.01).mean()


def opacity_entropy_loss(opacity: Tensor) -> Tensor:
    """Mean binary entropy of the opacity of a ray, in nats: a ray should hit the object or miss it."""
    p = opacity.clamp(1e-4, 1 - 1e-4)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()
