"""Shared code of the Toybox trainers: training loop, learning rate, moving average, checkpoints with exact resume."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ...optimization.gradient_guard import is_safe
from ...storage.checkpoint import (
    load_optimizer_tensors,
    optimizer_tensors,
    read,
    with_prefix,
    without_prefix,
    write_atomically,
)
from ...storage.layout import check_layout, layout_of, module_layout


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, decay_share: float = 0.3) -> float:
    """Return the learning rate: warm-up, plateau, and linear decay to zero over the last `decay_share` of the run."""
    rise = min(1.0, (step + 1) / warmup)
    fall = min(1.0, (steps - step) / (decay_share * steps))
    return peak * min(rise, fall)


def batch_rng(seed: int, step: int) -> np.random.Generator:
    """Return the random generator of a step.

    The state depends only on the seed and the step, so a resumed run draws the same numbers.
    """
    return np.random.default_rng([seed, step])


class Parts(nn.ModuleDict):
    """Modules by name. As the modules are of different classes, items have the type `Any`."""

    if TYPE_CHECKING:

        def __getitem__(self, key: str) -> Any: ...


class EMA:
    """Exponential moving average of a module's parameters, with a smaller decay in the first steps."""

    def __init__(self, module: nn.Module, decay: float = 0.999):
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Update the average with the current parameters of the module."""
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)


def save_checkpoint(path: Path, step: int, module: nn.Module, average: EMA, optimizer: torch.optim.Optimizer) -> None:
    """Write the module, the average and the optimizer to a checkpoint file."""
    tensors = {
        **with_prefix("module", module.state_dict()),
        **with_prefix("average", average.values),
        **with_prefix("optimizer", optimizer_tensors(optimizer)),
    }
    write_atomically(path, tensors, {"step": step})


def load_checkpoint(path: Path, module: nn.Module, average: EMA, optimizer: torch.optim.Optimizer) -> int:
    """Restore the module, the average and the optimizer from a checkpoint.

    Returns:
        The number of finished steps; 0 without a checkpoint.

    Raises:
        LayoutError: If the checkpoint belongs to another module.
    """
    if not path.exists():
        return 0
    tensors, metadata = read(path)
    for part in ("module", "average"):
        check_layout(layout_of(without_prefix(part, tensors)), module_layout(module))
    module.load_state_dict(without_prefix("module", tensors))
    average.values = without_prefix("average", tensors)
    load_optimizer_tensors(optimizer, without_prefix("optimizer", tensors))
    return metadata["step"]


MAX_SKIPPED = 10  # consecutive steps with non-finite gradients
REPORT_EVERY = 100  # steps between reports, and between checkpoints


@dataclass(frozen=True)
class Recipe:
    """Training hyperparameters.

    Args:
        steps: Total number of AdamW steps.
        peak: Learning rate between warm-up and decay.
        weight_decay: Weight decay of AdamW.
        average_decay: Decay of the moving average, which is the result of the training.
    """

    steps: int
    peak: float = 1e-3
    weight_decay: float = 1e-3
    average_decay: float = 0.998


def optimize(
    module: nn.Module,
    losses_at: Callable[[int], dict[str, torch.Tensor]],
    recipe: Recipe,
    checkpoint: Path,
    export: Callable[[EMA], None] | None = None,
    export_every: int = 500,
) -> EMA:
    """Train a module. Training resumes from the checkpoint if the file exists.

    Args:
        module: Module that is trained in place.
        losses_at: Function from the number of a step to scalars by name. The first scalar is minimized. All scalars
            are printed.
        recipe: Hyperparameters.
        checkpoint: File to resume from and to save to.
        export: Callback that is called with the average every `export_every` steps and at the end.
        export_every: Steps between calls of `export`.

    Returns:
        The moving average of the weights.

    Raises:
        ValueError: If the gradients of `MAX_SKIPPED` steps in a row are not finite.
    """
    average = EMA(module, recipe.average_decay)
    optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.99), weight_decay=recipe.weight_decay)
    start, clock, seen = load_checkpoint(checkpoint, module, average, optimizer), time.time(), []
    skipped = 0
    for step in range(start, recipe.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, recipe.steps, recipe.peak)
        losses = losses_at(step)
        optimizer.zero_grad()
        next(iter(losses.values())).backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        if is_safe(norm.item()):  # otherwise the weights and the checkpoint may become NaN
            optimizer.step()
            average.update(module, step)
            skipped = 0
        elif (skipped := skipped + 1) == MAX_SKIPPED:
            raise ValueError(
                f"The training diverged: {MAX_SKIPPED} gradients in a row were not finite, up to step {step + 1}. "
                "The last checkpoint is kept. Train with a lower learning rate."
            )
        seen.append([loss.item() for loss in losses.values()])
        done = step + 1
        if done % REPORT_EVERY == 0 or done == recipe.steps:
            save_checkpoint(checkpoint, done, module, average, optimizer)
            means = zip(losses, np.nanmean(seen[-REPORT_EVERY:], axis=0), strict=True)
            shown = ", ".join(f"{name} {mean:.4f}" for name, mean in means)
            print(f"step {done}: {shown}, {(time.time() - clock) / (done - start):.2f} s a step", flush=True)
        if export is not None and (done % export_every == 0 or done == recipe.steps):
            export(average)
    return average
