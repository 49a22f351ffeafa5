"""Disparity regression with a tiny random DPT: what it is given, what learns from it, and how it travels."""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import DPTForDepthEstimation

from hifa import HiFAPipeline
from hifa.cameras import Camera, camera_to_world, image_rays
from hifa.optimization.surface_guidance import WholeView, disparity_guidance
from hifa.priors.disparity import DisparityPrior
from hifa.rendering.rays import RayOutput
from tests.helpers.runs import TINY, finish, generator, state


WITH = replace(TINY, lambda_disparity=1.0)


@pytest.fixture(scope="module")
def model(tiny_dpt) -> DPTForDepthEstimation:
    return DPTForDepthEstimation.from_pretrained(tiny_dpt).eval()


@pytest.fixture(scope="module")
def pipe(tiny_prior, model):
    pipe = HiFAPipeline.from_pretrained(tiny_prior, disparity_estimator=model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ramp(size: int = 8) -> torch.Tensor:
    """Colors of rays, `(size * size, 3)`, brighter to the right."""
    return torch.linspace(0, 1, size).repeat(size)[:, None].expand(-1, 3)


def view(depth: torch.Tensor, color: torch.Tensor) -> WholeView:
    opacity, camera = torch.cat([torch.ones(len(depth) - 8), torch.zeros(8)]), Camera(0, 0)
    rendered = RayOutput(color, opacity, depth, *torch.zeros(3, len(depth)), torch.zeros(len(depth), 0))
    return WholeView(camera, image_rays(camera_to_world(camera), camera.fov_deg, 8), rendered, 8)


def loss(model, depth: torch.Tensor, color: torch.Tensor) -> torch.Tensor:
    shown = view(depth, color)
    return disparity_guidance(shown, DisparityPrior(model).estimate(shown.picture, 8))


def test_the_model_is_given_its_size_and_range_and_answers_in_ours(model, monkeypatch):
    inputs = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda pixels: inputs.append(pixels) or forward(pixels))
    estimate = DisparityPrior(model).estimate(view(torch.ones(64), ramp()).picture, 8)
    assert tuple(inputs[0].shape) == (1, 3, 32, 32)
    assert inputs[0].min() == pytest.approx(-1) and inputs[0].max() == pytest.approx(1)
    assert tuple(estimate.disparity.shape) == (8, 8) and estimate.disparity.std() > 0
    assert estimate.normals is None and estimate.confidence is None


def test_the_loss_is_zero_for_what_the_model_sees_and_two_for_its_inverse(model):
    predicted = DisparityPrior(model).estimate(view(torch.ones(64), ramp()).picture, 8).disparity.flatten()
    share = (predicted - predicted.min()) / (predicted.max() - predicted.min())
    assert loss(model, 1 / (0.3 + 0.2 * share), ramp()) == pytest.approx(0, abs=1e-4)
    assert loss(model, 1 / (0.5 - 0.2 * share), ramp()) == pytest.approx(2, abs=1e-4)


def test_depth_learns_and_color_does_not(model):
    depth = torch.linspace(2, 3, 64).requires_grad_()
    color = ramp().clone().requires_grad_()
    loss(model, depth, color).backward()
    assert depth.grad[:-8].abs().sum() > 0 and color.grad is None
    assert (depth.grad[-8:] == 0).all(), "rays that miss the object have no relief"


def test_its_weight_adds_a_term_to_distilled_views_only(pipe):
    run = pipe.start("a red ball", config=WITH, generator=generator())
    first = next(pipe.advance(run)).losses
    assert 0 < first["disparity"] <= 2 and "given_disparity" not in first
    twice = pipe.start("a red ball", config=WITH, generator=generator(), lambda_disparity=2.0)
    assert next(pipe.advance(twice)).losses["disparity"] == pytest.approx(2 * first["disparity"], rel=1e-5)
    without = pipe.start("a red ball", config=TINY, generator=generator())
    assert "disparity" not in next(pipe.advance(without)).losses


def test_the_field_follows_it_and_the_model_stays(pipe, model):
    before = [value.clone() for value in model.parameters()]
    config = replace(TINY, num_inference_steps=2)
    runs = [
        finish(pipe, pipe.start("a red ball", config=config, generator=generator(), lambda_disparity=weight))
        for weight in (0.0, 5.0, 5.0)
    ]
    assert torch.equal(state(runs[1]), state(runs[2])) and not torch.equal(state(runs[0]), state(runs[1]))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(value.grad is None for value in model.parameters())


def test_it_is_saved_and_loaded_and_stock_pipelines_do_not_mind(pipe, tmp_path, model):
    pipe.save_pretrained(tmp_path)
    again = HiFAPipeline.from_pretrained(tmp_path)
    theirs = again.disparity_estimator.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in model.state_dict().items())
    assert StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None).unet is not None


def test_folders_without_one_load(tiny_prior):
    assert HiFAPipeline.from_pretrained(tiny_prior).disparity_estimator is None


def test_a_weight_without_a_model_is_refused_before_work(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    with pytest.raises(ValueError, match="lambda_disparity needs a disparity_estimator"):
        pipe.start("a red ball", config=WITH)


def test_toybox_brings_its_own_when_it_is_asked_for():
    pipe = HiFAPipeline.from_pretrained()
    assert pipe.embedded and pipe.disparity_estimator is None
    run = pipe.start("a red ball", config=WITH, generator=generator())
    assert 0 < next(pipe.advance(run)).losses["disparity"] <= 2
