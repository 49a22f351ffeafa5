"""Losses: values by hand, and which way their gradients flow."""

import math

import pytest
import torch

from hifa.losses import opacity_entropy_loss, opacity_loss, sds_plus_loss, z_variance_loss


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_sds_plus_by_hand():
    # Latent residuals 1, 2 and image residuals 3, 0, 1: 0.05 / 2 * (2 * 5 + 0.1 * 10).
    z, z_hat = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    x, x_hat = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    loss = sds_plus_loss(z, z_hat, x, x_hat, weight=0.05, lambda_latent=2.0, lambda_rgb=0.1)
    assert loss.item() == pytest.approx(0.025 * 11)


def test_gradient_is_equation_2():
    z, z_hat = randn(1, 4, 8, 8, seed=0).requires_grad_(), randn(1, 4, 8, 8, seed=1).requires_grad_()
    x = torch.rand(1, 3, 16, 16)
    sds_plus_loss(z, z_hat, x, None, weight=0.3, lambda_latent=1.0, lambda_rgb=0.0).backward()
    torch.testing.assert_close(z.grad, 0.3 * (z - z_hat).detach())
    assert z_hat.grad is None, "the estimate is a constant"


def test_gradient_in_image_space():
    x, x_hat = randn(1, 3, 4, 4, seed=0).requires_grad_(), randn(1, 3, 4, 4, seed=1).requires_grad_()
    sds_plus_loss(None, None, x, x_hat, weight=0.3, lambda_latent=1.0, lambda_rgb=0.1).backward()
    torch.testing.assert_close(x.grad, 0.3 * 0.1 * (x - x_hat).detach())
    assert x_hat.grad is None


def test_gradients_through_encoder_and_image_add_up():
    # E(x) = 3 x: d/dx = w (3 (3x - z_hat) + lambda_rgb (x - x_hat)).
    x = torch.tensor([2.0], requires_grad=True)
    z_hat, x_hat = torch.tensor([5.0]), torch.tensor([4.0])
    sds_plus_loss(3 * x, z_hat, x, x_hat, weight=0.5, lambda_latent=1.0, lambda_rgb=0.1).backward()
    assert x.grad.item() == pytest.approx(0.5 * (3 * 1 + 0.1 * -2))


def test_terms_that_are_off_cost_nothing():
    x = torch.ones(1, 3, 2, 2)
    assert sds_plus_loss(None, None, x, None, weight=1.0, lambda_latent=1.0, lambda_rgb=1.0).item() == 0
    z, z_hat = torch.ones(1, 4), torch.zeros(1, 4)
    assert sds_plus_loss(z, z_hat, x, 0 * x, weight=1.0, lambda_latent=0.0, lambda_rgb=0.0).item() == 0
    assert sds_plus_loss(z, z_hat, x, x, weight=0.0, lambda_latent=1.0, lambda_rgb=1.0).item() == 0


def test_nothing_to_do_at_the_estimate():
    z, x = randn(1, 4, 2, 2, seed=0), randn(1, 3, 4, 4, seed=1)
    assert sds_plus_loss(z, z.clone(), x, x.clone(), weight=1.0, lambda_latent=1.0, lambda_rgb=1.0).item() == 0


def test_z_variance_by_hand():
    variance = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    # Rays 0 and 2 are opaque; one half is not. The mean is over all four rays.
    opacity = torch.tensor([0.6, 0.4, 0.9, 0.5], requires_grad=True)
    loss = z_variance_loss(variance, opacity)
    assert loss.item() == pytest.approx((1 + 3) / 4)
    loss.backward()
    assert variance.grad.tolist() == [0.25, 0, 0.25, 0]
    assert opacity.grad is None, "opacity only selects"


def test_z_variance_of_an_empty_mask_is_zero_not_nan():
    variance = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = z_variance_loss(variance, torch.zeros(2))
    loss.backward()
    assert loss.item() == 0 and variance.grad.tolist() == [0, 0]


def test_opacity_loss_by_hand():
    assert opacity_loss(torch.tensor([0.0])).item() == pytest.approx(0.1)
    assert opacity_loss(torch.tensor([math.sqrt(0.99), 0.0])).item() == pytest.approx(0.55)


def test_entropy_by_hand():
    assert opacity_entropy_loss(torch.tensor([0.5])).item() == pytest.approx(math.log(2))
    # 1/4: (ln 4) / 4 + 3/4 ln(4/3)
    assert opacity_entropy_loss(torch.tensor([0.25])).item() == pytest.approx(math.log(4) / 4 + 0.75 * math.log(4 / 3))
    edges = torch.tensor([0.0, 1.0, 1.0 + 1e-6], requires_grad=True)
    loss = opacity_entropy_loss(edges)
    loss.backward()
    assert 0 < loss.item() < 2e-3 and torch.isfinite(edges.grad).all()


def test_entropy_pushes_away_from_one_half():
    opacity = torch.tensor([0.3, 0.7], requires_grad=True)
    opacity_entropy_loss(opacity).backward()
    assert opacity.grad[0] > 0 > opacity.grad[1], "descending makes 0.3 smaller and 0.7 larger"
