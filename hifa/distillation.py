"""Distillation of rendered views: where the prior wants them to go, by HiFA and by the methods it is compared with."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cameras import Camera
from .config import HiFAConfig
from .losses import sds_plus_loss
from .priors.denoising import to_sample
from .priors.guidance import Guidance, by_cameras, classifier_free, perp_neg
from .priors.prior import DiffusionPrior
from .priors.variational import VariationalScore
from .run import HiFARun


@dataclass(frozen=True)
class Target:
    """What the views of a step are pulled to, in the form of equation 4.

    Args:
        weight: Of the squared residuals.
        z: `(V, C, h, w)` where z should be.
        x: `(V, 3, H, W)` where x should be; `None` without a term in image space.
        estimate: `(V, 3, H, W)` in [0, 1], the prior's clean estimates of the views; `None` if nobody asked for them.
    """

    weight: float
    z: Tensor
    x: Tensor | None
    estimate: Tensor | None = None


@dataclass(frozen=True)
class Views:
    """The rendered views that are distilled in a step: one, or the V that a multi-view prior sees at once.

    Args:
        x: `(V, 3, H, W)` in [0, 1], of the prior's size.
        z: `(V, C, h, w)` their latents E(x).
        t: Timestep.
        cameras: That see them, V.
        by_cameras: Whether the prior is told the cameras; else the words of the only view.
    """

    x: Tensor
    z: Tensor
    t: int
    cameras: tuple[Camera, ...]
    by_cameras: bool = False


def distillation_loss(config: HiFAConfig, views: Views, target: Target) -> Tensor:
    """L_SDS+ (equation 4), the mean over the views, or that of the method that the settings name in its place."""
    loss = sds_plus_loss(
        views.z,
        target.z,
        views.x,
        target.x,
        weight=target.weight,
        lambda_latent=config.lambda_latent,
        lambda_rgb=config.lambda_rgb,
    )
    return loss / len(views.cameras)


def guidance_of(run: HiFARun, views: Views) -> Guidance:
    """The guidance of a step: by cameras, or by the words of its only view."""
    if not views.by_cameras:
        return guidance_for(run, views.cameras[0])
    config = run.config
    return by_cameras(run.prompt_embeds, views.cameras, config.guidance_scale, config.guidance_rescale)


def guidance_for(run: HiFARun, camera: Camera) -> Guidance:
    """The guidance of a view by words: Perp-Neg if the settings give it a strength, else classifier-free."""
    guidance = _guidance_from(run.config, run.prompt_embeds, camera)
    if run.pooled_prompt_embeds is None:
        return guidance
    # Of the pooled embeddings the same are asked, or mixed in the same way.
    return replace(guidance, pooled=_guidance_from(run.config, run.pooled_prompt_embeds, camera).embeds)


def _guidance_from(c: HiFAConfig, embeds: Tensor, camera: Camera) -> Guidance:
    if c.perp_neg:
        return perp_neg(embeds, camera, c.guidance_scale, c.perp_neg)
    return classifier_free(embeds, camera.view, c.guidance_scale, c.view_guidance, c.guidance_rescale)


@torch.no_grad()
def distillation_target(
    run: HiFARun,
    prior: DiffusionPrior,
    views: Views,
    variational: VariationalScore | None = None,
    estimate: bool = False,
) -> Target:
    """The target of the views of a step by the method that the settings name.

    `hifa` denoises in several steps and has a constant w, the others in one. `sds` (Poole et al. 2022, "DreamFusion",
    equation 3) and `sjc` (Wang et al. 2023, "Score Jacobian Chaining") have the gradient w(t) (eps_hat - eps) dz/dx,
    which by equation 2 is that of the residual z - z_hat with the weight w(t) alpha_t / sigma_t. `vsd` (Wang et al.
    2023, "ProlificDreamer", section 3.2) has eps_phi of the variational score in place of eps, and so the residual
    z_phi - z_hat. What else these methods have, a random t or fields and losses of their own, is not chosen here.

    With `lambda_rgb` HiFA's term in image space is added to each of them, by the same weight; for `vsd` it has the
    residual D(z_phi) - D(z_hat) (appendix A.4).

    Args:
        variational: For the method `vsd`.
        estimate: Whether the clean estimates are wanted as pictures, which a latent prior has to decode.

    Raises:
        ValueError: For `vsd` without a variational score, without which it would be `sds`.
    """
    if run.config.distillation == "vsd" and variational is None:
        raise ValueError(
            "distillation='vsd' needs a variational score: give VariationalScore(prior, run.variational), as "
            "HiFAPipeline.advance does, or choose distillation='sds'."
        )
    config, x, z, t = run.config, views.x, views.z, views.t
    beside = prior.beside(z, run.generator)
    guidance = replace(guidance_of(run, views), beside=beside)
    if config.distillation == "hifa":
        z_hat = prior.estimate(z, t, guidance, config.denoising_stride, config.eta, run.generator)
        x_hat = prior.decode(z_hat) if config.lambda_rgb or estimate else None
        picture = _picture(z_hat, x_hat) if estimate else None
        return Target(config.sds_weight, z_hat, x_hat if config.lambda_rgb else None, picture)
    alpha_cumprod = float(prior.alphas_cumprod[t])
    weight = config.sds_weight * residual_weight(config.distillation, alpha_cumprod)
    z_t, _ = prior.noisy(z, t, run.generator)
    # Not brought back to where z can be, which equation 2 does not do either.
    z_hat = to_sample(prior.predict_noise(z_t, t, guidance), z_t, alpha_cumprod)
    x_hat = prior.decode(z_hat) if config.lambda_rgb or estimate else None
    picture = _picture(z_hat, x_hat) if estimate else None
    x_hat = x_hat if config.lambda_rgb else None
    if variational is None:
        return Target(weight, z_hat, x_hat, picture)
    (camera,) = views.cameras  # the settings refuse several with a variational score
    prompt = replace(prompt_of(run, camera), beside=beside)
    epsilon_phi = variational.predict_noise(z_t, t, prompt, camera)
    z_phi = to_sample(epsilon_phi, z_t, alpha_cumprod)
    x_target = None if x_hat is None else x + x_hat - prior.decode(z_phi)
    return Target(weight, z + z_hat - z_phi, x_target, picture)


def _picture(z_hat: Tensor, x_hat: Tensor | None) -> Tensor:
    """The estimate as a picture in [0, 1]: x_hat, or z_hat in [-1, 1] where z is the image itself."""
    return x_hat if x_hat is not None else (z_hat / 2 + 0.5).clamp(0, 1)


def prompt_of(run: HiFARun, camera: Camera) -> Guidance:
    """The prompt alone with the words of a camera's view, nothing to be guided away from."""
    row = [2 + camera.view]
    pooled = None if run.pooled_prompt_embeds is None else run.pooled_prompt_embeds[row]
    return Guidance(run.prompt_embeds[row], lambda outputs: outputs, pooled)


def residual_weight(distillation: str, alpha_cumprod: float) -> float:
    """w(t) alpha_t / sigma_t: weight of the residual z - z_hat for the gradient w(t) (eps_hat - eps) (equation 2).

    DreamFusion and ProlificDreamer have w(t) = sigma_t^2. Score Jacobian Chaining averages the scores of perturbed
    images, (D(z + s n) - z) / s^2 at the noise level s = sigma_t / alpha_t, and its code multiplies them by s: with
    D = z_hat that is w(t) = 1.

    Args:
        distillation: `"sds"`, `"sjc"` or `"vsd"`.
        alpha_cumprod: alpha_t^2, in (0, 1).
    """
    alpha, sigma = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    return alpha / sigma if distillation == "sjc" else alpha * sigma
