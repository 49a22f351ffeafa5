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


def monotonicity_loss(density: Tensor) -> Tensor:
    """Penalty of the public HiFA code, not in the paper, on rays with more than one peak: the falls of a ray's density
    before its highest point and the rises behind it.

    Args:
        density: `(n_rays, n)` weights over lengths of the cells, from near to far; outside of the ray it is 0.

    Returns:
        A scalar, the mean over rays and over the n + 1 steps between neighbours.
    """
    steps = torch.diff(torch.nn.functional.pad(density, (1, 1)), dim=-1)  # (n_rays, n + 1)
    peak = density.argmax(-1, keepdim=True)
    before = torch.arange(steps.shape[-1], device=steps.device) <= peak
    return torch.where(before, -steps, steps).clamp_min(0).mean()


def z_entropy_loss(z_entropy: Tensor, opacity: Tensor) -> Tensor:
    """Penalty of the public HiFA code, not in the paper, on mass that is spread along a ray: mean over all rays of the
    entropy of z times the opacity.

    Args:
        z_entropy: `(n_rays,)` from `rendering.volume.z_entropy`, nats. A sharp surface has a large negative one.
        opacity: `(n_rays,)` sum of the weights; a constant here.
    """
    return (z_entropy * opacity.detach()).mean()


def image_reconstruction_loss(x: Tensor, x_view: Tensor, mask: Tensor, outside: float = 1.0) -> Tensor:
    """Image reconstruction on given views (HiFA section 5.4): mean of [m + outside (1 - m)] |x - x_view|^2.

    Args:
        x, x_view: `(n_rays, 3)` rendered and given RGB in [0, 1], on the same background.
        mask: m `(n_rays,)` in [0, 1], 1 on the object.
        outside: Weight of the pixels outside of the object. With 1 the background counts in full, which is right when
            it is known; 0 leaves it to `mask_loss`.
    """
    weight = mask + outside * (1 - mask)
    return (weight[:, None] * (x - x_view) ** 2).mean()


def mask_loss(opacity: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of the opacity of rays and the mask of the given views, `(n_rays,)` in [0, 1]."""
    return ((opacity - mask) ** 2).mean()


def total_variation_loss(x: Tensor, mask: Tensor) -> Tensor:
    """Total variation (Rudin et al. 1992, anisotropic) on given views: mean of m |x - x'| over pairs of neighbouring
    pixels. Views that were hallucinated one by one disagree in what varies over a few pixels; edges cost the same
    sharp or soft.

    Args:
        x: `(2 n, 3)` rendered RGB: n pixels, then the neighbour of each.
        mask: m `(2 n,)` in [0, 1], 1 on the object; only pairs inside of it count.
    """
    (here, there), (m, m_there) = x.chunk(2), mask.chunk(2)
    return (m * m_there * (here - there).abs().mean(-1)).mean()


def latent_reconstruction_loss(z: Tensor, z_view: Tensor) -> Tensor:
    """Latent reconstruction on a given view (HiFA section 5.4): mean |E(x) - E(x_view)|^2.

    Args:
        z: `(B, C, h, w)` latents of the rendered view; gradients go through the encoder to it.
        z_view: Those of the given view, a constant.
    """
    return ((z - z_view.detach()) ** 2).mean()


def disparity_loss(disparity: Tensor, predicted: Tensor, mask: Tensor) -> Tensor:
    """Regression of the disparity of rays on that of a dense-prediction model (HiFA appendix A.1), which knows it up
    to scale and shift only.

    Both are brought to mean 0 and variance 1 over the object, and half of their mean squared difference is taken:
    1 - rho, with rho their correlation. The scale is positive, so an inverted relief costs 2, the most there is; a
    least-squares scale, as the public code has, may turn negative and then finds nothing wrong with it.

    Args:
        disparity: d `(n_rays,)` of the rendered view (equation 6).
        predicted: `(n_rays,)` by the model, larger is nearer; a constant.
        mask: `(n_rays,)` bool or {0, 1}: where there is an object.

    Returns:
        A scalar in [0, 2]; 0 for a mask of fewer than two rays. A flat relief, which has no correlation, costs 1/2.
    """
    mask = mask.detach().bool()
    if mask.sum() < 2:
        return disparity.new_zeros(())
    ours, theirs = _standardised(disparity[mask]), _standardised(predicted.detach()[mask])
    return 0.5 * ((ours - theirs) ** 2).mean()


def _standardised(values: Tensor) -> Tensor:
    centred = values - values.mean()
    return centred / (centred**2).mean().add(1e-12).sqrt()


def angular_von_mises_fisher_loss(angle: Tensor, kappa: Tensor) -> Tensor:
    """Negative log-likelihood of the angular error of a predicted normal (Bae et al. 2021, "Estimating and Exploiting
    the Aleatoric Uncertainty in Surface Normal Estimation", equation 5), up to a constant:
    -log(kappa^2 + 1) + kappa theta + log(1 + exp(-kappa pi)).

    Args:
        angle: theta, any shape, radians in [0, pi].
        kappa: Concentration, of the same shape, positive.
    """
    return -torch.log(kappa**2 + 1) + kappa * angle + torch.log1p(torch.exp(-kappa * torch.pi))


def expected_angle(kappa: Tensor) -> Tensor:
    """Expected angular error in radians of that distribution (the same paper, equation 6):
    2 kappa / (kappa^2 + 1) + pi exp(-kappa pi) / (1 + exp(-kappa pi)); pi / 2 for kappa = 0."""
    tail = torch.exp(-kappa * torch.pi)
    return 2 * kappa / (kappa**2 + 1) + torch.pi * tail / (1 + tail)


def normal_loss(normals: Tensor, predicted: Tensor, weight: Tensor) -> Tensor:
    """Pull the normals of a rendered view to those that a model sees in the prior's estimate of the view:
    L_n = sum of weight (1 - N . N_hat) over the pixels, divided by their number.

    The public HiFA code regresses the rendered disparity on a depth model (appendix A.1); normals constrain the
    surface itself. Qiu et al. 2024, "RichDreamer", distill a normal diffusion prior, and Long et al. 2024,
    "Wonder3D" (section 3.3), reconstruct from predicted normals by the same cosine.

    Args:
        normals: N `(..., 3)` unit normals of the rendered depth.
        predicted: N_hat, of the same shape, unit; a constant.
        weight: `(...)` in [0, 1], 0 where either of them is unknown; a constant.
    """
    cosine = (normals * predicted.detach()).sum(-1)
    return (weight.detach() * (1 - cosine)).mean()


def curvature_loss(depth: Tensor, mask: Tensor, pixel: float, tau: float) -> Tensor:
    """Robust second difference of the depth of a whole view: mean over pixels of l^2 / (l^2 + tau^2), along rows and
    along columns, with l = (D[i-1] - 2 D[i] + D[i+1]) / pixel.

    The penalty is that of Geman and McClure (1987): a step at an occlusion edge or a crease costs a constant, and
    its gradient vanishes.

    Args:
        depth: D `(n, n)`, world units.
        mask: `(n, n)` bool; a second difference counts where all three of its pixels are in the mask.
        pixel: Side of a pixel at the object, world units.
        tau: Scale of l above which a bend is taken for an edge.
    """
    total = depth.new_zeros(())
    for values, inside in ((depth, mask), (depth.T, mask.T)):
        bend = (values[:-2] - 2 * values[1:-1] + values[2:]) / pixel
        smooth = inside[:-2] & inside[1:-1] & inside[2:]
        total = total + torch.where(smooth, bend**2 / (bend**2 + tau**2), torch.zeros_like(bend)).sum()
    return total / depth.numel()
