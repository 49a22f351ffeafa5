"""A finished field rendered for looking at, against every sample of it rendered as in training."""

import pytest
import torch

from hifa.cameras import Camera, camera_to_world, image_rays
from hifa.field import RadianceField
from hifa.rendering.density_grid import DensityGrid
from hifa.rendering.image import render_picture
from hifa.rendering.rays import RaySampling, place_by_grid
from hifa.rendering.sampling import stratified_edges
from hifa.rendering.viewing import MAX_CELL_OPTICAL_DEPTH, MIN_OPACITY, Viewer


CAMERA, GRAY = Camera(30, 20), torch.tensor([0.2, 0.4, 0.6])


class Bumps(RadianceField):
    """A hard body with a rough surface, colored by its features; counts the points that it is asked about."""

    asked = 0

    def encode(self, points):
        self.asked += len(points)
        wave = 0.05 * torch.sin(9 * points).prod(-1)
        density = 150 * torch.sigmoid((0.5 + wave - points.norm(dim=-1)) / 0.01)
        return density, torch.cat([points, torch.zeros(len(points), 12)], -1)

    def color_of(self, features, directions):
        return 0.5 + 0.5 * torch.sin(4 * features[:, :3])


@pytest.fixture
def bumps():
    return Bumps(levels=1, base_resolution=2, max_resolution=2, log2_hashmap_size=4)


def psnr(first, second):
    return -10 * ((first - second) ** 2).mean().log10().item()


def test_pictures_agree_with_many_samples_of_the_field(bumps):
    truth = render_picture(bumps, CAMERA, 64, RaySampling(256, 128), GRAY)
    seen = Viewer(bumps).picture(CAMERA, 64, GRAY)
    assert psnr(seen.color, truth.color) > 38
    opaque = truth.opacity > 0.9
    assert (seen.depth - truth.depth)[opaque].abs().mean() < 0.005
    agree = (seen.normals * truth.normals).sum(-1)[opaque]
    assert torch.rad2deg(torch.acos(agree.clamp(-1, 1))).mean() < 5
    assert (seen.depth[truth.opacity == 0] == 0).all()


def test_few_points_are_asked_about(bumps):
    """Nothing in empty space and little behind the surface; normals cost nothing."""
    viewer = Viewer(bumps)
    bumps.asked = 0
    picture = viewer.picture(CAMERA, 64, GRAY)
    covered = (picture.opacity > 0.01).sum().item()
    assert 0 < bumps.asked < 14 * covered
    picture.normals  # noqa: B018
    assert bumps.asked < 14 * covered


def test_an_empty_field_shows_the_background(bumps):
    bumps.encode = lambda points: (torch.zeros(len(points)), torch.zeros(len(points), 15))
    picture = Viewer(bumps).picture(CAMERA, 16, GRAY)
    torch.testing.assert_close(picture.color, GRAY.expand(16, 16, 3))
    assert not picture.opacity.any() and not picture.depth.any() and not picture.normals.any()


def test_the_learned_background(bumps):
    rays = image_rays(camera_to_world(CAMERA), CAMERA.fov_deg, 16)
    seen = Viewer(bumps).picture(CAMERA, 16)
    behind = bumps.background(rays.directions).view(16, 16, 3)
    torch.testing.assert_close(seen.color[0, 0], behind[0, 0])


@pytest.mark.parametrize("cells, samples", [(48, 16), (5, 3), (1, 4), (2, 1)])
def test_the_loop_of_a_cpu_places_samples_as_torch_does(bumps, cells, samples):
    rays = image_rays(camera_to_world(CAMERA), CAMERA.fov_deg, 24)
    viewer = Viewer(bumps, cells, samples)
    live, z = viewer._place(rays)
    edges = stratified_edges(*viewer._ends(rays), cells)
    sampling = RaySampling(cells, samples, grid=viewer.grid, min_opacity=MIN_OPACITY)
    offset = torch.full((len(rays),), 0.5)
    expected_live, expected = place_by_grid(viewer.grid, rays, edges, sampling, offset, MAX_CELL_OPTICAL_DEPTH)
    assert torch.equal(live, expected_live)
    assert (z.diff(dim=-1) >= 0).all()
    # Rounding moves samples that fall into the nearly weightless cells between surfaces.
    assert ((z - expected).abs() < 1e-3).float().mean() > 0.95


def test_filled_cells_are_all_that_can_hold_density():
    grid = DensityGrid(6, 1.0)
    grid.values[1, 2, 3] = 1.0
    filled = grid.filled(0.01)
    assert filled.shape == (7, 7, 7) and filled.sum() == 8
    points = 2 * torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)) - 1
    cells = (points * 3 + 3.5).long()  # in the padded grid, whose first value lies half a cell outside of the cube
    outside = ~filled[cells[:, 2], cells[:, 1], cells[:, 0]]
    assert (grid.density(points[outside]) == 0).all() and (grid.density(points[~outside]) > 0).any()
