"""Distillation of rendered views: targets and losses of HiFA, SDS, SJC and VSD."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cameras import Camera
from ..config import HiFAConfig
from ..losses import sds_plus_loss
from ..optimization.run import HiFARun
from .denoising import to_sample
from .prior import DiffusionPrior
from .prompt_guidance import Guidance, by_cameras, classifier_free, perp_neg
from .vsd import VariationalScore


@dataclass(frozen=True)
class Target:
    """Target of the views of a step, in the form of equation 4.

    Args:
        weight: Weight of the squared residuals.
        z: `(V, C, h, w)` target of z.
        x: `(V, 3, H, W)` target of x; `None` without a loss term in image space.
        estimate: `(V, 3, H, W)` in [0, 1], clean estimates of the views by the prior; `None` if not requested.
    """

    weight: float
    z: Tensor
    x: Tensor | None
    estimate: Tensor | None = None


@dataclass(frozen=True)
class Views:
    """Rendered views of a step: V views for a multi-view prior, otherwise a single view.

    Args:
        x: `(V, 3, H, W)` in [0, 1], at the prior's input size.
        z: `(V, C, h, w)` latents E(x) of the views.
        t: Timestep.
        cameras: Cameras of the V views.
        by_cameras: Whether the prior is conditioned on the cameras. Otherwise the prompt has the view suffix of the
            single view.
    """

    x: Tensor
    z: Tensor
    t: int
    cameras: tuple[Camera, ...]
    by_cameras: bool = False


def distillation_loss(config: HiFAConfig, views: Views, target: Target) -> Tensor:
    """Return the distillation loss, averaged over the views.

    The loss is L_SDS+ (equation 4). The other methods have the same form with another target and weight.
    """
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
    """Return the guidance of a step: by the cameras, or by the view suffix of the single view."""
    if not views.by_cameras:
        return guidance_for(run, views.cameras[0])
    config = run.config
    return by_cameras(run.prompt_embeds, views.cameras, config.guidance_scale, config.guidance_rescale)


def guidance_for(run: HiFARun, camera: Camera) -> Guidance:
    """Return the guidance of a view by its suffix: Perp-Neg if `perp_neg` > 0, otherwise classifier-free guidance."""
    guidance = _guidance_from(run.config, run.prompt_embeds, camera)
    if run.pooled_prompt_embeds is None:
        return guidance
    # The pooled embeddings are selected or mixed in the same way as the token embeddings.
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
    """Compute the target of the views of a step by the method `distillation` of the settings.

    - `hifa` denoises in several steps and has a constant w. The other methods denoise in one step.
    - `sds` (Poole et al. 2022, "DreamFusion", equation 3) and `sjc` (Wang et al. 2023, "Score Jacobian Chaining") have
      the gradient w(t) (eps_hat - eps) dz/dx. By equation 2, this is the gradient of the squared residual z - z_hat
      with the weight w(t) alpha_t / sigma_t.
    - `vsd` (Wang et al. 2023, "ProlificDreamer", section 3.2) replaces eps by eps_phi of the variational score. The
      residual is then z_phi - z_hat.

    `distillation` selects only the target. Other properties of the published methods, such as a random t, the field
    and further losses, have their own settings.

    With `lambda_rgb`, HiFA's term in image space is added to every method with the same weight. For `vsd` its residual
    is D(z_phi) - D(z_hat) (appendix A.4).

    Args:
        run: Run, for the settings, the prompt and the random state.
        prior: Prior.
        views: Rendered views.
        variational: Variational score for the method `vsd`.
        estimate: Whether to return the clean estimates as images, which a latent prior has to decode.

    Raises:
        ValueError: For `vsd` without a variational score, because the result would be that of `sds`.
    """
    if run.config.distillation == "vsd" and variational is None:
        raise ValueError(
            "distillation='vsd' needs a variational score. Pass VariationalScore(prior, run.variational), as "
            "HiFAPipeline.advance does, or use distillation='sds'."
        )
    config, x, z, t = run.config, views.x, views.z, views.t
    concat_cond = prior.concat_cond(z, run.generator)
    guidance = replace(guidance_of(run, views), concat_cond=concat_cond)
    if config.distillation == "hifa":
        z_hat = prior.estimate(z, t, guidance, config.denoising_stride, config.eta, run.generator)
        x_hat = prior.decode(z_hat) if config.lambda_rgb or estimate else None
        picture = _picture(z_hat, x_hat) if estimate else None
        return Target(config.sds_weight, z_hat, x_hat if config.lambda_rgb else None, picture)
    alpha_cumprod = float(prior.alphas_cumprod[t])
    weight = config.sds_weight * residual_weight(config.distillation, alpha_cumprod)
    z_t, _ = prior.noisy(z, t, run.generator)
    # The estimate is not clipped or thresholded, as in equation 2.
    z_hat = to_sample(prior.predict_noise(z_t, t, guidance), z_t, alpha_cumprod)
    x_hat = prior.decode(z_hat) if config.lambda_rgb or estimate else None
    picture = _picture(z_hat, x_hat) if estimate else None
    x_hat = x_hat if config.lambda_rgb else None
    if variational is None:
        return Target(weight, z_hat, x_hat, picture)
    (camera,) = views.cameras  # `HiFAConfig` rejects several views with a variational score.
    prompt = replace(prompt_of(run, camera), concat_cond=concat_cond)
    epsilon_phi = variational.predict_noise(z_t, t, prompt, camera)
    z_phi = to_sample(epsilon_phi, z_t, alpha_cumprod)
    x_target = None if x_hat is None else x + x_hat - prior.decode(z_phi)
    return Target(weight, z + z_hat - z_phi, x_target, picture)


def _picture(z_hat: Tensor, x_hat: Tensor | None) -> Tensor:
    """Return the estimate as an image in [0, 1]: x_hat, or for a pixel-space prior z_hat, rescaled from [-1, 1]."""
    return x_hat if x_hat is not None else (z_hat / 2 + 0.5).clamp(0, 1)


def prompt_of(run: HiFARun, camera: Camera) -> Guidance:
    """Return guidance with only the prompt and the view suffix of a camera, without a negative prompt."""
    row = [2 + camera.view]
    pooled = None if run.pooled_prompt_embeds is None else run.pooled_prompt_embeds[row]
    return Guidance(run.prompt_embeds[row], lambda outputs: outputs, pooled)


def residual_weight(distillation: str, alpha_cumprod: float) -> float:
    """Return w(t) alpha_t / sigma_t, the weight of the residual z - z_hat.

    By equation 2, this weight gives the gradient w(t) (eps_hat - eps). DreamFusion and ProlificDreamer have
    w(t) = sigma_t^2. Score Jacobian Chaining averages the scores of perturbed images, (D(z + s n) - z) / s^2, at the
    noise level s = sigma_t / alpha_t, and its code multiplies the scores by s. With D = z_hat, this is w(t) = 1.

    Args:
        distillation: `"sds"`, `"sjc"` or `"vsd"`.
        alpha_cumprod: alpha_t^2, in (0, 1).
    """
    alpha, sigma = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    return alpha / sigma if distillation == "sjc" else alpha * sigma
