"""The density grid: cell centers, axes, interpolation, and what it remembers."""

import pytest
import torch

from hifa.rendering.density_grid import DensityGrid


def ramp(points):
    """Different along each axis, so that swapped axes show."""
    return 20 + 1 * points[:, 0] + 2 * points[:, 1] + 4 * points[:, 2]


def test_cells_hold_the_density_at_their_centers(analytic_field):
    field = analytic_field(ramp)
    grid = DensityGrid(2, 1.0)
    grid.refresh(field)
    # Centers at -0.5 and 0.5; values are indexed (z, y, x).
    assert grid.values[0, 0, 0].item() == pytest.approx(20 - 3.5)
    assert grid.values[0, 0, 1].item() == pytest.approx(20 + 0.5 - 1 - 2)
    assert grid.values[1, 0, 0].item() == pytest.approx(20 - 0.5 - 1 + 2)
    assert grid.values[1, 1, 1].item() == pytest.approx(20 + 3.5)


@pytest.mark.parametrize("bound", [1.0, 0.5, 2.0])
def test_a_linear_density_is_interpolated_exactly(bound, analytic_field):
    field = analytic_field(ramp)
    field.bound = bound
    grid = DensityGrid(8, bound)
    grid.refresh(field)
    # Between the outermost cell centers, 7/8 of the way to the faces.
    points = (2 * torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 1) * bound * 7 / 8
    torch.testing.assert_close(grid.density(points), ramp(points))
    assert grid.density(points.view(5, 10, 3)).shape == (5, 10)


@pytest.mark.parametrize(("resolution", "bound"), [(1, 1.0), (2, 0.5), (5, 1.5)])
def test_the_loop_of_a_cpu_reads_what_grid_sample_reads(resolution, bound):
    """Single precision is what the loop is for; double takes the path of every other device."""
    generator = torch.Generator().manual_seed(0)
    grid = DensityGrid(resolution, bound)
    grid.values.copy_(torch.rand(grid.values.shape, generator=generator))
    points = (torch.rand(500, 3, generator=generator) * 4 - 2) * bound  # an eighth of them inside
    faces_and_centers = torch.linspace(-bound, bound, 2 * resolution + 1)
    edges = torch.cartesian_prod(*[faces_and_centers] * 3)
    for where in (points, edges, torch.full((1, 3), 1e30), torch.empty(0, 3)):
        expected = grid.double().density(where.double())
        torch.testing.assert_close(grid.float().density(where).double(), expected, rtol=1e-5, atol=1e-6)


def test_points_that_are_no_numbers_read_nothing_beyond_the_grid():
    grid = DensityGrid(4, 1.0)
    grid.values.fill_(1.0)
    for bad in (float("nan"), float("inf"), -float("inf")):
        points = torch.full((3, 3), bad)
        points[0, 1:] = 0
        points[1, :1] = 0
        assert grid.density(points).shape == (3,)  # the process lives on


def test_nothing_outside_of_the_cube(analytic_field):
    grid = DensityGrid(4, 1.0)
    grid.refresh(analytic_field(ramp))
    outside = torch.tensor([[1.3, 0, 0], [0, -2, 0], [0, 0, 5.0], [-1.5, 1.5, 0]])
    assert (grid.density(outside) == 0).all()


def test_refresh_forgets_slowly_and_learns_at_once(analytic_field):
    grid = DensityGrid(3, 1.0)
    values = []
    for density in (10.0, 0.0, 5.0, 20.0):
        grid.refresh(analytic_field(lambda points, density=density: torch.full((len(points),), density)), decay=0.6)
        values.append(grid.values[1, 1, 1].item())
    # 10, then 0.6 * 10, then max(0.6 * 6, 5), then max(3, 20).
    assert values == pytest.approx([10, 6, 5, 20])


def test_offset_moves_the_points_within_their_cells(analytic_field):
    asked = []

    def density(points):
        asked.append(points)
        return torch.zeros(len(points))

    field, grid = analytic_field(density), DensityGrid(2, 1.0)
    grid.refresh(field)
    grid.refresh(field, offset=torch.tensor([0.0, 0.5, 0.75]))
    # Cells are of side 1: half a cell back along x, none along y, a quarter on along z.
    torch.testing.assert_close(asked[1] - asked[0], torch.tensor([[-0.5, 0.0, 0.25]]).expand(8, 3))


def test_no_gradient_reaches_the_field(analytic_field):
    scale = torch.ones((), requires_grad=True)
    grid = DensityGrid(2, 1.0)
    grid.refresh(analytic_field(lambda points: scale * torch.ones(len(points))))
    assert not grid.values.requires_grad
    assert not grid.density(torch.zeros(1, 3, requires_grad=True)).requires_grad
