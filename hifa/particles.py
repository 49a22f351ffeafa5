"""VSD with several particles: runs of one prompt that share one variational score.

The method is from Wang et al. 2023, "ProlificDreamer", section 3.2 and algorithm 1.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from .optimization.run import HiFARun
from .optimization.step import HiFAStep
from .priors.vsd import VariationalState


if TYPE_CHECKING:
    from .pipeline_hifa import HiFAPipeline


def advance_particles(pipe: "HiFAPipeline", runs: Sequence[HiFARun]) -> Iterator[tuple[HiFARun, HiFAStep]]:
    """Optimize runs in turn, step by step, with one shared variational score, until all runs are finished.

    The variational score models the distribution of the particles and learns from the renders of all runs. This
    function replaces the score of every run with the score of the first run. Runs that were saved after the same step
    can be loaded and passed to this function again.

    Args:
        pipe: Pipeline that started the runs.
        runs: At least two runs of one prompt with `distillation="vsd"` and different seeds.

    Yields:
        A run and its step, round by round.

    Raises:
        ValueError: If the runs are not particles of one distribution.
    """
    _check(runs)
    for run in runs[1:]:
        run.variational = runs[0].variational
    streams = [pipe.advance(run) for run in runs]
    while True:
        for run, stream in zip(runs, streams, strict=True):
            step = next(stream, None)
            if step is None:
                return
            yield run, step


def _check(runs: Sequence[HiFARun]) -> None:
    if len(set(map(id, runs))) < max(2, len(runs)):
        raise ValueError(f"Particles must be two or more runs without repetitions, got {len(runs)}.")
    states = [run.variational for run in runs if run.variational is not None]
    if len(states) < len(runs):
        raise ValueError("Particles need the score of distillation='vsd'. Start all runs with this setting.")
    first = runs[0]
    for run, state in zip(runs[1:], states[1:], strict=True):
        for name in ("prompt", "negative_prompt", "config", "step"):
            if getattr(run, name) != getattr(first, name):
                raise ValueError(
                    f"Particles must have the same prompt, settings and step, but {name} is "
                    f"{getattr(first, name)!r} in one run and {getattr(run, name)!r} in another."
                )
        if first.step and not _same(state, states[0]):
            raise ValueError(
                f"These runs have trained separate scores for {first.step} steps. Particles must be optimized "
                "together from the start."
            )


def _same(state: VariationalState, other: VariationalState) -> bool:
    ours, theirs = state.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
