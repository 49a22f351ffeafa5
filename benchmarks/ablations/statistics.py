"""Means over prompts and seeds, with bootstrap confidence intervals (Efron 1979)."""

from typing import NamedTuple

import numpy as np


RESAMPLES, LEVEL = 10_000, 0.95


class Estimate(NamedTuple):
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def is_sure(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def bootstrap(values: np.ndarray, seed: int = 0) -> Estimate:
    """Return the mean over prompts and seeds, and its percentile interval.

    The bootstrap resamples prompts, each with all its seeds, because runs of the same prompt are correlated.

    Args:
        values: `(prompts, seeds)`. Non-finite values are ignored.
        seed: Seed of the resampling.

    Returns:
        The mean and its interval. All values are NaN if no value is finite.
    """
    counts, sums = np.isfinite(values).sum(1), np.nansum(values, 1)  # (prompts,)
    if counts.sum() == 0:
        return Estimate(np.nan, np.nan, np.nan)
    chosen = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    totals = counts[chosen].sum(1)
    means = sums[chosen].sum(1)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high))


def difference(values: np.ndarray, reference: np.ndarray, seed: int = 0) -> Estimate:
    """Return the mean of `values - reference` and its interval. Both arrays are `(prompts, seeds)`."""
    return bootstrap(values - reference, seed)
