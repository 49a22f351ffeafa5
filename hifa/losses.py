"""Losses of the HiFA paper and other sources. z is a latent, x an image, and a hat marks an estimate of the prior."""

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
    """Compute L_SDS+ (HiFA equation 4), half of the weighted sum of squared residuals.

    The loss is w / 2 * (lambda_latent sum |z - z_hat|^2 + lambda_rgb sum |x - x_hat|^2). With the factor 1/2, the
    gradient is w (z - z_hat), as in equation 2. Gradients flow to x directly and, because z = E(x), through the
    encoder. The estimates are constants.

    Args:
        z: `(B, C, h, w)` latents, or `None` for a prior without a latent space.
        z_hat: `(B, C, h, w)` estimate of the latents; `None` if `z` is `None`.
        x: `(B, 3, H, W)` in [0, 1].
        x_hat: `(B, 3, H, W)` estimate of x; `None` if `lambda_rgb` is 0.
        weight: w(t).
        lambda_latent: Weight of the term in latent space.
        lambda_rgb: Weight of the term in image space.
    """
    loss = x.new_zeros(())
    if z is not None and z_hat is not None and lambda_latent:
        loss = loss + lambda_latent * ((z - z_hat.detach()) ** 2).sum()
    if x_hat is not None and lambda_rgb:
        loss = loss + lambda_rgb * ((x - x_hat.detach()) ** 2).sum()
    return 0.5 * weight * loss


def z_variance_loss(z_variance: Tensor, opacity: Tensor) -> Tensor:
    """Compute L_zvar (HiFA equation 8): the mean z-variance of all rays, where rays with opacity <= 1/2 count as 0.

    Args:
        z_variance: `(n_rays,)` from `rendering.volume.depth_moments`, squared world units.
        opacity: `(n_rays,)` sum of the weights. The opacity only selects rays and gets no gradient.

    Returns:
        A scalar, which is 0 and never NaN if no ray is opaque.
    """
    delta = (opacity.detach() > 0.5).to(z_variance.dtype)
    return (delta * z_variance).mean()


def opacity_loss(opacity: Tensor) -> Tensor:
    """Compute the sparsity loss of DreamFusion (Poole et al. 2022, appendix A.2), which suppresses haze.

    The loss is the mean of sqrt(opacity^2 + 0.01).
    """
    return torch.sqrt(opacity**2 + 0.01).mean()


def opacity_entropy_loss(opacity: Tensor) -> Tensor:
    """Compute the mean binary entropy of the opacity of rays, in nats.

    At a low entropy, each ray either hits or misses the object.
    """
    p = opacity.clamp(1e-4, 1 - 1e-4)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def monotonicity_loss(density: Tensor) -> Tensor:
    """Penalize rays whose density has more than one peak, as in the public HiFA code (not in the paper).

    The penalty sums the decreases of the density before the highest peak and the increases after the highest peak.

    Args:
        density: `(n_rays, n)` weights divided by the lengths of the cells, from near to far. The density beyond
            both ends is taken as 0.

    Returns:
        A scalar, the mean over rays and over the n + 1 differences between neighbors.
    """
    steps = torch.diff(torch.nn.functional.pad(density, (1, 1)), dim=-1)  # (n_rays, n + 1)
    peak = density.argmax(-1, keepdim=True)
    before = torch.arange(steps.shape[-1], device=steps.device) <= peak
    return torch.where(before, -steps, steps).clamp_min(0).mean()


def z_entropy_loss(z_entropy: Tensor, opacity: Tensor) -> Tensor:
    """Penalize density that is spread along a ray, as in the public HiFA code (not in the paper).

    The penalty is the mean over all rays of the entropy of z, multiplied by the opacity.

    Args:
        z_entropy: `(n_rays,)` from `rendering.volume.z_entropy`, nats. The entropy of a sharp surface is a large
            negative number.
        opacity: `(n_rays,)` sum of the weights, treated as constant.
    """
    return (z_entropy * opacity.detach()).mean()


def image_reconstruction_loss(x: Tensor, x_view: Tensor, mask: Tensor, outside: float = 1.0) -> Tensor:
    """Compute the image reconstruction loss on given views (HiFA section 5.4).

    The loss is the mean of [m + outside (1 - m)] |x - x_view|^2.

    Args:
        x: `(n_rays, 3)` rendered RGB in [0, 1].
        x_view: `(n_rays, 3)` given RGB in [0, 1], on the same background.
        mask: m `(n_rays,)` in [0, 1], 1 on the object.
        outside: Weight of the pixels outside of the object. 1 counts the background in full, which needs a known
            background. 0 leaves the background to `mask_loss`.
    """
    weight = mask + outside * (1 - mask)
    return (weight[:, None] * (x - x_view) ** 2).mean()


def mask_loss(opacity: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean squared difference between the opacity of rays and the mask, both `(n_rays,)` in [0, 1]."""
    return ((opacity - mask) ** 2).mean()


def total_variation_loss(x: Tensor, mask: Tensor) -> Tensor:
    """Compute the anisotropic total variation (Rudin et al. 1992) on given views.

    The loss is the mean of m |x - x'| over pairs of neighboring pixels. The loss suppresses details of a few pixels,
    because hallucinated views disagree in such details. A sharp edge costs as much as a soft edge.

    Args:
        x: `(2 n, 3)` rendered RGB: n pixels, then a neighbor of each pixel.
        mask: m `(2 n,)` in [0, 1], 1 on the object. Only pairs inside of the object count.
    """
    (here, there), (m, m_there) = x.chunk(2), mask.chunk(2)
    return (m * m_there * (here - there).abs().mean(-1)).mean()


def latent_reconstruction_loss(z: Tensor, z_view: Tensor) -> Tensor:
    """Compute the latent reconstruction loss on a given view (HiFA section 5.4): the mean of |E(x) - E(x_view)|^2.

    Args:
        z: `(B, C, h, w)` latents of the rendered view. Gradients flow through the encoder to the view.
        z_view: `(B, C, h, w)` latents of the given view, treated as constant.
    """
    return ((z - z_view.detach()) ** 2).mean()


def disparity_loss(disparity: Tensor, predicted: Tensor, mask: Tensor) -> Tensor:
    """Compute the regression loss of the rendered disparity on the disparity of a dense-prediction model.

    The model (HiFA appendix A.1) predicts disparity up to scale and shift. Both disparities are standardized to mean 0
    and variance 1 over the object. The loss is half of the mean squared difference, which is 1 - rho with the
    correlation rho. Standardization cannot change the sign, so that an inverted disparity has the largest loss, 2. The
    public code fits a least-squares scale, which can turn negative: an inverted disparity then has no loss.

    Args:
        disparity: d `(n_rays,)` of the rendered view (equation 6).
        predicted: `(n_rays,)` disparity predicted by the model, larger is nearer; treated as constant.
        mask: `(n_rays,)` bool or {0, 1}, true on the object.

    Returns:
        A scalar in [0, 2]: 0 for a mask of fewer than two rays, and 1/2 if the rendered disparity is constant, so that
        the correlation is undefined.
    """
    mask = mask.detach().bool()
    if mask.sum() < 2:
        return disparity.new_zeros(())
    ours, theirs = _standardized(disparity[mask]), _standardized(predicted.detach()[mask])
    return 0.5 * ((ours - theirs) ** 2).mean()


def _standardized(values: Tensor) -> Tensor:
    centered = values - values.mean()
    return centered / (centered**2).mean().add(1e-12).sqrt()


def angular_von_mises_fisher_loss(angle: Tensor, kappa: Tensor) -> Tensor:
    """Compute the negative log-likelihood of the angular error of a predicted normal, up to a constant.

    The loss is -log(kappa^2 + 1) + kappa theta + log(1 + exp(-kappa pi)) (Bae et al. 2021, "Estimating and Exploiting
    the Aleatoric Uncertainty in Surface Normal Estimation", equation 5).

    Args:
        angle: theta, any shape, radians in [0, pi].
        kappa: Concentration, same shape, positive.

    Returns:
        The loss of each angle, same shape.
    """
    return -torch.log(kappa**2 + 1) + kappa * angle + torch.log1p(torch.exp(-kappa * torch.pi))


def expected_angle(kappa: Tensor) -> Tensor:
    """Compute the expected angular error of the angular von Mises-Fisher distribution (Bae et al. 2021, equation 6).

    The error is 2 kappa / (kappa^2 + 1) + pi exp(-kappa pi) / (1 + exp(-kappa pi)), which is pi / 2 for kappa = 0.

    Args:
        kappa: Concentration, any shape, at least 0.

    Returns:
        The error in radians, same shape.
    """
    tail = torch.exp(-kappa * torch.pi)
    return 2 * kappa / (kappa**2 + 1) + torch.pi * tail / (1 + tail)


def normal_loss(normals: Tensor, predicted: Tensor, weight: Tensor) -> Tensor:
    """Compute the cosine loss between rendered normals and predicted normals.

    L_n is the mean over the pixels of weight (1 - N . N_hat). A normal model predicts N_hat from the prior's estimate
    of the view, or from a given view.

    The public HiFA code regresses the rendered disparity on a depth model (appendix A.1). Normals constrain the
    surface itself. Qiu et al. 2024, "RichDreamer", distill a normal diffusion prior. Long et al. 2024, "Wonder3D"
    (section 3.3), reconstruct from predicted normals with a loss on the same cosine.

    Args:
        normals: N `(..., 3)` unit normals of the rendered depth.
        predicted: N_hat `(..., 3)` unit normals, treated as constant.
        weight: `(...)` in [0, 1], 0 where one of the normals is unknown; treated as constant.
    """
    cosine = (normals * predicted.detach()).sum(-1)
    return (weight.detach() * (1 - cosine)).mean()


def curvature_loss(depth: Tensor, mask: Tensor, pixel: float, tau: float) -> Tensor:
    """Compute a robust penalty on the second difference of the depth of a whole view.

    The loss is the mean over pixels of l^2 / (l^2 + tau^2), summed over rows and columns, with
    l = (D[i-1] - 2 D[i] + D[i+1]) / pixel. This penalty of Geman and McClure (1987) saturates at an occlusion edge
    or a crease, and its gradient vanishes there.

    Args:
        depth: D `(n, n)`, world units.
        mask: `(n, n)` bool. A second difference counts if all three pixels are in the mask.
        pixel: Side of a pixel at the object, world units.
        tau: Value of l above which a second difference is regarded as an edge.
    """
    total = depth.new_zeros(())
    for values, inside in ((depth, mask), (depth.T, mask.T)):
        bend = (values[:-2] - 2 * values[1:-1] + values[2:]) / pixel
        smooth = inside[:-2] & inside[1:-1] & inside[2:]
        total = total + torch.where(smooth, bend**2 / (bend**2 + tau**2), torch.zeros_like(bend)).sum()
    return total / depth.numel()
