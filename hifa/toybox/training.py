"""What both Toybox trainers share: the learning-rate curve, the moving average, checkpoints that resume exactly."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..state import load_optimizer_tensors, optimizer_tensors, read, with_prefix, without_prefix, write_atomically


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, decay_share: float = 0.3) -> float:
    """Linear warm-up, a plateau, and a linear fall to zero over the last `decay_share` of the run."""
    rise = min(1.0, (step + 1) / warmup)
    fall = min(1.0, (steps - step) / (decay_share * steps))
    return peak * min(rise, fall)


def batch_rng(seed: int, step: int) -> np.random.Generator:
    """Randomness of one step, a function of the step alone: a resumed run draws what the first would have drawn."""
    return np.random.default_rng([seed, step])


class Average:
    """Exponential moving average of a module's parameters, started softly."""

    def __init__(self, module: nn.Module, decay: float = 0.999):
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)


def save_checkpoint(
    path: Path, step: int, module: nn.Module, average: Average, optimizer: torch.optim.Optimizer
) -> None:
    tensors = {
        **with_prefix("module", module.state_dict()),
        **with_prefix("average", average.values),
        **with_prefix("optimizer", optimizer_tensors(optimizer)),
    }
    write_atomically(path, tensors, {"step": step})


def load_checkpoint(path: Path, module: nn.Module, average: Average, optimizer: torch.optim.Optimizer) -> int:
    """Restore everything; returns the number of finished steps, 0 without a checkpoint."""
    if not path.exists():
        return 0
    tensors, facts = read(path)
    module.load_state_dict(without_prefix("module", tensors))
    average.values = without_prefix("average", tensors)
    load_optimizer_tensors(optimizer, without_prefix("optimizer", tensors))
    return facts["step"]
