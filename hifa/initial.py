"""What a run begins with: a fresh field, its density grid, and how they look before any prior is loaded."""

import math

import torch
from torch import Tensor

from .cameras import Camera
from .config import HiFAConfig
from .field import RadianceField
from .rendering.density_grid import DensityGrid
from .rendering.image import render_picture
from .rendering.rays import RaySampling


PREVIEW_SIZE = 128  # pixels
PREVIEW_GRAY = 0.8  # behind the object: a fresh field is of a middle gray, and could not be seen before that


def initial_field(config: HiFAConfig, seed: int, device: str | torch.device = "cpu") -> RadianceField:
    """A fresh field in float32 with the density blob of the settings; `seed` and the settings decide its values."""
    field = RadianceField(
        bound=config.bound,
        levels=config.levels,
        base_resolution=config.base_resolution,
        finest_resolution=config.finest_resolution,
        log2_entries=config.log2_entries,
        hidden_dim=config.hidden_dim,
        view_bands=config.view_bands,
        blob_density=config.blob_density,
        blob_radius=config.blob_radius,
        seed=seed,
    )
    # `ModelMixin.to` imports diffusers' hooks, and peft with them: a second, before the first preview.
    return field if torch.device(device).type == "cpu" else field.to(device)


def initial_grid(config: HiFAConfig, field: RadianceField) -> DensityGrid | None:
    """The density grid of a field, read from it, so that there is a preview before the first step; `None` if the
    settings have none."""
    if not config.density_grid:
        return None
    grid = DensityGrid(config.density_grid, config.bound).to(field.device)
    grid.refresh(field)
    return grid


def ray_sampling(config: HiFAConfig, grid: DensityGrid | None) -> RaySampling:
    """How rays are sampled by these settings."""
    return RaySampling(
        config.n_coarse,
        config.n_fine,
        config.kernel,
        grid,
        config.min_opacity if grid is not None else 0.0,
        keep_density=config.lambda_monotonic > 0,
        keep_entropy=config.lambda_zentropy > 0,
        keep_distortion=config.lambda_distortion > 0,
    )


def front_camera(config: HiFAConfig, azimuth_deg: float = 0.0) -> Camera:
    """A camera slightly above, in the middle of where those of the run are."""
    fov_deg, radius = sum(config.camera_fov_deg) / 2, sum(config.camera_radius) / 2
    if config.framed:
        radius = sum(config.camera_framing) / 2 / math.tan(math.radians(fov_deg / 2))
    return Camera(azimuth_deg, 15.0, radius, fov_deg)


def preview(field: RadianceField, camera: Camera, sampling: RaySampling, size: int = PREVIEW_SIZE) -> Tensor:
    """What a field looks like: `(size, size, 3)` RGB in [0, 1] on a light gray."""
    background = torch.full((3,), PREVIEW_GRAY, device=field.device)
    return render_picture(field, camera, size, sampling, background).colour


def first_preview(config: HiFAConfig, seed: int) -> Tensor:
    """What a run of these settings will look like at step 0, seconds before a prior is loaded: `preview` of it, but
    for the density grid, whose loop may still have to be compiled: the field alone is read."""
    return preview(initial_field(config, seed), front_camera(config), ray_sampling(config, None))
