"""Initial field and density grid of a run, and previews, which need no prior."""

import math

import torch
from torch import Tensor

from ..cameras import Camera
from ..config import HiFAConfig
from ..field import RadianceField
from ..rendering.density_grid import DensityGrid
from ..rendering.image import render_picture
from ..rendering.rays import RaySampling


PREVIEW_SIZE = 128  # pixels per side
PREVIEW_GRAY = 0.8  # background; a new field is middle gray and would be invisible on middle gray


def initial_field(config: HiFAConfig, seed: int, device: str | torch.device = "cpu") -> RadianceField:
    """Create a field in float32 with the density blob of the settings.

    The settings and `seed` determine the values of the field.
    """
    field = RadianceField(
        bound=config.bound,
        levels=config.levels,
        base_resolution=config.base_resolution,
        max_resolution=config.max_resolution,
        log2_hashmap_size=config.log2_hashmap_size,
        hidden_dim=config.hidden_dim,
        view_bands=config.view_bands,
        blob_density=config.blob_density,
        blob_radius=config.blob_radius,
        seed=seed,
    )
    # `ModelMixin.to` imports diffusers' hooks and peft, which takes a second.
    return field if torch.device(device).type == "cpu" else field.to(device)  # pyright: ignore[reportArgumentType]


def initial_grid(config: HiFAConfig, field: RadianceField) -> DensityGrid | None:
    """Create the density grid of a field, or return `None` if the settings have no density grid.

    The grid is filled from the field, so that a preview is possible before the first step.
    """
    if not config.density_grid:
        return None
    grid = DensityGrid(config.density_grid, config.bound).to(field.device)
    grid.refresh(field)
    return grid


def ray_sampling(config: HiFAConfig, grid: DensityGrid | None) -> RaySampling:
    """Return the ray sampling of the settings."""
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
    """Return a camera at an elevation of 15 degrees, with the mean radius and field of view of the run's cameras."""
    fov_deg, radius = sum(config.camera_fov_deg) / 2, sum(config.camera_radius) / 2
    if config.framed:
        radius = sum(config.camera_framing) / 2 / math.tan(math.radians(fov_deg / 2))
    return Camera(azimuth_deg, 15.0, radius, fov_deg)


def preview(field: RadianceField, camera: Camera, sampling: RaySampling, size: int = PREVIEW_SIZE) -> Tensor:
    """Render a field: `(size, size, 3)` RGB in [0, 1] on light gray."""
    background = torch.full((3,), PREVIEW_GRAY, device=field.device)
    return render_picture(field, camera, size, sampling, background).color
