"""Guidance by given views: reconstruction losses on random pixels of the views (HiFA section 5.4, appendix A.5)."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..cameras import camera_to_world, image_rays
from ..config import HiFAConfig
from ..losses import image_reconstruction_loss, latent_reconstruction_loss, mask_loss, total_variation_loss
from ..multiview.given_views import GivenViews, PixelBatch
from ..priors.prior import DiffusionPrior, to_prior_size
from ..rendering.image import backpropagate
from ..rendering.rays import RayOutput
from .run import HiFARun
from .surface_guidance import ViewNormals


TV_SIZE = 128  # pixels per side of a view at which the weight of total variation is `lambda_tv` itself


def reconstruct_pixels(
    run: HiFARun,
    weight: float,
    regularize: Callable[[RayOutput], dict[str, Tensor]],
    view_normals: ViewNormals | None = None,
) -> dict[str, Tensor]:
    """Add the gradients of the reconstruction losses and the regularizers on random pixels of the given views.

    The number of pixels is `given_rays`. The pixels cover the object from all sides in every step, at a fraction of
    the cost of whole images.

    Args:
        run: Run with given views.
        weight: Factor on the reconstruction losses, in (0, 1].
        regularize: Function that computes the weighted regularizers of rendered rays.
        view_normals: Predicted normals for settings with `lambda_image_normal`.

    Returns:
        Weighted loss terms by name, detached.
    """
    config, views = run.config, run.views
    assert views is not None
    batch, offsets = draw_pixels(views, config, run.generator)
    alone = len(batch.rays)  # Rays from this index on belong to corners for the normal loss.
    if view_normals is not None:
        corners, more = draw_corners(views, config, view_normals.stride, run.generator)
        batch, offsets = batch.joined(corners), torch.cat([offsets, more])
    terms: dict[str, Tensor] = {}

    def loss_of(rendered: RayOutput) -> Tensor:
        image = image_reconstruction_loss(rendered.color, batch.color, batch.mask, config.image_outside)
        terms["image"] = weight * config.lambda_image * image
        if config.lambda_mask:
            terms["mask"] = weight * config.lambda_mask * mask_loss(rendered.opacity, batch.mask)
        if config.lambda_tv:
            # At twice the image size, neighboring pixels differ half as much.
            scale = views.size / TV_SIZE
            variation = total_variation_loss(rendered.color[:alone], batch.mask[:alone])
            terms["tv"] = weight * config.lambda_tv * scale * variation
        if view_normals is not None:
            normal = view_normals.loss(corners, rendered.map(lambda values: values[alone:]))
            terms["normal"] = weight * config.lambda_image_normal * config.warmup(run.step) * normal
        terms.update(regularize(rendered))
        return torch.stack(list(terms.values())).sum()

    backpropagate(
        run.radiance_field,
        batch.rays,
        run.sampling,
        loss_of,
        background=torch.ones(3, device=run.device),  # Given views have a white background.
        offsets=offsets,
        chunk=config.rays_per_chunk,
    )
    return {name: value.detach() for name, value in terms.items()}


def draw_pixels(views: GivenViews, config: HiFAConfig, generator: torch.Generator) -> tuple[PixelBatch, Tensor]:
    """Draw random pixels, in pairs of neighbors if `lambda_tv` is above 0.

    Returns:
        The pixels, and sampling offsets `(n_rays, 2)` in [0, 1), see `render_rays`. The number of pixels is
        `given_rays`, or half of `given_rays` if the normal loss uses the other half.
    """
    count = config.given_rays // 2 if config.lambda_image_normal else config.given_rays
    if config.lambda_tv:
        batch = views.sample_pairs(max(1, count // 2), generator)
    else:
        batch = views.sample(max(1, count), generator)
    return batch, torch.rand(len(batch.rays), 2, generator=generator).to(batch.mask.device)


def draw_corners(
    views: GivenViews, config: HiFAConfig, stride: int, generator: torch.Generator
) -> tuple[PixelBatch, Tensor]:
    """Draw random corners of three pixels for the normal loss.

    The three rays of a corner have the same offsets, so that the differences of their depths have little sampling
    noise.

    Returns:
        The pixels of the corners, `given_rays / 2` in total, and sampling offsets `(n_rays, 2)` in [0, 1), see
        `render_rays`.
    """
    count = max(1, config.given_rays // 6)
    batch = views.sample_corners(count, stride, generator)
    return batch, torch.rand(count, 2, generator=generator).repeat(3, 1).to(batch.mask.device)


def reconstruct_latents(run: HiFARun, prior: DiffusionPrior, weight: float) -> dict[str, Tensor]:
    """Add the gradient of the latent reconstruction loss on one whole given view, drawn at random.

    Args:
        run: Run with given views.
        prior: Prior whose encoder is used. Both images are resized to the input size of the prior.
        weight: Factor on the loss, in (0, 1].

    Returns:
        The weighted loss term by name, detached.
    """
    config, views = run.config, run.views
    assert views is not None
    view = int(torch.randint(len(views), (), generator=run.generator))
    camera, size = views.cameras[view], config.render_size_at(run.step)
    rays = image_rays(camera_to_world(camera).to(run.device), camera.fov_deg, size)
    offsets = torch.rand(len(rays), 2, generator=run.generator).to(run.device)
    color, _ = views.picture(view)
    with torch.no_grad():
        z_view = prior.encode(to_prior_size(color.view(-1, 3), views.size, prior.image_size))

    def loss_of(rendered: RayOutput) -> Tensor:
        z = prior.encode(to_prior_size(rendered.color, size, prior.image_size))
        return weight * config.lambda_image_latent * latent_reconstruction_loss(z, z_view)

    white = torch.ones(3, device=run.device)
    loss = backpropagate(
        run.radiance_field, rays, run.sampling, loss_of,
        background=white, offsets=offsets, chunk=config.rays_per_chunk,
    )  # fmt: skip
    return {"latent": loss}
