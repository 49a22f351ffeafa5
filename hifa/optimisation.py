"""One step of a run: algorithm 1 of the paper (HiFA appendix A.2) with the losses of equation 9."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .cameras import camera_to_world, image_rays, sample_camera
from .losses import opacity_entropy_loss, opacity_loss, sds_plus_loss, z_variance_loss
from .priors.latent_diffusion import Guidance, LatentDiffusionPrior
from .rendering.image import backpropagate
from .rendering.rays import RayOutput
from .run import HiFARun
from .schedule import annealed_timestep


@dataclass(frozen=True)
class HiFAStep:
    """What one step did.

    Args:
        step: Finished steps, from 1.
        timestep: Diffusion timestep t of the step.
        losses: Value of each weighted loss term and of their sum, `loss`.
        image: The view that was rendered for the step, `(H, W, 3)` RGB in [0, 1].
    """

    step: int
    timestep: int
    losses: dict[str, float]
    image: Tensor


def optimisation_step(run: HiFARun, prior: LatentDiffusionPrior, image_size: int) -> HiFAStep:
    """One pass of algorithm 1 (HiFA appendix A.2): sample a view, render, ask the prior, descend."""
    config, field, device = run.config, run.radiance_field, run.prompt_embeds.device
    if run.grid is not None and run.step % config.grid_period == 0:
        run.grid.refresh(field, offset=torch.rand(3, generator=run.generator))
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

    def loss_of(seen: RayOutput) -> Tensor:
        terms.update(loss_terms(run, prior, seen, size, image_size, t, embeds))
        return torch.stack(list(terms.values())).sum()

    run.optimizer.zero_grad(set_to_none=True)
    image: list[Tensor] = []
    loss = backpropagate(
        field,
        rays,
        run.sampling,
        lambda seen: (image.append(seen.colour.detach()), loss_of(seen))[1],
        background=background,
        offsets=offsets,
        chunk=config.rays_per_chunk,
    )
    run.optimizer.step()
    run.step += 1
    losses = {name: value.item() for name, value in terms.items()} | {"loss": loss.item()}
    run.losses.append(losses)
    return HiFAStep(run.step, t, losses, image[0].view(size, size, 3))


def draw_background(run: HiFARun) -> Tensor | None:
    """A flat, slightly tinted gray in `random_background` of the steps, otherwise `None`: the background network."""
    share, level, *tint = torch.rand(5, generator=run.generator).tolist()
    low, high = run.config.background_range
    colour = torch.tensor([low + (high - low) * level + 0.08 * (value - 0.5) for value in tint]).clamp(0, 1)
    return colour.to(run.prompt_embeds.device) if share < run.config.random_background else None


def loss_terms(
    run: HiFARun, prior: LatentDiffusionPrior, seen: RayOutput, size: int, image_size: int, t: int, embeds: Tensor
) -> dict[str, Tensor]:
    """Weighted terms of equation 9 for one rendered view."""
    config = run.config
    x = seen.colour.view(1, size, size, 3).permute(0, 3, 1, 2)
    if size != image_size:
        x = F.interpolate(
            x, (image_size, image_size), mode="bilinear", align_corners=False, antialias=size > image_size
        )
    z = prior.encode(x)
    guidance = Guidance(config.guidance_scale, config.guidance_rescale, config.denoising_stride, config.eta)
    z_hat = prior.estimate(z, t, embeds, guidance, run.generator)
    x_hat = prior.decode(z_hat) if config.lambda_rgb else None
    terms = {
        "sds": sds_plus_loss(
            z,
            z_hat,
            x,
            x_hat,
            weight=config.sds_weight,
            lambda_latent=config.lambda_latent,
            lambda_rgb=config.lambda_rgb,
        )
    }
    progress = run.step / config.num_inference_steps
    ramp = min(1.0, progress / config.regulariser_warmup) if config.regulariser_warmup else 1.0
    if config.lambda_zvar:
        terms["z_variance"] = config.lambda_zvar * ramp * z_variance_loss(seen.z_variance, seen.opacity)
    if config.lambda_opacity:
        terms["opacity"] = config.lambda_opacity * ramp * opacity_loss(seen.opacity)
    if config.lambda_entropy:
        terms["entropy"] = config.lambda_entropy * ramp * opacity_entropy_loss(seen.opacity)
    return terms
