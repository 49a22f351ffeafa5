"""One step of a run: algorithm 1 of the paper (HiFA appendix A.2) with the losses of equation 9."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cameras import Camera, Rays, camera_to_world, front_or_back, image_rays, ring, sample_camera
from ..losses import monotonicity_loss, opacity_entropy_loss, opacity_loss, z_entropy_loss, z_variance_loss
from ..priors.prior import to_prior_size
from ..rendering.image import backpropagate
from ..rendering.rays import RayOutput
from ..schedule import annealed_timestep
from .distillation import Distiller, Views, distillation_loss
from .gradient_guard import gradient_norm, is_safe, read_together
from .reconstruction import reconstruct_latents, reconstruct_pixels
from .run import HiFARun
from .surface_guidance import (
    SurfaceModels,
    WholeView,
    curvature,
    disparity_guidance,
    normal_guidance,
    whole_views,
)


@dataclass(frozen=True)
class HiFAStep:
    """Result of one step.

    Args:
        step: Number of finished steps, from 1.
        timestep: Diffusion timestep t of the step; `None` in a reconstruction without a prior.
        losses: Value of each weighted loss term, and their sum `loss`. Terms on given views begin with `given_`. With
            `distillation="vsd"` there is also `variational`, the loss of the variational score, which is not in the
            sum.
        image: `(H, W, 3)` RGB in [0, 1], the first rendered view; `None` in a reconstruction without a prior.
        skipped: Number of attempts at this step that were rejected because the loss or a gradient was not finite.
    """

    step: int
    timestep: int | None
    losses: dict[str, float]
    image: Tensor | None
    skipped: int = 0


class DivergedError(ValueError):
    """Error for a step without a finite loss and gradient in `ATTEMPTS` attempts.

    The run is in the state before the step, except for the random state. The run can be saved. A resumed run draws new
    noise.
    """


ATTEMPTS = 10  # maximum for a step; in half precision, about one in several thousand attempts overflows


@dataclass(frozen=True)
class Distilled:
    """Result of the distillation of a step.

    Args:
        timestep: Diffusion timestep t.
        terms: Weighted loss terms, detached.
        image: `(H, W, 3)` RGB in [0, 1], the first rendered view.
        variational: Loss of the variational score, detached; `None` for methods other than VSD.
    """

    timestep: int
    terms: dict[str, Tensor]
    image: Tensor
    variational: Tensor | None


def optimization_step(
    run: HiFARun, distiller: Distiller | None = None, surfaces: SurfaceModels | None = None
) -> HiFAStep:
    """Perform one step of algorithm 1 (HiFA appendix A.2), with the losses of section 5.4 if the run has given views.

    The optimizers step only if the losses and all gradients are finite. Otherwise the attempt is rejected and counted
    in `run.skipped`, and the step is retried with new noise.

    Args:
        run: Run to optimize in place.
        distiller: Distiller of the run, or `None` for a run without a prompt, which is a pure reconstruction.
        surfaces: Models for settings with `lambda_disparity`, `lambda_normal` or `lambda_image_normal`;
            `None` for other settings.

    Raises:
        DivergedError: If `ATTEMPTS` attempts in a row are rejected.
    """
    config = run.config
    if run.grid is not None and run.step % config.grid_period == 0:
        run.grid.refresh(run.radiance_field, offset=torch.rand(3, generator=run.generator))
    share = config.learning_rate_share(run.step)
    for group, rate in zip(run.optimizer.param_groups, (config.grid_lr, config.network_lr), strict=True):
        group["lr"] = rate * share
    skipped_before = run.skipped
    for _ in range(ATTEMPTS):
        distilled, terms = add_gradients(run, distiller, surfaces or SurfaceModels())
        norm = gradient_norm(run.radiance_field.parameters())
        own_norms = [] if distiller is None else distiller.gradient_norms()
        losses, norms = read_losses(terms, distilled, [norm, *own_norms])
        if all(map(math.isfinite, losses.values())) and all(map(is_safe, norms)):
            break
        run.skipped += 1
    else:
        run.optimizer.zero_grad(set_to_none=True)
        raise DivergedError(
            f"The optimization diverged at step {run.step + 1}: {ATTEMPTS} attempts in a row were not finite, the "
            f"last with a loss of {losses['loss']:g} and a gradient of norm {norms[0]:g}. A resumed run continues "
            f"from step {run.step} with new noise. A lower guidance scale or a prior in float32 can help."
        )
    if distiller is not None:
        distiller.step()
    if config.max_gradient_norm:
        torch.nn.utils.clip_grads_with_norm_(run.radiance_field.parameters(), config.max_gradient_norm, norm)
    run.optimizer.step()
    run.step += 1
    run.losses.append(losses)
    return HiFAStep(
        run.step, None if distilled is None else distilled.timestep, losses,
        None if distilled is None else distilled.image, run.skipped - skipped_before,
    )  # fmt: skip


def add_gradients(
    run: HiFARun, distiller: Distiller | None, surfaces: SurfaceModels
) -> tuple[Distilled | None, dict[str, Tensor]]:
    """Compute the gradients and losses of one attempt at a step.

    Args:
        run: See `optimization_step`.
        distiller: See `optimization_step`.
        surfaces: Models of the surface.

    Returns:
        The result of the distillation, or `None` without one, and all weighted loss terms, detached.
    """
    config = run.config
    run.optimizer.zero_grad(set_to_none=True)
    distilled = None if distiller is None else distill_views(run, distiller, surfaces)
    terms = {} if distilled is None else dict(distilled.terms)
    # After the end of image guidance (appendix A.5), given views have no effect. No random numbers are drawn for the
    # views either.
    weight = 0.0 if run.views is None else config.given_views_weight(run.step)
    if weight > 0:
        given = reconstruct_pixels(run, weight, lambda rendered: regularizers(run, rendered), surfaces.views)
        if config.lambda_image_latent and distiller is not None:
            given |= reconstruct_latents(run, distiller.prior, weight)
        terms |= {f"given_{name}": value for name, value in given.items()}
    return distilled, terms


def read_losses(
    terms: dict[str, Tensor], distilled: Distilled | None, norms: list[Tensor]
) -> tuple[dict[str, float], list[float]]:
    """Return the losses for `HiFAStep`, and the norms, as Python numbers.

    A single transfer reads all values, so that a step waits for the GPU only once.
    """
    named = terms | {"loss": torch.stack(list(terms.values())).sum()}
    if distilled is not None and distilled.variational is not None:
        named["variational"] = distilled.variational
    values = read_together([*named.values(), *norms])
    return dict(zip(named, values, strict=False)), values[len(named) :]


def distill_views(run: HiFARun, distiller: Distiller, surfaces: SurfaceModels) -> Distilled:
    """Add the gradients of the distillation (algorithm 1, equation 9).

    The function samples and renders a view, or several views for a multi-view prior, and evaluates the prior. The
    gradients of the field include the surface losses and the regularizers. With VSD, the function also sets the
    gradients of the variational score.
    """
    config, device, prior = run.config, run.device, distiller.prior
    # Steps 1 and 2 of algorithm 1: sample views and a timestep.
    num_views = config.num_views_at(run.step)
    cameras = ring(draw_camera(run), max(num_views, 1))
    size = config.render_size_at(run.step)
    parts = [image_rays(camera_to_world(camera).to(device), camera.fov_deg, size) for camera in cameras]
    rays = Rays.joined(parts)
    offsets = torch.rand(len(rays), 2, generator=run.generator).to(device)
    background = draw_background(run)
    total = len(prior.alphas_cumprod)
    t = annealed_timestep(
        run.step,
        config.num_inference_steps,
        int(config.t_max * total),
        int(config.t_min * total),
        config.annealing,
        run.generator,
    )
    guides_normals = config.lambda_normal > 0 and run.step % config.normal_period == 0
    terms: dict[str, Tensor] = {}
    kept: list[tuple[Tensor, Views]] = []

    def loss_of(rendered: RayOutput) -> Tensor:
        x = to_prior_size(rendered.color, size, prior.image_size)
        z = prior.encode(x)
        views = Views(x, z, t, cameras, by_cameras=num_views > 0)
        kept.append((rendered.color.detach(), views))
        target = distiller.target(views, guides_normals)
        terms["sds"] = distillation_loss(config, views, target)
        wholes = whole_views(cameras, parts, rendered, size)
        terms.update(surface_terms(run, surfaces, wholes, target.estimate if guides_normals else None, t))
        terms.update(regularizers(run, rendered))
        return torch.stack(list(terms.values())).sum()

    backpropagate(
        run.radiance_field,
        rays,
        run.sampling,
        loss_of,
        background=background,
        offsets=offsets,
        chunk=config.rays_per_chunk,
    )
    detached = {name: value.detach() for name, value in terms.items()}
    ((color, views),) = kept
    return Distilled(t, detached, color.view(-1, size, size, 3)[0], distiller.add_gradients(views))


def surface_terms(
    run: HiFARun, surfaces: SurfaceModels, views: list[WholeView], estimates: Tensor | None, t: int
) -> dict[str, Tensor]:
    """Return the weighted surface losses, each averaged over the views.

    Args:
        run: Run, for the settings and the current step.
        surfaces: Models of the surface.
        views: V rendered views.
        estimates: `(V, 3, H, W)` clean estimates of the prior, from which the target normals are predicted; `None` to
            skip the normal loss.
        t: Timestep of the estimates.
    """
    config, terms = run.config, {}
    if config.lambda_disparity:
        assert surfaces.disparity is not None
        pairs = [(view, surfaces.disparity.estimate(view.picture, view.size)) for view in views]
        guidance = torch.stack([disparity_guidance(*pair) for pair in pairs]).mean()
        terms["disparity"] = config.disparity_weight(run.step) * guidance
    if estimates is not None:
        assert surfaces.normals is not None
        pictures = zip(views, estimates.split(1), strict=True)
        pairs = [(view, surfaces.normals.estimate(picture, view.size, t)) for view, picture in pictures]
        guidance = torch.stack([normal_guidance(*pair) for pair in pairs]).mean()
        terms["normal"] = config.lambda_normal * config.warmup(run.step) * guidance
    if config.lambda_curvature:
        bend = torch.stack([curvature(view, config.curvature_tau) for view in views]).mean()
        terms["curvature"] = config.lambda_curvature * config.warmup(run.step) * bend
    return terms


def draw_camera(run: HiFARun) -> Camera:
    """Draw a random camera.

    Before the fraction `front_back_end` of the run, a step with a single view has a camera at the front or the back of
    the object.
    """
    config = run.config
    camera = sample_camera(
        run.generator,
        radius=config.camera_framing if config.framed else config.camera_radius,
        fov_deg=config.camera_fov_deg,
        elevation_deg=config.camera_elevation_deg,
    )
    if config.framed:
        camera = replace(camera, radius=camera.radius / math.tan(math.radians(camera.fov_deg / 2)))
    if config.num_views_at(run.step):
        return camera
    if run.step < config.front_back_end * config.num_inference_steps:
        return replace(camera, azimuth_deg=front_or_back(camera.azimuth_deg))
    return camera


def draw_background(run: HiFARun) -> Tensor | None:
    """Draw a background.

    Returns:
        A slightly tinted gray `(3,)` in the fraction `random_background` of the steps. `None` in all other steps,
        which selects the background network.
    """
    share, level, *tint = torch.rand(5, generator=run.generator).tolist()
    low, high = run.config.background_range
    color = torch.tensor([low + (high - low) * level + 0.08 * (value - 0.5) for value in tint]).clamp(0, 1)
    return color.to(run.device) if share < run.config.random_background else None


def regularizers(run: HiFARun, rendered: RayOutput) -> dict[str, Tensor]:
    """Return the weighted regularizers, which apply to sampled and given views.

    These are z-variance (equation 8), the opacity and its entropy, monotonicity and the entropy of z from the public
    code, and the distortion loss of Mip-NeRF 360.
    """
    config, terms = run.config, {}
    ramp = config.warmup(run.step)
    if config.lambda_zvar:
        terms["z_variance"] = config.lambda_zvar * ramp * z_variance_loss(rendered.z_variance, rendered.opacity)
    if config.lambda_monotonic:
        terms["monotonic"] = config.lambda_monotonic * monotonicity_loss(rendered.density)
    if config.lambda_zentropy:
        terms["z_entropy"] = config.lambda_zentropy * ramp * z_entropy_loss(rendered.z_entropy, rendered.opacity)
    if config.lambda_distortion:
        terms["distortion"] = config.lambda_distortion * ramp * rendered.distortion.mean()
    if config.lambda_opacity:
        terms["opacity"] = config.lambda_opacity * ramp * opacity_loss(rendered.opacity)
    if config.lambda_entropy:
        terms["entropy"] = config.lambda_entropy * ramp * opacity_entropy_loss(rendered.opacity)
    return terms
