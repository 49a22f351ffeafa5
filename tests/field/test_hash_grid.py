"""The hash grid: values worked by hand, compiled loops against plain torch, gradients against differences."""

import os
import subprocess
import sys

import pytest
import torch

from hifa.cli.startup import compile_ahead, is_compiled
from hifa.field import hash_grid
from hifa.field.hash_grid import HashGrid, encode_torch, implementation, level_resolutions
from tests.helpers.hash_grids import SIZES, make_points


sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: "-".join(map(str, size)))


def make_grid(size) -> HashGrid:
    grid = HashGrid(*size)
    with torch.no_grad():
        grid.table.copy_(torch.randn(grid.table.shape, generator=torch.Generator().manual_seed(0)))
    return grid


def test_level_resolutions_by_hand():
    assert level_resolutions(4, 16, 128) == [16, 32, 64, 128]
    assert level_resolutions(1, 16, 2048) == [16]
    # The growth is 4^(1/4), not an integer: 16, 22.6, 32, 45.25, 64, rounded down.
    assert level_resolutions(5, 16, 64) == [16, 22, 32, 45, 64]


@pytest.mark.parametrize("levels, base, finest", [(8, 8, 128), (16, 16, 2048), (12, 16, 512), (16, 16, 4096)])
def test_last_level_is_the_finest(levels, base, finest):
    resolutions = level_resolutions(levels, base, finest)
    assert resolutions[0] == base and resolutions[-1] == finest and resolutions == sorted(resolutions)


@pytest.mark.parametrize("device", ["loops", "torch"])
def test_trilinear_value_by_hand(device):
    # Two cells an axis, nodes at 0, 1/2, 1; the dense index is x + 3 (y + 3 z).
    grid = HashGrid(levels=1, base_resolution=2, max_resolution=2, log2_hashmap_size=5)
    with torch.no_grad():
        grid.table.zero_()
        for x in range(3):
            for y in range(3):
                for z in range(3):
                    grid.table[x + 3 * (y + 3 * z)] = torch.tensor([x + 10.0 * y + 100.0 * z, float(x * y * z)])
    points = torch.tensor([[0.25, 0.5, 0.75], [0.75, 0.75, 0.75], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, -1.0, 1.0]])
    # Scaled to the nodes: (0.5, 1, 1.5), (1.5, 1.5, 1.5), (0, 0, 0), (2, 2, 2), and clamped (2, 0, 2).
    # Second feature: a product of three linear functions is trilinear, so x y z comes out exactly.
    expected = torch.tensor([[160.5, 0.75], [166.5, 3.375], [0, 0], [222, 8], [202, 0]])
    values = grid(points) if device == "loops" else encode_torch(points, grid.table, [2], 32)
    torch.testing.assert_close(values, expected)


@pytest.mark.parametrize("device", ["loops", "torch"])
def test_hashed_node_by_hand(device):
    # 65^3 nodes in 16 entries. Node (3, 5, 7): 3 * 1 ^ 5 * 2654435761 ^ 7 * 805459861, of which the low four bits
    # are 3 ^ (5 * 1 & 15) ^ (7 * 5 & 15) = 3 ^ 5 ^ 3 = 5. Points on a node read nothing but that node.
    grid = HashGrid(levels=1, base_resolution=64, max_resolution=64, log2_hashmap_size=4)
    with torch.no_grad():
        grid.table.copy_(torch.stack([torch.arange(16.0), -torch.arange(16.0)], -1))
    point = torch.tensor([[3 / 64, 5 / 64, 7 / 64]])
    value = grid(point) if device == "loops" else encode_torch(point, grid.table, [64], 16)
    assert value.tolist() == [[5, -5]]


@pytest.mark.parametrize(
    "device, has_triton, expected",
    [
        ("cpu", True, "loops"),
        ("cpu", False, "loops"),
        ("cuda", True, "triton"),
        ("cuda", False, "torch"),
        ("mps", True, "torch"),
        ("mps", False, "torch"),
        ("meta", True, "torch"),
    ],
)
def test_choice_of_an_implementation(device, has_triton, expected):
    assert implementation(device, has_triton) == expected


def test_a_grid_on_another_device_takes_plain_torch(monkeypatch):
    """On the meta device for the choice, and on the CPU for what it gives."""
    size, points = SIZES[1], make_points()
    grid, other = make_grid(size), make_grid(size)
    other.table = torch.nn.Parameter(other.table.to("meta"))  # the resolutions are read, and stay
    encoded = other(points.to("meta"))
    assert encoded.device.type == "meta" and encoded.shape == (len(points), 8)
    monkeypatch.setattr(hash_grid, "implementation", lambda *_: "torch")
    expected = encode_torch(points, grid.table, level_resolutions(*size[:3]), 2 ** size[3])
    assert torch.equal(grid(points), expected)


@sizes
def test_loops_and_torch_agree(size):
    points = make_points()
    grid, other = make_grid(size), make_grid(size)
    values = grid(points)
    expected = encode_torch(points, other.table, other.resolutions.tolist(), other.entries)
    assert values.shape == (len(points), 2 * size[0]) == (len(points), grid.out_features)
    # Both scale a point in float32: at resolution N the position in a cell is known to N * 6e-8.
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-4)
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(2))
    (values * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(grid.table.grad, other.table.grad, rtol=1e-4, atol=1e-3)
    assert grid.table.grad.abs().max() > 0


@sizes
def test_table_gradient_against_differences_in_float64(size):
    grid, points = make_grid(size), make_points(40)
    resolutions, entries = grid.resolutions.tolist(), grid.entries
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(len(points), grid.out_features, generator=generator)
    (grid(points) * weights).sum().backward()
    exact = grid.table.detach().double()

    def value(table):
        return (encode_torch(points.double(), table, resolutions, entries) * weights.double()).sum().item()

    touched = torch.nonzero(grid.table.grad)
    for row, column in touched[torch.randperm(len(touched), generator=generator)[:6]].tolist():
        up, down = exact.clone(), exact.clone()
        up[row, column] += 0.5
        down[row, column] -= 0.5
        assert grid.table.grad[row, column].item() == pytest.approx(value(up) - value(down), rel=1e-3, abs=1e-3)


def test_interpolation_is_a_partition_of_one():
    # A table of ones encodes to ones everywhere, whatever the hash does.
    grid = HashGrid(4, 4, 200, 8)
    with torch.no_grad():
        grid.table.fill_(1)
    torch.testing.assert_close(grid(make_points()), torch.ones(len(make_points()), 8))


def test_encoding_is_continuous_across_cells():
    grid = make_grid((4, 4, 32, 10))
    x = torch.linspace(0, 1, 4001)
    values = grid(torch.stack([x, x.flip(0), 0.3 * x], -1))
    # A cell of the finest level is 125 steps wide and its nodes differ by a few units.
    assert (values[1:] - values[:-1]).abs().max() < 0.2


def test_points_outside_are_clamped():
    grid = make_grid((4, 4, 32, 10))
    points = make_points()
    assert torch.equal(grid(points), grid(points.clamp(0, 1)))


def test_two_backward_passes_agree_bit_for_bit():
    size = (8, 8, 128, 12)
    points = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    grads, threads = [], torch.get_num_threads()
    try:
        for count in (2, 1, 2):
            torch.set_num_threads(count)
            grid = make_grid(size)
            (grid(points) ** 2).sum().backward()
            grads.append(grid.table.grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(grads[0], grads[2]), "the same twice"
    assert torch.equal(grads[0], grads[1]), "the same on one thread"


def test_torch_keeps_its_threads_when_numba_starts():
    """In a process of its own, where numba has not started yet."""
    script = (
        "import numba, torch; from hifa.field.hash_grid import HashGrid\n"
        "grid = HashGrid(2, 4, 8, 8); grid.reset(None); grid(torch.rand(5, 3)).sum().backward()\n"
        "assert (torch.get_num_threads(), numba.get_num_threads()) == (1, 1)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_gradients_reach_the_table_only():
    grid = make_grid((2, 4, 8, 8))
    points = torch.rand(5, 3).requires_grad_()
    grid(points).sum().backward()
    assert points.grad is None and grid.table.grad is not None


def test_no_points():
    grid = make_grid((2, 4, 8, 8))
    values = grid(torch.zeros(0, 3))
    values.sum().backward()
    assert values.shape == (0, 4) and (grid.table.grad == 0).all()


def test_points_need_not_be_contiguous():
    grid, points = make_grid((2, 4, 8, 8)), make_points()
    strided = points.T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(grid(strided), grid(points))


def test_reset_is_small_and_seeded():
    grid, other = HashGrid(2, 4, 8, 8), HashGrid(2, 4, 8, 8)
    grid.reset(torch.Generator().manual_seed(5))
    other.reset(torch.Generator().manual_seed(5))
    assert torch.equal(grid.table, other.table)
    assert 0.9e-4 < grid.table.abs().max() <= 1e-4 and grid.table.mean().abs() < 1e-5


def test_loops_compiled_ahead_are_those_that_the_grids_use(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert not is_compiled()
    process = compile_ahead()
    assert process.wait(120) == 0 and is_compiled() and compile_ahead() is None
    script = """if True:
        import torch
        from hifa.field import hash_grid_cpu
        from hifa.field.hash_grid import HashGrid
        from hifa.rendering import density_grid_cpu
        from hifa.rendering.density_grid import DensityGrid
        HashGrid(2, 4, 8, 10)(torch.rand(5, 3)).sum().backward()
        DensityGrid(4, 1.0).density(torch.rand(5, 2, 3))
        from hifa.export import bake_texture, extract_mesh
        from hifa.export.decimate_cpu import collapse
        from hifa.export.opacity_cpu import sweep
        from hifa.export.texture_cpu import rasterize
        gray = lambda points, directions: torch.full((len(points), 3), 0.5)
        ball = lambda points: 60 * torch.sigmoid((0.5 - points.norm(dim=1)) / 0.01)
        bake_texture(extract_mesh(ball, gray, 1.0, resolution=16, max_faces=100), gray, 32)
        loops = hash_grid_cpu.encode_forward, hash_grid_cpu.encode_backward, density_grid_cpu.look_up
        loops += collapse, sweep, rasterize
        for loop in loops:
            assert sum(loop.stats.cache_hits.values()) == 1 and not loop.stats.cache_misses, loop.stats
    """
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ, timeout=120)
