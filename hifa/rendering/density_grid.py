"""Coarse grid of the field's density, which replaces the field in the coarse pass."""

import numpy as np
import torch
from torch import Tensor, nn

from ..field import RadianceField
from ..field.hash_grid_cpu import share_threads
from .density_grid_cpu import look_up


class DensityGrid(nn.Module):
    """Density at the cell centers of a regular grid over the cube of the field.

    With the grid, the coarse pass costs one table lookup per sample, and rays through empty space need no field
    evaluation. Between two refreshes (`grid_period` steps) the grid lags behind the field. A refresh evaluates one
    point per cell and may miss a thin surface. Old densities therefore decay by a factor instead of vanishing.

    Args:
        resolution: Cells per axis.
        bound: Half the side of the cube, world units.
    """

    values: Tensor

    def __init__(self, resolution: int, bound: float):
        super().__init__()
        self.resolution, self.bound = resolution, bound
        self.register_buffer("values", torch.zeros(resolution, resolution, resolution))  # (z, y, x)

    @torch.no_grad()
    def refresh(self, field: RadianceField, decay: float = 0.6, offset: Tensor | None = None) -> None:
        """Evaluate the field once in every cell: new = max(decay * old, density).

        Args:
            field: The radiance field.
            decay: Factor of the old values, in [0, 1].
            offset: `(3,)` in [0, 1): position of the evaluated point inside its cell, the same for all cells. The
                default is the center.
        """
        offset = self.values.new_full((3,), 0.5) if offset is None else offset.to(self.values)
        axis = torch.arange(self.resolution, device=self.values.device)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        cells = torch.stack([x, y, z], -1).reshape(-1, 3)
        points = ((cells + offset) / self.resolution * 2 - 1) * self.bound
        density = torch.cat([field.density(part) for part in points.split(2**17)])
        # fmax ignores NaN, which would otherwise stay in the grid permanently.
        self.values.copy_(torch.fmax(decay * self.values, density.view_as(self.values)))

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        """Return the trilinear density `(...,)` at `points` `(..., 3)` in world units; 0 outside the cube."""
        if points.device.type == "cpu" and points.dtype == torch.float32:
            return self._density_on_cpu(points)
        return self._density_by_torch(points)

    def padded(self) -> Tensor:
        """Return the values with a layer of zeros around them, as the loops of `density_grid_cpu` need."""
        return nn.functional.pad(self.values, (1,) * 6)

    def filled(self, least: float) -> Tensor:
        """Mark the cells in which the interpolated density may exceed `least`.

        Each cell has eight neighboring values of `padded` as its corners.

        Returns:
            `(n + 1, n + 1, n + 1)` bool, where n is `resolution`.
        """
        padded = self.padded()[None, None]
        return nn.functional.max_pool3d(padded, 2, stride=1)[0, 0] > least

    def _density_by_torch(self, points: Tensor) -> Tensor:
        grid = (points / self.bound).reshape(1, 1, 1, -1, 3)
        values = nn.functional.grid_sample(self.values[None, None], grid, align_corners=False, padding_mode="zeros")
        return values.reshape(points.shape[:-1])

    def _density_on_cpu(self, points: Tensor) -> Tensor:
        padded = self.padded()
        out = points.new_empty(points.shape[:-1])
        share_threads()
        flat = points.detach().reshape(-1, 3).contiguous()
        look_up(flat.numpy(), padded.numpy(), np.float32(self.bound), out.view(-1).numpy())
        return out
