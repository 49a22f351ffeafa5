"""Rendering of a finished field for looking at: samples placed by an exact density grid, front to back, no gradients.

Training renders with `rays`: random samples, all of them evaluated, from a grid that lags behind the field. Here the
field stands still, so the grid is evaluated once and trusted, and rays end where they are spent.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..cameras import Camera, Rays, camera_to_world, image_rays
from ..field import RadianceField
from ..field.hash_grid_cpu import share_threads
from .density_grid import DensityGrid
from .density_grid_cpu import place
from .image import Picture, concatenate, picture_of
from .rays import NEGLIGIBLE_SHARE, RayOutput, RaySampling, place_by_grid
from .sampling import box_intersection, cells_around, stratified_edges


GRID_RESOLUTION = 64
MAX_CELL_OPTICAL_DEPTH = 0.35  # 30 % opaque; above, thin parts hide behind cells that a surface only touches
CLEAR_DENSITY = 0.01  # per world unit: below, even a ray through the whole cube sees nothing
MIN_OPACITY = 0.01
SPENT_OPTICAL_DEPTH = 6.5  # transmittance 1/665, which no 8-bit picture shows
SAMPLES_PER_ROUND = 6


class Viewer:
    """Renders views of a field that does not change.

    Args:
        field: The field. Its density is evaluated on a grid here, once.
        n_cells: Cells of a ray across the field's cube, at whose middles the grid is read.
        n_samples: Samples of a ray for the field.
    """

    @torch.no_grad()
    def __init__(self, field: RadianceField, n_cells: int = 64, n_samples: int = 12):
        self.field, self.n_cells, self.n_samples = field, n_cells, n_samples
        self.grid = DensityGrid(GRID_RESOLUTION, field.bound).to(field.device)
        self.grid.refresh(field)
        self._padded, self._filled = self.grid.padded(), self.grid.filled(CLEAR_DENSITY)

    @torch.no_grad()
    def picture(self, camera: Camera, size: int, background: Tensor | None = None, chunk: int = 2**15) -> Picture:
        """Render a view; see `render_picture`."""
        rays = image_rays(camera_to_world(camera).to(self.field.device), camera.fov_deg, size)
        parts = [self.see(rays[start : start + chunk], background) for start in range(0, len(rays), chunk)]
        return picture_of(concatenate(parts), rays, size)

    @torch.no_grad()
    def see(self, rays: Rays, background: Tensor | None = None) -> RayOutput:
        """Render rays.

        Args:
            background: `(3,)` flat color; without it the field's background network.
        """
        behind = self.field.background(rays.directions) if background is None else background.expand(len(rays), 3)
        live, z = self._place(rays)
        seen = self._composite(rays[live], z, behind[live])
        nothing = behind.new_zeros(len(rays))
        return RayOutput(
            behind.index_copy(0, live, seen[0]),
            *(nothing.index_copy(0, live, value) for value in seen[1:]),
            z_entropy=nothing, distortion=nothing, density=nothing[:, None][:, :0],
        )  # fmt: skip

    def _place(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """The rays that meet something, and their samples."""
        near, far = self._ends(rays)
        if rays.origins.device.type == "cpu":
            return self._place_on_cpu(rays, near, far)
        edges = stratified_edges(near, far, self.n_cells)
        sampling = RaySampling(self.n_cells, self.n_samples, min_opacity=MIN_OPACITY)
        offset = near.new_full((len(rays),), 0.5)
        return place_by_grid(self.grid, rays, edges, sampling, offset, MAX_CELL_OPTICAL_DEPTH)

    def _ends(self, rays: Rays) -> tuple[Tensor, Tensor]:
        return box_intersection(rays, self.field.bound)

    def _place_on_cpu(self, rays: Rays, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        out, live = torch.empty(len(rays), self.n_samples), torch.empty(len(rays), dtype=torch.bool)
        share_threads()
        place(
            rays.origins.contiguous().numpy(), rays.directions.contiguous().numpy(), near.numpy(), far.numpy(),
            self._padded.numpy(), self._filled.numpy(), np.float32(self.grid.bound), self.n_cells,
            np.float32(MAX_CELL_OPTICAL_DEPTH), np.float32(-math.log1p(-MIN_OPACITY)), out.numpy(), live.numpy(),
        )  # fmt: skip
        live = torch.nonzero(live)[:, 0]
        return live, out[live]

    def _composite(self, rays: Rays, z: Tensor, behind: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Color, opacity, depth and z-variance of live rays, a few samples at a time: rays that are spent see no
        more of the field."""
        edges = cells_around(z)
        lengths, first = edges.diff(), z[:, 0]
        passed, color = torch.zeros_like(first), torch.zeros_like(behind)
        moments = first.new_zeros(
            len(first), 3
        )  # sums of the weights times 1, z and z^2, with z from the first sample
        going = torch.arange(len(first), device=z.device)
        for start in range(0, self.n_samples, SAMPLES_PER_ROUND):
            part = slice(start, start + SAMPLES_PER_ROUND)
            near, length = z[going, part], lengths[going, part]
            directions = rays.directions[going]
            points = torch.addcmul(rays.origins[going, None], directions[:, None], near[..., None])
            density, features = self.field.encode(points.view(-1, 3))
            depth = passed[going, None] + torch.cumsum(density.view_as(near) * length, -1)
            through = torch.exp(-torch.cat([passed[going, None], depth], -1))
            weights = through[:, :-1] - through[:, 1:]
            shown = torch.nonzero(weights > NEGLIGIBLE_SHARE / self.n_samples, as_tuple=True)
            colors = torch.zeros(*near.shape, 3, device=z.device)
            colors[shown] = self.field.colour_of(
                features.view(*near.shape, features.shape[-1])[shown], directions[shown[0]]
            )
            color.index_add_(0, going, (weights[..., None] * colors).sum(1))
            offset = near - first[going, None]
            powers = torch.stack([torch.ones_like(offset), offset, offset**2], -1)
            moments.index_add_(0, going, (weights[..., None] * powers).sum(1))
            passed[going] = depth[:, -1]
            going = going[depth[:, -1] < SPENT_OPTICAL_DEPTH]
            if not len(going):
                break
        opacity = moments[:, 0]
        mean, square = (moments[:, 1:] / opacity.clamp_min(1e-5)[:, None]).unbind(-1)
        empty = opacity <= 0
        depth = torch.where(empty, 0, first + mean)
        variance = torch.where(empty, 0, (square - mean**2).clamp_min(0))
        return color + (1 - opacity)[:, None] * behind, opacity, depth, variance
