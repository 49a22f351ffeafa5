"""Distillers: targets and losses of rendered views by HiFA, SDS, SJC and VSD.

`make_distiller` selects the method by the setting `distillation`. The setting selects only the target. Other
properties of the published methods, such as a random t, the field and further losses, have their own settings.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cameras import Camera
from ..config import HiFAConfig
from ..losses import sds_plus_loss
from ..priors.denoising import to_sample
from ..priors.prior import DiffusionPrior
from ..priors.prompt_guidance import Guidance, by_cameras, classifier_free, perp_neg, unguided
from ..priors.vsd import VariationalScore
from .run import HiFARun


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


class Distiller(ABC):
    """Distillation of the prior into the field of a run.

    Args:
        run: Run, for the settings, the embeddings of the prompt and the random state.
        prior: Prior.
    """

    def __init__(self, run: HiFARun, prior: DiffusionPrior):
        self.run, self.prior = run, prior

    @abstractmethod
    def target(self, views: Views, estimate: bool = False) -> Target:
        """Compute the target of the views of a step.

        Args:
            views: Rendered views.
            estimate: Whether to return the clean estimates as images, which a latent prior has to decode.
        """

    def add_gradients(self, views: Views) -> Tensor | None:
        """Set the gradients of the distiller's own parameters.

        Returns:
            The loss of the parameters, detached, or `None` without parameters.
        """
        return None

    def gradient_norms(self) -> list[Tensor]:
        """Return the norms `()` of the gradients that `add_gradients` set."""
        return []

    def step(self) -> None:  # noqa: B027  optional
        """Take an optimizer step with the gradients that `add_gradients` set."""

    def guidance(self, views: Views) -> Guidance:
        """Return the guidance of a step: by the cameras, or by the view suffix of the single view."""
        config, embeddings = self.run.config, self.run.embeddings
        assert embeddings is not None
        if views.by_cameras:
            return by_cameras(embeddings, views.cameras, config.guidance_scale, config.guidance_rescale)
        (camera,) = views.cameras
        if config.perp_neg:
            return perp_neg(embeddings, camera, config.guidance_scale, config.perp_neg)
        return classifier_free(
            embeddings, camera.view, config.guidance_scale, config.view_guidance, config.guidance_rescale
        )

    def images(self, z_hat: Tensor, estimate: bool) -> tuple[Tensor | None, Tensor | None]:
        """Decode clean estimates, if needed.

        Args:
            z_hat: `(V, C, h, w)` clean estimates.
            estimate: Whether to return the estimates as images, even without a loss term in image space.

        Returns:
            The target x_hat for the loss in image space, or `None` without this loss, and the estimates as images in
            [0, 1], or `None` if not requested.
        """
        x_hat = self.prior.decode(z_hat) if self.run.config.lambda_rgb or estimate else None
        if not estimate:
            return x_hat, None
        # The z of a pixel-space prior is the image itself, in [-1, 1].
        picture = x_hat if x_hat is not None else (z_hat / 2 + 0.5).clamp(0, 1)
        return (x_hat if self.run.config.lambda_rgb else None), picture


class HiFADistiller(Distiller):
    """Distillation of HiFA: denoising in several steps and a constant weight w (algorithm 1)."""

    @torch.no_grad()
    def target(self, views: Views, estimate: bool = False) -> Target:
        """Compute the target: the clean estimates of the prior."""
        config, generator = self.run.config, self.run.generator
        concat_cond = self.prior.concat_cond(views.z, generator)
        guidance = replace(self.guidance(views), concat_cond=concat_cond)
        z_hat = self.prior.estimate(views.z, views.t, guidance, config.denoising_stride, config.eta, generator)
        return Target(config.sds_weight, z_hat, *self.images(z_hat, estimate))


class ScoreDistiller(Distiller):
    """Distillation of SDS and SJC: denoising in one step.

    The gradient is w(t) (eps_hat - eps) dz/dx in SDS (Poole et al. 2022, "DreamFusion", equation 3) and SJC (Wang et
    al. 2023, "Score Jacobian Chaining"). By equation 2, this is the gradient of the squared residual z - z_hat with
    the weight w(t) alpha_t / sigma_t.

    With `lambda_rgb`, HiFA's term in image space is added with the same weight.
    """

    @torch.no_grad()
    def target(self, views: Views, estimate: bool = False) -> Target:
        """Compute the target: the clean estimates of the prior, weighted by w(t) alpha_t / sigma_t."""
        config, z, t = self.run.config, views.z, views.t
        concat_cond = self.prior.concat_cond(z, self.run.generator)
        guidance = replace(self.guidance(views), concat_cond=concat_cond)
        alpha_cumprod = float(self.prior.alphas_cumprod[t])
        weight = config.sds_weight * residual_weight(config.distillation, alpha_cumprod)
        z_t, _ = self.prior.noisy(z, t, self.run.generator)
        # The estimate is not clipped or thresholded, as in equation 2.
        z_hat = to_sample(self.prior.predict_noise(z_t, t, guidance), z_t, alpha_cumprod)
        x_hat, picture = self.images(z_hat, estimate)
        return self.residual_target(Target(weight, z_hat, x_hat, picture), views, z_t, concat_cond)

    def residual_target(self, target: Target, views: Views, z_t: Tensor, concat_cond: Tensor | None) -> Target:
        """Return the target for which the residual is that of the method.

        Args:
            target: Target with the clean estimates of the prior.
            views: Rendered views.
            z_t: `(V, C, h, w)` noisy latents of the views.
            concat_cond: Additional input channels of the UNet.
        """
        return target


class VSDDistiller(ScoreDistiller):
    """Distillation of VSD (Wang et al. 2023, "ProlificDreamer", section 3.2).

    VSD replaces the noise eps of SDS by eps_phi of a variational score. The residual is then z_phi - z_hat. With
    `lambda_rgb`, the residual in image space is D(z_phi) - D(z_hat) (appendix A.4). `HiFAConfig` rejects VSD with
    several views.

    Args:
        run: Run with the state of a variational score.
        prior: Prior.

    Raises:
        ValueError: If the UNet cannot be adapted, or the state does not fit the UNet.
    """

    def __init__(self, run: HiFARun, prior: DiffusionPrior):
        super().__init__(run, prior)
        assert run.variational is not None
        self.score = VariationalScore(prior, run.variational)

    def residual_target(self, target: Target, views: Views, z_t: Tensor, concat_cond: Tensor | None) -> Target:
        """Return the target for which the residual is z_phi - z_hat."""
        prompt = replace(self.prompt(views), concat_cond=concat_cond)
        epsilon_phi = self.score.predict_noise(z_t, views.t, prompt, views.cameras[0])
        z_phi = to_sample(epsilon_phi, z_t, float(self.prior.alphas_cumprod[views.t]))
        x = target.x
        if x is not None and (x_phi := self.prior.decode(z_phi)) is not None:
            x = views.x + x - x_phi
        return replace(target, z=views.z + target.z - z_phi, x=x)

    def add_gradients(self, views: Views) -> Tensor:
        """Set the gradients of the variational score, and return its loss, detached."""
        config, generator = self.run.config, self.run.generator
        z, prompt, camera = views.z.detach(), self.prompt(views), views.cameras[0]
        return self.score.add_gradients(z, prompt, camera, config.lora_prediction, generator)

    def gradient_norms(self) -> list[Tensor]:
        """Return the norm `()` of the gradients of the variational score."""
        return [self.score.norm()]

    def step(self) -> None:
        """Take an optimizer step of the variational score."""
        self.score.step()

    def prompt(self, views: Views) -> Guidance:
        """Return the prompt with the view suffix of the single view, without guidance."""
        assert self.run.embeddings is not None
        return unguided(self.run.embeddings.for_view(views.cameras[0].view))


def make_distiller(run: HiFARun, prior: DiffusionPrior) -> Distiller:
    """Return the distiller of the settings of a run.

    Raises:
        ValueError: For VSD, if the UNet cannot be adapted, or the state of the run does not fit the UNet.
    """
    if run.config.distillation == "hifa":
        return HiFADistiller(run, prior)
    return (VSDDistiller if run.config.distillation == "vsd" else ScoreDistiller)(run, prior)


def distillation_loss(config: HiFAConfig, views: Views, target: Target) -> Tensor:
    """Return the distillation loss, averaged over the views.

    The loss is L_SDS+ (equation 4). SDS, SJC and VSD have the same form with another target and weight.
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
