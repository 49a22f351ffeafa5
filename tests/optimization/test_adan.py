"""Adan against its published update, and its state through a file."""

import pytest
import torch

from hifa.optimization.adan import Adan
from hifa.storage.checkpoint import load_optimizer_tensors, optimizer_tensors, read, write_atomically


def gradients(count: int, size: int = 5) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def published(theta: torch.Tensor, gradients: torch.Tensor, lr: float, eps: float, decay: float) -> torch.Tensor:
    """Algorithm 1 in the paper's own terms, as sums over the whole past, each divided by the sum of its weights."""
    b1, b2, b3 = 0.02, 0.08, 0.01
    changes = torch.cat([torch.zeros_like(gradients[:1]), gradients.diff(dim=0)])
    squares = (gradients + (1 - b2) * changes) ** 2
    for k in range(1, len(gradients) + 1):
        age = torch.arange(k - 1, -1, -1, dtype=torch.float64)[:, None]

        def average(values, b):
            weights = (1 - b) ** age
            return (weights * values[:k]).sum(0) / weights.sum()

        step = lr / (average(squares, b3).sqrt() + eps)
        theta = (theta - step * (average(gradients, b1) + (1 - b2) * average(changes, b2))) / (1 + decay * lr)
    return theta


@pytest.mark.parametrize("count", [1, 2, 30])
def test_steps_are_the_published_ones(count):
    start, steps = torch.linspace(-2, 3, 5, dtype=torch.float64), gradients(count)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = Adan([parameter], lr=0.1, eps=1e-3, weight_decay=0.02)
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(parameter.data, published(start, steps, 0.1, 1e-3, 0.02), rtol=1e-9, atol=1e-9)


def test_it_finds_a_minimum():
    parameter, goal = torch.nn.Parameter(torch.zeros(3)), torch.tensor([1.0, -2.0, 0.5])
    optimizer = Adan([parameter], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        ((parameter - goal) ** 2 * torch.tensor([1.0, 30.0, 0.1])).sum().backward()
        optimizer.step()
    torch.testing.assert_close(parameter.data, goal, rtol=0, atol=0.02)


def test_parameters_without_a_gradient_stay():
    kept, moved = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = Adan([kept, moved], weight_decay=0.5)
    moved.grad = torch.ones(2)
    optimizer.step()
    assert (kept == 1).all() and (moved < 1).all()


def test_its_state_goes_through_a_file_bit_for_bit(tmp_path):
    def advance(parameter, optimizer, steps):
        for gradient in steps:
            parameter.grad = gradient.clone()
            optimizer.step()

    steps = gradients(8).float()
    whole, half = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(5))
    advance(whole, Adan([whole], lr=0.1), steps)
    optimizer = Adan([half], lr=0.1)
    advance(half, optimizer, steps[:4])
    write_atomically(tmp_path / "state", optimizer_tensors(optimizer), {})
    again = torch.nn.Parameter(half.detach().clone())
    resumed = Adan([again], lr=0.1)
    load_optimizer_tensors(resumed, read(tmp_path / "state")[0])
    advance(again, resumed, steps[4:])
    assert torch.equal(whole, again)
