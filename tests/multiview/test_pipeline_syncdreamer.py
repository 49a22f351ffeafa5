"""SyncDreamerPipeline from end to end with tiny real components."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open

from hifa.multiview import SyncDreamerPipeline, best_of_seeds, sheet, sweep_elevation
from hifa.multiview.architecture import build_scheduler
from hifa.multiview.conversion import to_published
from tests.helpers.syncdreamer import TINY, tiny_models, tiny_pipeline
from tests.helpers.views import picture


IMAGE = picture(color=(200, 60, 30, 255))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def call(pipe, seed: int = 0, **options):
    settings = {"elevation_deg": 20, "num_inference_steps": 2, "output_type": "pt"} | options
    return pipe(IMAGE, generator=torch.Generator().manual_seed(seed), **settings).images


@pytest.fixture(scope="module")
def images(pipe):
    return call(pipe)


def test_sixteen_images(pipe, images):
    assert images.shape == (16, 32, 32, 3) and images.dtype == torch.float32
    assert 0 <= images.min() and images.max() <= 1
    pil = call(pipe, output_type="pil")
    assert len(pil) == 16 and pil[0].size == (32, 32)
    np.testing.assert_array_equal(np.asarray(pil[3]), (images[3] * 255).round().byte().numpy())
    assert sheet(pil).size == (16 * 32, 32)
    np.testing.assert_array_equal(call(pipe, output_type="np"), images.numpy())
    latents = call(pipe, output_type="latent")
    assert latents.shape == (16, 4, 8, 8)
    assert torch.equal(pipe.decode_views(latents).detach(), images)


def test_tuple_output(pipe, images):
    (again,) = call_tuple = pipe(
        IMAGE, 20, 2, generator=torch.Generator().manual_seed(0), output_type="pt", return_dict=False
    )
    assert isinstance(call_tuple, tuple) and torch.equal(again, images)


def test_the_seed_decides_and_nothing_else(pipe, images):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(call(pipe), images)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator was not used
    assert not torch.allclose(call(pipe, seed=1), images, atol=1e-3)
    first, second = (pipe(IMAGE, 20, 2, output_type="pt").images for _ in range(2))
    assert torch.equal(first, second) and torch.equal(first, images)  # without a generator: seed 0


@pytest.mark.parametrize("view_chunk", [1, 5, 16])
def test_view_chunk_changes_nothing(pipe, images, view_chunk):
    torch.testing.assert_close(call(pipe, view_chunk=view_chunk), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"elevation_deg": -5}, {"guidance_scale": 1.0}, {"eta": 0.0}, {"num_inference_steps": 3}]
)
def test_options_change_the_result(pipe, images, options):
    assert (call(pipe, **options) - images).abs().max() > 1e-3


def test_the_picture_matters(pipe, images):
    other = pipe(picture(color=(0, 90, 250, 255)), 20, 2, output_type="pt").images
    assert (other - images).abs().max() > 1e-3


def test_sampling_by_hand(pipe, monkeypatch):
    """Without a model output DDIM's update (Song et al. 2021, equations 12 and 16) has only the draws left, which come
    in upstream's order: the posterior of the picture, the start, one for each step but the last.
    """
    monkeypatch.setattr(pipe, "predict_views", lambda denoiser, latents, *rest: torch.zeros_like(latents))
    result = call(pipe, seed=7, output_type="latent")
    generator = torch.Generator().manual_seed(7)
    _, start, noise = (torch.randn(n, 4, 8, 8, generator=generator) for n in (1, 16, 16))
    alphas = build_scheduler().alphas_cumprod
    now, after, last = alphas[501], alphas[1], alphas[0]
    sigma = ((1 - after) / (1 - now) * (1 - now / after)).sqrt()
    latents = (after / now).sqrt() * start + sigma * noise
    torch.testing.assert_close(result, (last / after).sqrt() * latents)


def test_callback(pipe):
    steps = []

    def zero(pipe, step, timestep, tensors):
        steps.append((step, timestep, pipe.num_timesteps, tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = call(pipe, output_type="latent", callback_on_step_end=zero)
    assert steps == [(0, 501, 2, (16, 4, 8, 8)), (1, 1, 2, (16, 4, 8, 8))]
    assert not latents.any()


def test_interrupt(pipe):
    seen = []

    def stop(pipe, step, timestep, tensors):
        seen.append(step)
        pipe._interrupt = True

    assert call(pipe, num_inference_steps=5, callback_on_step_end=stop).shape == (16, 32, 32, 3)
    assert seen == [0] and pipe.interrupt
    call(pipe)
    assert not pipe.interrupt


def test_save_and_load(pipe, images, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "SyncDreamerPipeline"
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".bin", ".ckpt", ".pt", ".pkl")]
    with safe_open(tmp_path / "volume" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert "spatial_net.conv_in.weight" in file.keys()
    loaded = SyncDreamerPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.ring == pipe.ring
    assert torch.equal(call(loaded), images)
    half = SyncDreamerPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {model.dtype for model in half.components.values() if hasattr(model, "dtype")} == {torch.bfloat16}


def test_hub_id_is_downloaded_first(pipe, tmp_path, monkeypatch):
    """Diffusers refuses classes from outside of it in a repository, but not in a folder."""
    asked = []

    def download(repo, **options):
        asked.append((repo, options["revision"]))
        return str(tmp_path)

    pipe.save_pretrained(tmp_path)
    monkeypatch.setattr("hifa.multiview.pipeline_syncdreamer.snapshot_download", download)
    assert SyncDreamerPipeline.from_pretrained("me/views", revision="v1").image_size == 32
    assert asked == [("me/views", "v1")]


def test_from_single_file(pipe, images, tmp_path, monkeypatch):
    path = tmp_path / "published.ckpt"
    torch.save({"state_dict": to_published(tiny_models())}, path)
    loaded = SyncDreamerPipeline.from_single_file(path, architecture=TINY)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(call(loaded), images)
    loaded.save_pretrained(tmp_path / "folder")  # no shared memory among the weights
    asked = []

    def download(repo, file, **options):
        asked.append((repo, file, options))
        return path

    monkeypatch.setattr("hifa.multiview.checkpoint.hf_hub_download", download)
    half = SyncDreamerPipeline.from_single_file(
        "spaces/me/my-space/ckpt/a.ckpt", architecture=TINY, dtype=torch.bfloat16, revision="v1"
    )
    assert asked == [("me/my-space", "ckpt/a.ckpt", {"repo_type": "space", "revision": "v1"})]
    assert half.unet.dtype == half.volume.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="'weights.ckpt' is neither a file nor owner/name"):
        SyncDreamerPipeline.from_single_file("weights.ckpt")


def test_half_precision_and_offload():
    pipe = tiny_pipeline().to(torch.bfloat16)
    assert call(pipe).isfinite().all()
    pipe = tiny_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(call(pipe), call(tiny_pipeline()))


def test_hooks_are_gone_after_a_failure(pipe, images):
    def fail(*args):
        raise RuntimeError("by hand")

    with pytest.raises(RuntimeError, match="by hand"):
        call(pipe, callback_on_step_end=fail)
    assert not any(module._forward_hooks for module in pipe.unet.modules())
    assert torch.equal(call(pipe), images)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"elevation_deg": 120}, "elevation_deg must be from -90 to 90, got 120"),
        ({"elevation_deg": float("nan")}, "elevation_deg must be from -90 to 90, got nan"),
        ({"elevation_deg": None}, "elevation_deg must be from -90 to 90, got None"),
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer from 1 to 999, got 0"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be an integer from 1 to 999, got 2.5"),
        ({"guidance_scale": -1}, "guidance_scale must be >= 0, got -1"),
        ({"eta": 1.5}, "eta must be from 0 to 1, got 1.5"),
        ({"view_chunk": 0}, "view_chunk must be an integer >= 1, got 0"),
        ({"output_type": "mesh"}, "output_type must be one of pil, np, pt, latent, got 'mesh'"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, r"may be \['latents'\], got \['x'\]"),
        ({"crop_size": 200}, "crop_size must be from 1 to 32 pixels, got 200"),
    ],
)
def test_bad_options(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        call(pipe, **options)


def test_bad_generator_and_image(pipe):
    with pytest.raises(TypeError, match="generator must be a torch.Generator, got int"):
        pipe(IMAGE, 20, generator=3)
    with pytest.raises(ValueError, match="remove its background"):
        pipe(PIL.Image.new("RGB", (8, 8)), 20)


def test_parts_of_different_models_are_refused():
    models = tiny_models()
    models["volume"].register_to_config(latent_size=16)
    with pytest.raises(ValueError, match="unet.sample_size is 8, but volume.latent_size is 16"):
        SyncDreamerPipeline(**models, scheduler=build_scheduler())


def test_choosing_a_seed_and_an_elevation(pipe):
    candidates = best_of_seeds(pipe, IMAGE, 20, seeds=[0, 1], num_inference_steps=1)
    assert sorted(c.seed for c in candidates) == [0, 1]
    assert candidates[0].score >= candidates[1].score
    assert torch.equal(candidates[0].images, call(pipe, seed=candidates[0].seed, num_inference_steps=1))
    swept = sweep_elevation(pipe, IMAGE, [0.0, 40.0], num_inference_steps=1, crop_size=24)
    assert sorted(c.elevation_deg for c in swept) == [0.0, 40.0]
    assert all(0 <= c.score <= 1 for c in swept)
