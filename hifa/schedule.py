"""Timestep annealing (HiFA section 4.1, equation 5) and the alternatives that the paper compares (figure 7)."""

import math
from typing import TYPE_CHECKING


if TYPE_CHECKING:  # options are parsed before torch is imported
    import torch

ANNEALINGS = ("sqrt", "linear", "cosine", "random", "narrowing")
NARROWED_BY, NARROWED_TO = 0.8, 0.5  # fraction of the run; final upper bound as a fraction of T for t_max = 0.98 T


def annealed_timestep(
    iteration: int,
    total_iterations: int,
    t_max: int,
    t_min: int,
    annealing: str = "sqrt",
    generator: "torch.Generator | None" = None,
) -> int:
    """Return the diffusion timestep of an iteration.

    With p = iteration / total_iterations:

    - `sqrt` is equation 5, t = t_max - (t_max - t_min) sqrt(p).
    - `linear` replaces sqrt(p) by p.
    - `cosine` replaces sqrt(p) by (1 - cos(pi p)) / 2.
    - `random` draws t uniformly, as DreamFusion does.
    - `narrowing` draws t uniformly between two falling bounds, see `narrowing_bounds`.

    Args:
        iteration: 0 <= iteration <= total_iterations.
        total_iterations: At least 1.
        t_max: Upper bound of the timestep.
        t_min: Lower bound, 0 <= t_min <= t_max.
        annealing: One of `ANNEALINGS`.
        generator: Random generator for `random` and `narrowing`, on the CPU.

    Returns:
        The timestep, rounded down.
    """
    import torch

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
    """Return the lower and the upper timestep bound of MVDream's public code.

    Both bounds start at `t_max`. Over the first `NARROWED_BY` of the run, the lower bound falls linearly to `t_min`
    and the upper bound to `NARROWED_TO / 0.98` of `t_max`, but not below `t_min`.
    """
    share = min(1.0, iteration / (NARROWED_BY * total_iterations))
    end = max(t_min, t_max * NARROWED_TO / 0.98)
    return int(t_max + share * (t_min - t_max)), int(t_max + share * (end - t_max))
