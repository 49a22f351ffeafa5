"""Optimiser and random state as plain tensors, so that safetensors can hold them and nothing is ever unpickled."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .atomic import atomically
from .layout import MOMENTS, Spec, check_layout, layout_of, optimizer_layout


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """State of an optimiser, flat: `"3.exp_avg"` is the first moment of its parameter number 3."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, row in state.items() for name, value in row.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; the parameters must be the same, in the same order.

    Raises:
        LayoutError: If a tensor has not the shape and type that the optimizer keeps for its parameter.
    """
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    moments = getattr(optimizer, "moments", MOMENTS)
    check_layout(
        layout_of(tensors),
        optimizer_layout((Spec(tuple(value.shape), value.dtype) for value in parameters), tensors, moments),
    )
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    state = dict(sorted(state.items()))  # as Adam itself has them
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class NotFiniteError(ValueError):
    """A tensor has an infinite value or a NaN."""


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """
    Raises:
        NotFiniteError: Naming the first tensor that is not finite.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel():
            # Extremes are NaN where a value is, and a mask of all values would take memory.
            low, high = (extreme.item() for extreme in value.detach().aminmax())
            if not math.isfinite(low) or not math.isfinite(high):
                raise NotFiniteError(f"{name} is not finite: its values are from {low:g} to {high:g}.")


def write_atomically(path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON facts into one safetensors file that is either the old or the new one, never half.

    Raises:
        NotFiniteError: If a tensor is not finite. The old file stays.
    """
    partial = path.with_name(path.name + ".partial")  # always the same: a run that is killed often leaves one at most
    contiguous = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    check_finite(contiguous)
    save_file(contiguous, partial, metadata={"facts": json.dumps(facts)})
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_text_atomically(path: Path, text: str) -> None:
    """As `write_atomically`, for text, and for several writers at once: the last one's is what stays."""
    with atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `write_atomically` wrote."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        facts = json.loads((file.metadata() or {})["facts"])
    return load_file(path), facts


def with_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}/{key}": value for key, value in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{prefix}/"): value for key, value in tensors.items() if key.startswith(f"{prefix}/")}
