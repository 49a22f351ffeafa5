"""Losses: values by hand, and which way their gradients flow."""

import math

import pytest
import torch

from hifa.losses import (
    disparity_loss,
    image_reconstruction_loss,
    latent_reconstruction_loss,
    mask_loss,
    monotonicity_loss,
    opacity_entropy_loss,
    opacity_loss,
    sds_plus_loss,
    total_variation_loss,
    z_entropy_loss,
    z_variance_loss,
)


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


def test_monotonicity_by_hand():
    one_peak = torch.tensor([[0.0, 1.0, 3.0, 2.0, 0.5]])
    assert monotonicity_loss(one_peak) == 0
    # Falls by 1 before the peak of 4, rises by 2 behind it; six steps with those to the zeros at the ends.
    two = torch.tensor([[2.0, 1.0, 4.0, 0.0, 2.0]], requires_grad=True)
    loss = monotonicity_loss(two)
    assert loss.item() == pytest.approx(3 / 6)
    loss.backward()
    torch.testing.assert_close(two.grad, torch.tensor([[1.0, -1.0, 0.0, -1.0, 1.0]]) / 6)


def test_z_entropy_loss_by_hand():
    entropy, opacity = torch.tensor([-2.0, 3.0], requires_grad=True), torch.tensor([1.0, 0.5], requires_grad=True)
    loss = z_entropy_loss(entropy, opacity)
    loss.backward()
    assert loss.item() == pytest.approx((-2 + 1.5) / 2)
    assert entropy.grad.tolist() == [0.5, 0.25] and opacity.grad is None, "opacity only weights"


def test_image_reconstruction_by_hand():
    x = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]], requires_grad=True)
    x_view = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.5, 0.2]])
    mask = torch.tensor([1.0, 0.0])
    # Squared errors 1 and 0.09 over six values; the second pixel lies outside of the object.
    assert image_reconstruction_loss(x, x_view, mask).item() == pytest.approx(1.09 / 6)
    assert image_reconstruction_loss(x, x_view, mask, outside=0.5).item() == pytest.approx((1 + 0.045) / 6)
    loss = image_reconstruction_loss(x, x_view, mask, outside=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(1 / 6)
    assert x.grad[0, 0].item() == pytest.approx(2 / 6) and not x.grad[1].any(), "masked pixels have no gradient"


def test_mask_loss_by_hand():
    opacity = torch.tensor([1.0, 0.5], requires_grad=True)
    loss = mask_loss(opacity, torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(0.125) and opacity.grad.tolist() == [0, 0.5]


def test_latent_reconstruction_has_a_gradient_through_the_encoder_only():
    x, z_view = torch.tensor([2.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)
    latent_reconstruction_loss(3 * x, z_view).backward()
    assert x.grad.item() == pytest.approx(2 * 3 * (6 - 5)) and z_view.grad is None


def relief(seed: int = 0) -> torch.Tensor:
    return torch.rand(200, generator=torch.Generator().manual_seed(seed))


def test_disparity_is_known_up_to_a_positive_scale_and_a_shift():
    d, everywhere = relief(), torch.ones(200)
    assert disparity_loss(d, d, everywhere).item() == pytest.approx(0, abs=1e-6)
    assert disparity_loss(d, 7 * d - 3, everywhere).item() == pytest.approx(0, abs=1e-6)
    assert disparity_loss(d, relief(1), everywhere).item() == pytest.approx(1, abs=0.2)  # uncorrelated


def test_an_inverted_relief_is_the_worst_there_is():
    d, everywhere = relief().requires_grad_(), torch.ones(200)
    loss = disparity_loss(d, 1 - d.detach(), everywhere)
    assert loss.item() == pytest.approx(2, abs=1e-5)
    # A little less inverted must be better, and from there descending leads to the right relief.
    d = (relief() + 0.3 * relief(1)).requires_grad_()
    target = 1 - relief()
    for _ in range(200):
        (grad,) = torch.autograd.grad(disparity_loss(d, target, everywhere), d)
        d = (d - 5 * grad).detach().requires_grad_()
    assert disparity_loss(d, target, everywhere).item() < 0.05


def test_disparity_looks_at_the_object_only():
    d, mask = relief().requires_grad_(), torch.arange(200) < 100
    predicted = torch.where(mask, d.detach(), -d.detach())
    assert disparity_loss(d, predicted, mask).item() == pytest.approx(0, abs=1e-6)
    disparity_loss(d, relief(1), mask).backward()
    assert d.grad[:100].any() and not d.grad[100:].any()


def test_disparity_of_flat_and_empty_reliefs_is_finite():
    flat = torch.ones(10, requires_grad=True)
    loss = disparity_loss(flat, relief()[:10], torch.ones(10))
    loss.backward()
    assert loss.item() == pytest.approx(0.5) and torch.isfinite(flat.grad).all()
    assert disparity_loss(relief(), relief(1), torch.zeros(200)).item() == 0


def test_total_variation_by_hand():
    """Two pairs: one inside of the object that differs by 0.3 in one channel, one across its edge."""
    x = torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0, 1.0], [0.2, 0.5, 0.5], [0.0, 0.0, 0.0]])
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert total_variation_loss(x, mask).item() == pytest.approx((0.3 / 3 + 0) / 2)


def test_total_variation_costs_the_same_sharp_or_soft():
    sharp, soft = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 1 / 3, 2 / 3, 1.0])
    values = [
        total_variation_loss(torch.cat([row[:-1], row[1:]])[:, None].expand(-1, 3), torch.ones(6)).item()
        for row in (sharp, soft)
    ]
    assert values[0] == pytest.approx(values[1])
