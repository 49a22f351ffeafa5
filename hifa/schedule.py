"""Timestep annealing (HiFA section 4.1, equation 5) and the rates it is compared with (figure 7)."""

import math

import torch


ANNEALINGS = ("sqrt", "linear", "cosine", "random", "narrowing")
NARROWED_BY, NARROWED_TO = 0.8, 0.5  # share of the run; the upper bound from then on, of T


def annealed_timestep(
    iteration: int,
    total_iterations: int,
    t_max: int,
    t_min: int,
    annealing: str = "sqrt",
    generator: torch.Generator | None = None,
) -> int:
    """Diffusion timestep of an iteration.

    `sqrt` is equation 5, t = t_max - (t_max - t_min) sqrt(iter / total_iter); `linear` and `cosine` replace the root
    by p and (1 - cos(pi p)) / 2; `random` draws t uniformly, as DreamFusion does; `narrowing` draws it between bounds
    that fall, see `narrowing_bounds`.

    Args:
        iteration: 0 <= iteration <= total_iterations.
        total_iterations: At least 1.
        t_max, t_min: Bounds, 0 <= t_min <= t_max.
        annealing: One of `ANNEALINGS`.
        generator: For `random` and `narrowing` only, on the CPU.

    Returns:
        The timestep, rounded down.
    """
    if annealing == "random":
        share = torch.rand((), generator=generator).item()
    elif annealing == "narrowing":
        low, high = narrowing_bounds(iteration, total_iterations, t_max, t_min)
        return int(torch.randint(low, high + 1, (), generator=generator))
    else:
        progress = iteration / total_iterations
        share = {
            "sqrt": math.sqrt(progress),
            "linear": progress,
            "cosine": (1 - math.cos(math.pi * progress)) / 2,
        }[annealing]
    return int(t_max - (t_max - t_min) * share)


def narrowing_bounds(iteration: int, total_iterations: int, t_max: int, t_min: int) -> tuple[int, int]:
    """Bounds of the timesteps of MVDream's public code: both begin at `t_max`. Over the first `NARROWED_BY` of the run
    the lower one falls linearly to `t_min` and the upper one to `NARROWED_TO / 0.98` of `t_max`."""
    share = min(1.0, iteration / (NARROWED_BY * total_iterations))
    end = max(t_min, t_max * NARROWED_TO / 0.98)
    return int(t_max + share * (t_min - t_max)), int(t_max + share * (end - t_max))
