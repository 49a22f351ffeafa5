"""One step of a run: algorithm 1 of the paper (HiFA appendix A.2) with the losses of equation 9."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .cameras import camera_to_world, image_rays, sample_camera
from .losses import opacity_entropy_loss, opacity_loss, sds_plus_loss, z_variance_loss
from .priors.latent_diffusion import Guidance, LatentDiffusionPrior, to_prior_size
from .reconstruction import reconstruct_latents, reconstruct_pixels
from .rendering.image import backpropagate
from .rendering.rays import RayOutput
from .run import HiFARun
from .schedule import annealed_timestep


@dataclass(frozen=True)
class HiFAStep:
    """What one step did.

    Args:
        step: Finished steps, from 1.
        timestep: Diffusion timestep t of the step; `None` in a reconstruction without a prior.
        losses: Value of each weighted loss term and of their sum, `loss`. Terms on given views begin with `given_`.
        image: The view that was distilled, `(H, W, 3)` RGB in [0, 1]; `None` in a reconstruction without a prior.
    """

    step: int
    timestep: int | None
    losses: dict[str, float]
    image: Tensor | None


@dataclass(frozen=True)
class Distilled:
    """A distilled view: timestep, weighted loss terms, detached, and the image `(H, W, 3)`."""

    timestep: int
    terms: dict[str, Tensor]
    image: Tensor


def optimisation_step(run: HiFARun, prior: LatentDiffusionPrior | None, image_size: int | None) -> HiFAStep:
    """One pass of algorithm 1 (HiFA appendix A.2), with the given views of section 5.4 if the run has any.

    Args:
        prior: `None` for a run without a prompt, which is reconstruction alone.
        image_size: Pixels per side that the prior was trained on.
    """
    config = run.config
    if run.grid is not None and run.step % config.grid_period == 0:
        run.grid.refresh(run.radiance_field, offset=torch.rand(3, generator=run.generator))
    share = config.learning_rate_share(run.step)
    for group, rate in zip(run.optimizer.param_groups, (config.grid_lr, config.network_lr), strict=True):
        group["lr"] = rate * share
    run.optimizer.zero_grad(set_to_none=True)
    distilled = None if run.prompt_embeds is None else distil_view(run, prior, image_size)
    terms = {} if distilled is None else dict(distilled.terms)
    # Past the end of image guidance nothing of the given views is touched, not even the random state (appendix A.5).
    weight = 0.0 if run.views is None else config.given_views_weight(run.step)
    if weight > 0:
        given = reconstruct_pixels(run, weight, lambda seen: regularisers(run, seen))
        if config.lambda_image_latent and prior is not None:
            given |= reconstruct_latents(run, prior, image_size, weight)
        terms |= {f"given_{name}": value for name, value in given.items()}
    run.optimizer.step()
    run.step += 1
    losses = {name: value.item() for name, value in terms.items()}
    losses["loss"] = torch.stack(list(terms.values())).sum().item()
    run.losses.append(losses)
    return HiFAStep(
        run.step, None if distilled is None else distilled.timestep, losses,
        None if distilled is None else distilled.image,
    )  # fmt: skip


def distil_view(run: HiFARun, prior: LatentDiffusionPrior, image_size: int) -> Distilled:
    """Sample a view, render, ask the prior and add the gradients of equation 9 (algorithm 1)."""
    config, device = run.config, run.device
    # Steps 1 and 2: a view and a timestep.
    camera = sample_camera(
        run.generator,
        radius=config.camera_radius,
        fov_deg=config.camera_fov_deg,
        elevation_deg=config.camera_elevation_deg,
    )
    size = config.render_size_at(run.step)
    rays = image_rays(camera_to_world(camera).to(device), camera.fov_deg, size)
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
    embeds = torch.stack([run.prompt_embeds[0], run.prompt_embeds[1 + camera.view]])
    terms: dict[str, Tensor] = {}
    image: list[Tensor] = []

    def loss_of(seen: RayOutput) -> Tensor:
        image.append(seen.colour.detach())
        terms["sds"] = distillation_loss(run, prior, seen, size, image_size, t, embeds)
        terms.update(regularisers(run, seen))
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
    return Distilled(t, detached, image[0].view(size, size, 3))


def draw_background(run: HiFARun) -> Tensor | None:
    """A flat, slightly tinted gray in `random_background` of the steps, otherwise `None`: the background network."""
    share, level, *tint = torch.rand(5, generator=run.generator).tolist()
    low, high = run.config.background_range
    colour = torch.tensor([low + (high - low) * level + 0.08 * (value - 0.5) for value in tint]).clamp(0, 1)
    return colour.to(run.device) if share < run.config.random_background else None


def distillation_loss(
    run: HiFARun, prior: LatentDiffusionPrior, seen: RayOutput, size: int, image_size: int, t: int, embeds: Tensor
) -> Tensor:
    """L_SDS+ (equation 4) of one rendered view."""
    config = run.config
    x = to_prior_size(seen.colour, size, image_size)
    z = prior.encode(x)
    guidance = Guidance(config.guidance_scale, config.guidance_rescale, config.denoising_stride, config.eta)
    z_hat = prior.estimate(z, t, embeds, guidance, run.generator)
    x_hat = prior.decode(z_hat) if config.lambda_rgb else None
    return sds_plus_loss(
        z,
        z_hat,
        x,
        x_hat,
        weight=config.sds_weight,
        lambda_latent=config.lambda_latent,
        lambda_rgb=config.lambda_rgb,
    )


def regularisers(run: HiFARun, seen: RayOutput) -> dict[str, Tensor]:
    """Weighted terms that hold for every view, given or not: z-variance (equation 8), opacity and its entropy."""
    config, terms = run.config, {}
    progress = run.step / config.num_inference_steps
    ramp = min(1.0, progress / config.regulariser_warmup) if config.regulariser_warmup else 1.0
    if config.lambda_zvar:
        terms["z_variance"] = config.lambda_zvar * ramp * z_variance_loss(seen.z_variance, seen.opacity)
    if config.lambda_opacity:
        terms["opacity"] = config.lambda_opacity * ramp * opacity_loss(seen.opacity)
    if config.lambda_entropy:
        terms["entropy"] = config.lambda_entropy * ramp * opacity_entropy_loss(seen.opacity)
    return terms
