"""Fast rendering of a finished field without gradients: an exact density grid places the samples.

Training renders with `rays`: samples are random, the field is evaluated at all samples, and the density grid lags
behind the field. A finished field does not change, so its grid is evaluated once and is up to date. Rays are
composited front to back and end where they are nearly opaque.
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
MAX_CELL_OPTICAL_DEPTH = 0.35  # 30 % opaque; with a higher limit, cells that a surface only touches hide thin parts
CLEAR_DENSITY = 0.01  # per world unit: a lower density is invisible even across the whole cube
MIN_OPACITY = 0.01
SPENT_OPTICAL_DEPTH = 6.5  # transmittance 1/665, below one level of an 8-bit picture
SAMPLES_PER_ROUND = 6


class Viewer:
    """Renderer of a field that does not change.

    Args:
        field: The radiance field. The constructor evaluates its density on a grid once.
        n_cells: Number of cells of a ray in the cube of the field. The grid is read at the cell centers.
        n_samples: Number of field evaluations per ray.
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
            rays: Rays with unit directions.
            background: `(3,)` flat color. The default is the background network of the field.
        """
        behind = self.field.background(rays.directions) if background is None else background.expand(len(rays), 3)
        live, z = self._place(rays)
        rendered = self._composite(rays[live], z, behind[live])
        nothing = behind.new_zeros(len(rays))
        return RayOutput(
            behind.index_copy(0, live, rendered[0]),
            *(nothing.index_copy(0, live, value) for value in rendered[1:]),
            z_entropy=nothing, distortion=nothing, density=nothing[:, None][:, :0],
        )  # fmt: skip

    def _place(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """Return the indices of the rays that are not empty, and the distances of their samples."""
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
        """Composite the samples of live rays in rounds, and stop evaluating the field for rays that are opaque.

        Returns:
            Color `(n, 3)`, opacity, depth and z-variance `(n,)`.
        """
        edges = cells_around(z)
        lengths, first = edges.diff(), z[:, 0]
        passed, color = torch.zeros_like(first), torch.zeros_like(behind)
        moments = first.new_zeros(
            len(first), 3
        )  # sums of the weights times 1, z and z^2, where z is relative to the first sample
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
            colors[shown] = self.field.color_of(
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
