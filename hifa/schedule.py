"""Timestep annealing (HiFA section 4.1, equation 5) and the rates it is compared with (figure 7)."""

import math

import torch


ANNEALINGS = ("sqrt", "linear", "cosine", "random")


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
    by p and (1 - cos(pi p)) / 2; `random` draws t uniformly, as DreamFusion does.

    Args:
        iteration: 0 <= iteration <= total_iterations.
        total_iterations: At least 1.
        t_max, t_min: Bounds, 0 <= t_min <= t_max.
        annealing: One of `ANNEALINGS`.
        generator: For `random` only, on the CPU.

    Returns:
        The timestep, rounded down.
    """
    if annealing == "random":
        share = torch.rand((), generator=generator).item()
    else:
        progress = iteration / total_iterations
        share = {
            "sqrt": math.sqrt(progress),
            "linear": progress,
            "cosine": (1 - math.cos(math.pi * progress)) / 2,
        }[annealing]
    return int(t_max - (t_max - t_min) * share)
