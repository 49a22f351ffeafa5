"""The radiance field: what it starts as, where it is defined, saving and loading; spherical harmonics."""

import inspect
import math

import numpy as np
import pytest
import torch

from hifa import HiFAConfig
from hifa.field import RadianceField
from hifa.field.argument_ranges import FIELD_RANGES
from hifa.field.spherical_harmonics import MAX_BANDS, spherical_harmonics


SMALL = dict(levels=3, base_resolution=4, max_resolution=16, log2_hashmap_size=9, hidden_dim=16)


def directions_of(n: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def points_of(n: int, bound: float = 1.0, seed: int = 0) -> torch.Tensor:
    return (2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) - 1) * bound


def test_spherical_harmonics_are_orthonormal():
    # Gauss-Legendre in the height and equal steps of azimuth integrate polynomials of this degree exactly.
    heights, weights = np.polynomial.legendre.leggauss(8)
    azimuths = np.arange(16) * 2 * np.pi / 16
    z, a = (torch.from_numpy(v.ravel()) for v in np.meshgrid(heights, azimuths, indexing="ij"))
    rim = (1 - z**2).sqrt()
    basis = spherical_harmonics(torch.stack([rim * a.cos(), rim * a.sin(), z], -1), MAX_BANDS)
    share = torch.from_numpy(np.repeat(weights, 16)) / 32  # of the sphere's area; sums to 1
    product = 4 * math.pi * basis.T @ (share[:, None] * basis)
    torch.testing.assert_close(product, torch.eye(MAX_BANDS**2, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_spherical_harmonics_by_hand(bands):
    values = spherical_harmonics(torch.tensor([[0.0, 0.0, 1.0]]), bands)[0]
    assert values.shape == (bands**2,)
    # At the pole only the zonal harmonic of each band is left: sqrt((2 l + 1) / 4 pi).
    for band in range(bands):
        row = values[band**2 : (band + 1) ** 2]
        expected = torch.zeros(2 * band + 1)
        expected[band] = math.sqrt((2 * band + 1) / (4 * math.pi))
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-6)


def test_initial_density_is_the_blob():
    # The grid starts near zero, so the density is exp(height * exp(-r^2 / 2 radius^2) - 1).
    field = RadianceField(**SMALL, blob_density=5.0, blob_radius=0.3)
    points = torch.tensor([[0.0, 0, 0], [0.3, 0, 0], [0, -0.6, 0], [0.9, 0.9, 0.9]])
    heights = [5, 5 * math.exp(-0.5), 5 * math.exp(-2), 0]
    torch.testing.assert_close(
        field.density(points), torch.tensor([math.exp(h - 1) for h in heights]), rtol=2e-3, atol=1e-3
    )


def test_density_is_zero_outside_and_nowhere_negative():
    field = RadianceField(**SMALL, bound=0.5)
    with torch.no_grad():
        field.grid.table.normal_(generator=torch.Generator().manual_seed(0))
    inside, outside = points_of(200, 0.5), torch.tensor([[0.51, 0, 0], [0, 0, -3.0], [0.6, 0.6, 0.6]])
    assert (field.density(outside) == 0).all()
    assert (field.density(inside) > 0).all()
    assert torch.equal(field.density(inside), field.encode(inside)[0])
    assert field.density(torch.tensor([[0.5, 0.5, 0.5]])) > 0, "the face belongs to the cube"


def test_colors_are_colors():
    field, points, directions = RadianceField(**SMALL), points_of(100), directions_of(100)
    for color in (field.color(points, directions), field.background(directions)):
        assert color.shape == (100, 3) and (color > 0).all() and (color < 1).all()
    density, features = field.encode(points)
    assert density.shape == (100,) and features.shape == (100, 15)
    assert torch.equal(field.color_of(features, directions), field.color(points, directions))


def test_one_band_means_no_view_dependence():
    points = points_of(50)
    flat, glossy = RadianceField(**SMALL, view_bands=1), RadianceField(**SMALL, view_bands=4)
    assert torch.equal(flat.color(points, directions_of(50, 1)), flat.color(points, directions_of(50, 2)))
    assert not torch.equal(glossy.color(points, directions_of(50, 1)), glossy.color(points, directions_of(50, 2)))


@pytest.mark.parametrize("bands", [0, 5])
def test_bands_out_of_range_are_refused(bands):
    with pytest.raises(ValueError, match=f"view_bands must be between 1 and 4, got {bands}"):
        RadianceField(**SMALL, view_bands=bands)


def test_seed_decides_the_parameters_and_nothing_else():
    before = torch.get_rng_state()
    first, again, other = (
        RadianceField(**SMALL, seed=1),
        RadianceField(**SMALL, seed=1),
        RadianceField(**SMALL, seed=2),
    )
    assert torch.equal(torch.get_rng_state(), before), "the global random state is the user's"
    for (name, a), b, c in zip(first.state_dict().items(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, c) or (a == 0).all(), name


@pytest.mark.parametrize("changes", [{}, {"bound": 0.7, "view_bands": 2, "hidden_layers": 2, "seed": 3}])
def test_save_and_load(tmp_path, changes):
    field = RadianceField(**SMALL | changes)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    field.save_pretrained(tmp_path)
    loaded = RadianceField.from_pretrained(tmp_path)
    for name in inspect.signature(RadianceField).parameters:
        assert loaded.config[name] == field.config[name], name
    assert loaded.bound == field.bound and loaded.dtype == torch.float32
    points, directions = points_of(100, field.bound), directions_of(100)
    assert torch.equal(loaded.density(points), field.density(points))
    assert torch.equal(loaded.color(points, directions), field.color(points, directions))
    assert torch.equal(loaded.background(directions), field.background(directions))


def test_parameter_groups_have_every_parameter_once():
    field = RadianceField(**SMALL)
    grid, networks = field.parameter_groups(1e-2, 1e-3)
    assert grid["lr"] == 1e-2 and [id(p) for p in grid["params"]] == [id(field.grid.table)]
    assert networks["lr"] == 1e-3
    ids = [id(p) for group in (grid, networks) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in field.parameters())


def test_gradient_of_a_huge_density_is_bounded():
    # The density is exp(x); its gradient is exp(x) too, up to 1000. Both are finite for any x.
    field = RadianceField(**SMALL, blob_density=1000.0)
    density = field.density(torch.zeros(1, 3))
    assert density.item() == pytest.approx(math.exp(12), rel=1e-5)
    density.sum().backward()
    assert field.density_net[-1].bias.grad[0].item() == pytest.approx(1e3)
    moderate = RadianceField(**SMALL, blob_density=3.0)
    density = moderate.density(torch.zeros(1, 3))
    density.sum().backward()
    assert moderate.density_net[-1].bias.grad[0].item() == pytest.approx(density.item())


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_resolution", 2**22 - 1), ("max_resolution", 2**63), ("base_resolution", 0), ("levels", 33),
        ("log2_hashmap_size", 40), ("hidden_dim", 10**9), ("hidden_layers", -1), ("bound", float("nan")),
        ("bound", 0.0),
        ("blob_radius", float("inf")), ("levels", "3"), ("levels", 2.0), ("view_bands", True), ("seed", 2**64),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused_before_anything_is_built(name, value):
    """Resolutions of millions overflowed in the loops, which ended the process when it was rendered."""
    with pytest.raises(ValueError, match=f"^{name} must be "):
        RadianceField(**SMALL | {name: value})
    with torch.device("meta"), pytest.raises(ValueError, match=f"^{name} must be "):
        RadianceField.from_config({**SMALL, name: value})


def test_settings_and_field_have_the_same_ranges():
    for name, low, high in FIELD_RANGES:
        for value in (low - 1, high + 1):
            with pytest.raises(ValueError, match=f"{name} must be between {low} and {high}"):
                HiFAConfig(**{name: value})
            with pytest.raises(ValueError, match=f"{name} must be between {low} and {high}"):
                RadianceField(**{name: value})
    with pytest.raises(ValueError, match="max_resolution must be at least base_resolution=16, got 8"):
        RadianceField(base_resolution=16, max_resolution=8)
