"""Several particles: runs of one prompt that share what VSD learns of their renders (Wang et al. 2023,
"ProlificDreamer", section 3.2 and algorithm 1)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from .optimisation import HiFAStep
from .run import HiFARun


if TYPE_CHECKING:
    from .pipeline_hifa import HiFAPipeline


def advance_particles(pipe: "HiFAPipeline", runs: Sequence[HiFARun]) -> Iterator[tuple[HiFARun, HiFAStep]]:
    """Optimise runs in turns, each against the score of all of them, until all are finished.

    The variational score stands for the distribution of the particles, and learns from the renders of every one. It
    is one object for all runs from here on. Saved after a whole round, that is all at the same step, they can be
    loaded and given to this function again.

    Args:
        pipe: That started the runs.
        runs: Of one prompt and of the method `vsd`, with seeds of their own.

    Yields:
        A run and its step, round after round.

    Raises:
        ValueError: If they are not particles of one distribution.
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
        raise ValueError(f"Particles are two runs or more, each once; got {len(runs)}.")
    if any(run.variational is None for run in runs):
        raise ValueError("Particles share what distillation='vsd' learns: start the runs with it.")
    first = runs[0]
    for run in runs[1:]:
        for name in ("prompt", "negative_prompt", "config", "step"):
            if getattr(run, name) != getattr(first, name):
                raise ValueError(
                    f"Particles are of one prompt, with the same settings and at the same step: {name} is "
                    f"{getattr(first, name)!r} here and {getattr(run, name)!r} there."
                )
        if first.step and not _same(run, first):
            raise ValueError(
                f"These runs have learnt their scores apart, and have {first.step} steps behind them. Particles are "
                "optimised together from the start."
            )


def _same(run: HiFARun, other: HiFARun) -> bool:
    ours, theirs = run.variational.tensors(), other.variational.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
