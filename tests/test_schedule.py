"""Timestep annealing: end points, values by hand, and where the random one takes its numbers from."""

import pytest
import torch

from hifa.schedule import ANNEALINGS, annealed_timestep, narrowing_bounds


ANNEALED = [name for name in ANNEALINGS if name not in ("random", "narrowing")]


@pytest.mark.parametrize("annealing", ANNEALED)
@pytest.mark.parametrize("t_max, t_min, total", [(980, 20, 10_000), (980, 300, 7), (500, 500, 3), (999, 0, 1)])
def test_goes_from_t_max_down_to_t_min(annealing, t_max, t_min, total):
    timesteps = [annealed_timestep(i, total, t_max, t_min, annealing) for i in range(total + 1)]
    assert timesteps[0] == t_max and timesteps[-1] == t_min
    assert timesteps == sorted(timesteps, reverse=True)
    assert all(isinstance(t, int) for t in timesteps)


@pytest.mark.parametrize(
    "annealing, iteration, expected",
    [
        ("sqrt", 25, 500),  # 980 - 960 * sqrt(1/4)
        ("sqrt", 1, 884),  # 980 - 960 * 0.1
        ("linear", 25, 740),  # 980 - 960 / 4
        ("linear", 50, 500),
        ("cosine", 50, 500),  # 980 - 960 * (1 - cos(90 degrees)) / 2
        ("cosine", 25, 839),  # 980 - 960 * (1 - sqrt(1/2)) / 2 = 839.4
    ],
)
def test_by_hand(annealing, iteration, expected):
    # One below is allowed: the value is rounded down, and 980 - 960 * 0.1 may fall short of 884 in floating point.
    assert annealed_timestep(iteration, 100, 980, 20, annealing) in (expected, expected - 1)


def test_square_root_is_the_default_and_the_fastest_at_first():
    at = {name: annealed_timestep(10, 100, 980, 20, name) for name in ANNEALED}
    assert annealed_timestep(10, 100, 980, 20) == at["sqrt"] < at["linear"] < at["cosine"]


def test_random_is_uniform_in_the_range():
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([annealed_timestep(0, 100, 980, 20, "random", generator) for _ in range(2000)]).double()
    assert draws.min() >= 20 and draws.max() <= 980
    # Standard error of the mean: 960 / sqrt(12 * 2000) = 6.2.
    assert draws.mean().item() == pytest.approx(500, abs=20)
    assert draws.std().item() == pytest.approx(960 / 12**0.5, rel=0.05)


def test_random_uses_only_its_generator():
    before = torch.get_rng_state()
    first = [annealed_timestep(0, 100, 980, 20, "random", torch.Generator().manual_seed(s)) for s in range(5)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert [annealed_timestep(50, 100, 980, 20, "random", torch.Generator().manual_seed(s)) for s in range(5)] == first
    assert len(set(first)) > 1


@pytest.mark.parametrize("annealing", ANNEALED)
def test_the_others_draw_nothing(annealing):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    annealed_timestep(3, 10, 980, 20, annealing, generator)
    assert torch.equal(generator.get_state(), before)


def test_narrowing_draws_between_its_bounds():
    generator = torch.Generator().manual_seed(0)
    drawn = [annealed_timestep(400, 1000, 980, 20, "narrowing", generator) for _ in range(300)]
    assert narrowing_bounds(400, 1000, 980, 20) == (500, 740)
    assert 500 <= min(drawn) < 520 and 720 < max(drawn) <= 740
    assert narrowing_bounds(0, 1000, 980, 20) == (980, 980) and narrowing_bounds(999, 1000, 980, 20) == (20, 500)
    assert narrowing_bounds(999, 1000, 400, 300) == (300, 300)  # the upper bound stays above the lower one
