"""Test reconstruction from given views: what guides the run and when, exact resume, and a shape that is found."""

import math
from dataclasses import replace

import pytest
import torch

from hifa import HiFAConfig, HiFAPipeline, HiFARun
from hifa.multiview.given_views import RING_EXTENT, read_views, ring_cameras
from hifa.optimization.distillation import make_distiller
from hifa.optimization.step import HiFAStep, draw_camera, optimization_step
from hifa.priors.latent_diffusion import LatentDiffusionPrior
from hifa.rendering.image import render_picture
from hifa.rendering.rays import RaySampling
from hifa.storage.run_folder import FILE, RunError
from tests.helpers.runs import TINY as TINY_TEXT
from tests.helpers.runs import finish, generator, state
from tests.helpers.views import disc, shades


TINY = replace(TINY_TEXT, given_rays=128, num_inference_steps=4)
GUIDED = replace(TINY, image_guidance_end=0.5)
VIEWS = shades()
AT_64 = {"render_size": 64, "start_render_size": 64, "growth_end": 0.0, "guidance_scale": 20.0}


@pytest.fixture(scope="module")
def pipe(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def start(pipe, prompt="a red ball", config=TINY, **inputs) -> HiFARun:
    return pipe.start(prompt, config=config, generator=generator(), **({"views": VIEWS} | inputs))


def test_views_guide_beside_the_prompt(pipe):
    run = start(pipe)
    step = next(pipe.advance(run))
    assert {"sds", "z_variance", "given_image", "given_mask", "given_z_variance"} < set(step.losses)
    assert step.losses["loss"] == pytest.approx(sum(step.losses.values()) - step.losses["loss"], rel=1e-5)
    assert run.note == "" and run.asset().metadata["given_views"] == 16


def test_without_a_prompt_nothing_is_distilled(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "unet", None)  # any use fails
    run = start(pipe, prompt=None)
    step = next(pipe.advance(run))
    assert set(step.losses) == {
        "given_image",
        "given_mask",
        "given_z_variance",
        "given_opacity",
        "given_entropy",
        "loss",
    }
    assert step.timestep is None and step.image is None
    assert run.embeddings is None and run.prior is None


def test_a_prompt_that_the_prior_cannot_read_leaves_reconstruction_and_says_so(pipe):
    run = start(pipe, prompt="a photo of my zebra")
    assert "reconstructed from the views only" in run.note and "'my'" in run.note
    assert run.embeddings is None and run.prompt == "a photo of my zebra"
    assert run.asset().metadata["note"] == run.note
    output = pipe("a photo of my zebra", views=VIEWS, config=TINY, num_frames=1, frame_size=8)
    assert output.runs[0].note == run.note and output.runs[0].finished


def test_the_weight_of_image_guidance_by_hand():
    config = HiFAConfig(num_inference_steps=100, image_guidance_end=0.4)
    assert [config.given_views_weight(step) for step in (0, 10, 20, 40, 41, 99)] == [1, 0.75, 0.5, 0, 0, 0]
    throughout = HiFAConfig(num_inference_steps=100)
    assert {throughout.given_views_weight(step) for step in range(100)} == {1.0}


def test_image_losses_fade(pipe):
    """At half of the guided part of the run the terms on given views weigh half; regularizers are not faded."""
    full, half = start(pipe, config=TINY), start(pipe, config=GUIDED)
    full.step = half.step = 1
    first, second = (single_step(pipe, run).losses for run in (full, half))
    assert second["given_image"] == pytest.approx(first["given_image"] / 2, rel=1e-5)
    assert second["given_mask"] == pytest.approx(first["given_mask"] / 2, rel=1e-5)
    assert second["given_z_variance"] == pytest.approx(first["given_z_variance"], rel=1e-5)


def single_step(pipe, run: HiFARun) -> HiFAStep:
    """Take one step from the current state of a run."""
    return optimization_step(run, make_distiller(run, pipe.make_prior()))


def test_after_image_guidance_no_trace_of_the_given_views_is_left(pipe, tmp_path):
    """From the same state, a run with views and one that never had any take bit for bit the same steps."""
    run = start(pipe, config=GUIDED)
    assert all("given_image" in step.losses for step in pipe.advance(run, steps=2))
    run.save(tmp_path)
    without = HiFARun.load(tmp_path)
    without.views = None
    text = pipe.start("a red ball", config=GUIDED, generator=generator())
    assert torch.equal(run.embeddings.tokens, text.embeddings.tokens)
    for run_ in (run, without):
        assert not any("given" in name for step in pipe.advance(run_) for name in step.losses)
    assert torch.equal(state(run), state(without))
    assert torch.equal(run.generator.get_state(), without.generator.get_state())


def test_after_image_guidance_the_views_are_not_even_read(pipe, monkeypatch):
    run = start(pipe, config=GUIDED)
    list(pipe.advance(run, steps=2))
    run.views = object()  # any use fails
    assert len(list(pipe.advance(run))) == 2


@pytest.mark.parametrize(
    "prompt, config", [("a red ball", TINY), ("a red ball", GUIDED), (None, TINY), ("a zebra", TINY)]
)
@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_continuing_a_loaded_run_equals_not_stopping(pipe, tmp_path, prompt, config, stop_after):
    config = replace(config, lr_end=0.1)
    whole = finish(pipe, start(pipe, prompt, config))
    run = start(pipe, prompt, config)
    list(pipe.advance(run, steps=stop_after))
    run.save(tmp_path)
    loaded = HiFARun.load(tmp_path)
    assert torch.equal(loaded.views.color, run.views.color) and torch.equal(loaded.views.mask, run.views.mask)
    assert loaded.views.cameras == run.views.cameras and loaded.prompt == prompt
    assert torch.equal(state(whole), state(finish(pipe, loaded)))
    assert loaded.losses == whole.losses


def test_a_saved_run_without_its_embeddings_is_refused(pipe, tmp_path):
    from hifa.storage.checkpoint import read, write_atomically

    start(pipe).save(tmp_path)
    tensors, metadata = read(tmp_path / FILE)
    del tensors["prompt_embeds"]
    write_atomically(tmp_path / FILE, tensors, metadata)
    with pytest.raises(RunError, match="prompt_embeds"):
        HiFARun.load(tmp_path)


def test_the_learning_rate_falls_exponentially(pipe):
    run = start(pipe, None, replace(TINY, lr_end=0.01))
    rates = []
    for _ in pipe.advance(run):
        rates.append([group["lr"] for group in run.optimizer.param_groups])
    assert rates[0] == [TINY.grid_lr, TINY.network_lr]
    assert rates[2][0] == pytest.approx(TINY.grid_lr * 0.1)


def test_latent_reconstruction_adds_its_term(pipe):
    run = start(pipe, config=replace(TINY, lambda_image_latent=1.0))
    losses = next(pipe.advance(run)).losses
    assert losses["given_latent"] > 0
    before = run.radiance_field.grid.table.grad
    assert before is not None and before.abs().sum() > 0


def test_total_variation_adds_its_term_and_fades_with_the_views(pipe):
    config = replace(TINY, lambda_tv=1.0)
    full, half = start(pipe, config=config), start(pipe, config=replace(config, image_guidance_end=0.5))
    full.step = half.step = 1
    first, second = (single_step(pipe, run).losses for run in (full, half))
    assert 0 < second["given_tv"] == pytest.approx(first["given_tv"] / 2, rel=1e-5)
    assert "given_tv" not in next(pipe.advance(start(pipe))).losses


@pytest.mark.parametrize("size", [16, 32])
def test_total_variation_weighs_the_same_whatever_the_size_of_the_views(pipe, monkeypatch, size):
    monkeypatch.setattr("hifa.optimization.reconstruction.total_variation_loss", lambda x, mask: 0 * x.sum() + 1)
    run = start(pipe, views=[disc(size=size)] * 16, config=replace(TINY, lambda_tv=4.0))
    assert run.views.size == size
    assert next(pipe.advance(run)).losses["given_tv"] == pytest.approx(4.0 * size / 128)


def test_views_serve_several_prompts(pipe):
    output = pipe(["a red ball", "a blue ball"], views=VIEWS, config=TINY, num_frames=1, frame_size=8)
    assert [len(run.views) for run in output.runs] == [16, 16]


@pytest.mark.parametrize(
    "inputs, error, words",
    [
        ({"prompt": None}, TypeError, "None"),
        ({"prompt": "", "views": VIEWS}, ValueError, "prompt is empty"),
        ({"views": VIEWS[:3]}, ValueError, "views must be 16"),
        ({"views": VIEWS, "image": disc()}, ValueError, "either image.*or views, not both"),
        ({"image": disc()}, ValueError, "image with this prior needs a model that hallucinates views"),
        (
            {"prompt": None, "views": VIEWS, "lambda_disparity": 1.0},
            ValueError,
            "lambda_disparity=1.0 needs the prior",
        ),
        (
            {"prompt": "a zebra", "views": VIEWS, "lambda_image_latent": 1.0},
            ValueError,
            "lambda_image_latent.*'zebra'",
        ),
        ({"prompt": None, "views": VIEWS, "image_guidance_end": 0.5}, ValueError, "image_guidance_end=0.5"),
        ({"prompt": "a zebra", "views": VIEWS, "image_guidance_end": 0.5}, ValueError, "'zebra'"),
        ({"views": VIEWS, "image_guidance_end": 0.0}, ValueError, "image_guidance_end"),
        ({"views": VIEWS, "output_type": "gif"}, ValueError, "gif"),
    ],
)
def test_bad_input_is_refused_before_work(pipe, inputs, error, words):
    inputs = {"prompt": "a red ball", "config": TINY} | inputs
    with pytest.raises(error, match=words):
        pipe(**inputs)


def without_normals(config: HiFAConfig) -> HiFAConfig:
    """A preset as a prior without a model of normals gets it."""
    return replace(config, lambda_normal=0.0, lambda_image_normal=0.0)


def test_default_settings_follow_the_views(pipe):
    assert pipe.default_config(views=True, prompt=False) == without_normals(HiFAConfig.reconstruction())
    assert pipe.default_config(views=True) == without_normals(HiFAConfig.guided())
    own_cells = HiFAConfig.reconstruction(max_resolution=VIEWS[0].width)
    assert start(pipe, None, config=None).config == without_normals(own_cells)
    assert start(pipe, None, config=None, max_resolution=99).config.max_resolution == 99
    assert pipe.default_config(views=True, prompt=False, image=True) == without_normals(HiFAConfig.hallucinated())
    made = start(pipe, None, config=None, hallucinated=True, num_inference_steps=1)
    own_cells = HiFAConfig.hallucinated(num_inference_steps=1, max_resolution=VIEWS[0].width)
    assert made.config == without_normals(own_cells)
    assert HiFAConfig.reconstruction().lambda_tv == 0 < HiFAConfig.hallucinated().lambda_tv
    assert HiFAConfig.reconstruction(given_size=128).max_resolution == 128
    half = HiFAConfig.guided(image_guidance_end=0.5)
    assert start(pipe, config=None, image_guidance_end=0.5).config == without_normals(half)


@pytest.mark.parametrize(
    "family, alone, beside",
    [
        ("toybox", HiFAConfig.fast(num_views=0, lambda_normal=0.0), HiFAConfig.guided(lambda_normal=0.0)),
        ("large", HiFAConfig.preview(), HiFAConfig.guided_preview()),
        ("pixels", HiFAConfig.preview(**AT_64), HiFAConfig.guided_preview(**AT_64)),
    ],
)
def test_default_settings_of_every_family(request, pipe, monkeypatch, family, alone, beside):
    if family == "large":
        monkeypatch.setattr(LatentDiffusionPrior, "image_size", 512)
    if family == "pixels":
        pipe = HiFAPipeline.from_pretrained(request.getfixturevalue("tiny_if"), variant="fp16")
    assert pipe.default_config() == pipe.default_config(image=True) == alone
    assert pipe.default_config(views=True) == pipe.default_config(views=True, image=True) == beside
    assert pipe.default_config(views=True, prompt=False) == without_normals(HiFAConfig.reconstruction())
    assert pipe.default_config(views=True, prompt=False, image=True) == without_normals(HiFAConfig.hallucinated())


@pytest.mark.parametrize("config", [HiFAConfig.guided(), HiFAConfig.guided_preview()])
def test_distillation_cameras_see_the_object_as_large_as_the_given_views_do(config):
    def half_width(camera) -> float:
        """World units that fit in half a picture, at the distance of the object."""
        return camera.radius * math.tan(math.radians(camera.fov_deg / 2))

    ring = half_width(ring_cameras(config.bound)[0])
    run = HiFARun.begin(None, replace(config, density_grid=0), generator=generator())
    seen = [half_width(draw_camera(run)) for _ in range(200)]
    assert 0.7 * ring < min(seen) and max(seen) < 1.1 * ring
    assert min(seen) > 0.5 / RING_EXTENT * config.bound, "the object's half side fits in"


def test_a_ball_is_found_from_its_views(pipe, analytic_field):
    """Sixteen views of a two-colored ball; what is seen between the cameras is the ball."""
    truth = analytic_field(
        lambda points: 200.0 * (points.norm(dim=-1) < 0.6),
        lambda points: torch.stack([0.5 + 0.4 * points[:, 1].sign(), 0 * points[:, 0] + 0.3, 0 * points[:, 0]], 1),
    )
    sampling, white = RaySampling(n_coarse=96, n_fine=32), torch.ones(3)

    def picture(field, camera) -> tuple[torch.Tensor, torch.Tensor]:
        seen = render_picture(field, camera, 32, sampling, white)
        return seen.color, seen.opacity

    cameras = ring_cameras(1.0)
    pictures = [torch.cat([c, o[..., None]], -1) for c, o in (picture(truth, camera) for camera in cameras[::2])]
    views = read_views(torch.stack(pictures), 1.0, cameras=cameras[::2])
    config = HiFAConfig.reconstruction(
        num_inference_steps=150, grid_lr=3e-2, network_lr=1e-2, lr_end=0.3, given_rays=1024,
        n_coarse=32, n_fine=16, density_grid=24, levels=4,
        max_resolution=32, log2_hashmap_size=13, hidden_dim=32, lambda_image_normal=0.0,
    )  # fmt: skip
    run = finish(pipe, pipe.start(None, views=views, config=config, seed=0))
    errors = [((picture(run.radiance_field, c)[0] - picture(truth, c)[0]) ** 2).mean() for c in cameras[1::4]]
    assert -10 * torch.stack(errors).mean().log10() > 20, "dB at cameras that were not given"
    opacity = picture(run.radiance_field, cameras[1])[1] > 0.5
    expected = picture(truth, cameras[1])[1] > 0.5
    assert (opacity & expected).sum() / (opacity | expected).sum() > 0.93
