"""Rendering of rays: coarse pass, smoothed importance sampling, fine pass, compositing (HiFA section 4.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..cameras import Rays
from ..field import RadianceField
from .density_grid import DensityGrid
from .sampling import BOXCAR, box_intersection, cells_around, importance_samples, stratified_edges
from .volume import accumulate, depth_moments, distortion, weights_from_density, z_entropy


NEGLIGIBLE_SHARE = 1 / 512  # largest brightness that a ray may lose because faint samples get no color; 1 is white
MAX_CELL_OPTICAL_DEPTH = 0.35  # upper limit for a coarse cell read from the density grid: 30 % opaque
SPENT_OPTICAL_DEPTH = 12.0  # a ray ends at the transmittance e^-12


@dataclass(frozen=True)
class RayOutput:
    """Output of rendered rays. If a ray meets nothing, depth and z-variance are 0 and the color is the background.

    Args:
        color: `(n_rays, 3)` RGB in [0, 1], including the background.
        opacity: `(n_rays,)` sum of the weights.
        depth: `(n_rays,)` mu_z, distance along the ray, world units (equation 6).
        z_variance: `(n_rays,)` (equation 7).
        z_entropy: `(n_rays,)` in nats; 0 unless `RaySampling.keep_entropy` is set.
        distortion: `(n_rays,)` world units; 0 unless `RaySampling.keep_distortion` is set.
        density: `(n_rays, n)` weights divided by the lengths of their cells, for the composited samples from near to
            far; `(n_rays, 0)` unless `RaySampling.keep_density` is set.
    """

    color: Tensor
    opacity: Tensor
    depth: Tensor
    z_variance: Tensor
    z_entropy: Tensor
    distortion: Tensor
    density: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "RayOutput":
        """Apply a function to every field."""
        return RayOutput(*(function(getattr(self, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class RaySampling:
    """Number and placement of the samples of a ray.

    Args:
        n_coarse, n_fine: Number of cells of the coarse pass, and number of samples of the fine pass.
        kernel: Smoothing kernel of the coarse weights.
        grid: Density grid that replaces the field in the coarse pass. Only fine samples are then composited.
        min_opacity: With a grid, rays whose opacity in the grid is not above this value get only the background.
        keep_density: Return the density along the rays. The density takes as much memory as the rest of the rendering.
        keep_entropy: Return the entropy of z along the rays.
        keep_distortion: Return the distortion of the rays.
    """

    n_coarse: int
    n_fine: int
    kernel: Sequence[float] = BOXCAR
    grid: DensityGrid | None = None
    min_opacity: float = 0.0
    keep_density: bool = False
    keep_entropy: bool = False
    keep_distortion: bool = False


def render_rays(
    field: RadianceField,
    rays: Rays,
    sampling: RaySampling,
    background: Tensor | None = None,
    offsets: Tensor | None = None,
) -> RayOutput:
    """Render rays.

    Args:
        field: The radiance field.
        rays: Rays with unit directions.
        sampling: See `RaySampling`.
        background: `(3,)` flat color. The default is the background network of the field.
        offsets: `(n_rays, 2)` in [0, 1), one value for each pass, see the module `sampling`. By default, sampling is
            regular. Offsets are an argument and not drawn here, so that a chunk can be rendered again with
            the same samples.
    """
    behind = field.background(rays.directions) if background is None else background.expand(len(rays), 3)
    offsets = rays.origins.new_full((len(rays), 2), 0.5) if offsets is None else offsets
    near, far = box_intersection(rays, field.bound)
    edges = stratified_edges(near, far, sampling.n_coarse, offsets[:, 0])
    if sampling.grid is None:
        return _both_passes(field, rays, edges, sampling, behind, offsets[:, 1])
    return _fine_pass(field, rays, edges, sampling, behind, offsets[:, 1])


def _both_passes(field, rays, edges, sampling, behind, offset) -> RayOutput:
    """Composite coarse and fine samples together, sorted by distance. Each point is encoded once."""
    z_coarse = 0.5 * (edges[:, 1:] + edges[:, :-1])
    density_coarse, features_coarse = _encode(field, rays, z_coarse)
    weights = weights_from_density(edges, density_coarse.detach())
    z_fine = importance_samples(edges, weights, sampling.n_fine, sampling.kernel, offset)
    density_fine, features_fine = _encode(field, rays, z_fine)
    z, order = torch.sort(torch.cat([z_coarse, z_fine], -1), dim=-1)
    density = torch.cat([density_coarse, density_fine], -1).gather(-1, order)
    features = torch.cat([features_coarse, features_fine], 1)
    features = features.gather(1, order[..., None].expand_as(features))
    return _composite(field, rays, z, density, features, behind, sampling)


def place_by_grid(
    grid: DensityGrid, rays: Rays, edges: Tensor, sampling: RaySampling, offset: Tensor, most: float
) -> tuple[Tensor, Tensor]:
    """Select the rays that are not empty in a density grid, and place their samples.

    Args:
        grid: The density grid.
        rays: Rays with unit directions.
        edges: `(n_rays, n + 1)` edges of the coarse cells.
        sampling: Provides `n_fine`, `kernel` and `min_opacity`.
        offset: `(n_rays,)`, see `importance_samples`.
        most: Upper limit of the optical depth of a coarse cell.

    Returns:
        Indices `(n_live,)` of the selected rays, and sorted distances `(n_live, n_fine)` of their samples.
    """
    z_coarse = 0.5 * (edges[:, 1:] + edges[:, :-1])
    length = edges[:, 1:] - edges[:, :-1]
    optical_depth = (grid.density(_points(rays, z_coarse)) * length).clamp(max=most)
    weights = weights_from_density(edges, optical_depth / length.clamp_min(1e-9))
    live = torch.nonzero(weights.sum(-1) > sampling.min_opacity)[:, 0]
    return live, importance_samples(edges[live], weights[live], sampling.n_fine, sampling.kernel, offset[live])


def _fine_pass(field, rays, edges, sampling, behind, offset) -> RayOutput:
    """Composite only fine samples, placed by the density grid. Rays that are empty in the grid are skipped."""
    # Limit the optical depth of a cell: a cell that a surface only touches must not take all samples of a ray.
    live, z = place_by_grid(sampling.grid, rays, edges, sampling, offset, MAX_CELL_OPTICAL_DEPTH)
    density, features = _encode(field, rays[live], z)
    rendered = _composite(field, rays[live], z, density, features, behind[live], sampling)
    nothing = torch.zeros(len(rays), device=z.device)
    return RayOutput(
        behind.index_copy(0, live, rendered.color),
        nothing.index_copy(0, live, rendered.opacity),
        nothing.index_copy(0, live, rendered.depth),
        nothing.index_copy(0, live, rendered.z_variance),
        nothing.index_copy(0, live, rendered.z_entropy),
        nothing.index_copy(0, live, rendered.distortion),
        nothing[:, None].repeat(1, rendered.density.shape[1]).index_copy(0, live, rendered.density),
    )


def _points(rays: Rays, z: Tensor) -> Tensor:
    # One pass over memory: these are the largest tensors of a step.
    return torch.addcmul(rays.origins[:, None], rays.directions[:, None], z[..., None])


def _encode(field: RadianceField, rays: Rays, z: Tensor) -> tuple[Tensor, Tensor]:
    density, features = field.encode(_points(rays, z).reshape(-1, 3))
    return density.view_as(z), features.view(*z.shape, features.shape[-1])


def _composite(field, rays, z, density, features, behind, sampling) -> RayOutput:
    edges = cells_around(z)
    weights = weights_from_density(edges, density * _visible(edges, density))
    # Compute colors of visible samples only: behind a surface and in empty space, most samples have no weight.
    visible = torch.nonzero(weights.detach() > NEGLIGIBLE_SHARE / z.shape[1], as_tuple=True)
    colors = field.color_of(features[visible], rays.directions[visible[0]])
    color = torch.zeros(*z.shape, 3, device=z.device).index_put(visible, colors)
    opacity = accumulate(weights)
    depth, z_variance = depth_moments(weights, z)
    entropy = z_entropy(weights, edges.diff()) if sampling.keep_entropy else torch.zeros_like(depth)
    distorted = distortion(weights, edges) if sampling.keep_distortion else torch.zeros_like(depth)
    kept = weights / edges.diff().clamp_min(1e-5) if sampling.keep_density else weights[:, :0]
    color = accumulate(weights, color) + (1 - opacity) * behind
    return RayOutput(color, opacity[:, 0], depth, z_variance, entropy, distorted, kept)


@torch.no_grad()
def _visible(edges: Tensor, density: Tensor) -> Tensor:
    """Return the mask `(n_rays, n)` of the samples before the end of each ray, see `SPENT_OPTICAL_DEPTH`.

    Samples behind the end have no influence on the output. Their gradients would be denormal numbers, for which a CPU
    is many times slower.
    """
    depth = torch.cumsum(density * (edges[:, 1:] - edges[:, :-1]), -1)
    return torch.cat([torch.zeros_like(depth[:, :1]), depth[:, :-1]], -1) < SPENT_OPTICAL_DEPTH
