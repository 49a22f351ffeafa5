"""The model cache: nobody waits for the download of another, failures are remembered for a while and said."""

import threading
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
import torch

import app
from hifa.space.jobs.models import PRIORS, ModelCache, Preset
from hifa.space.jobs.run_store import RunStore
from hifa.space.jobs.step_times import Timings
from hifa.space.ui.requests import Actions
from hifa.space.ui.run_settings import RunSettings, about
from tests.helpers.space import BallPipeline, tiny_model_cache, tiny_pipeline


class Loads:
    """Loads the tiny prior; the other one waits until it is told to go on, and then cannot be loaded."""

    def __init__(self):
        self.calls, self.begun, self.go_on = [], threading.Event(), threading.Event()

    def __call__(self, model, **options):
        self.calls.append(model)
        if not isinstance(model, Path):
            self.begun.set()
            assert self.go_on.wait(60)
            raise OSError(f"{model} is not on this disk")
        return BallPipeline.from_pretrained(model, **options)


@pytest.fixture
def model_cache(tiny_prior):
    model_cache = tiny_model_cache(tiny_prior)
    model_cache._load = Loads()
    return model_cache


def test_a_slow_download_keeps_nobody_from_another_prior(model_cache):
    slow = threading.Thread(target=model_cache.get_or_fall_back, args=("lost",))
    slow.start()
    assert model_cache._load.begun.wait(60)
    try:
        key, _, notice = model_cache.get_or_fall_back("toybox")
        assert key == "toybox" and not notice and slow.is_alive()
    finally:
        model_cache._load.go_on.set()
        slow.join(60)


def test_a_failure_is_remembered_for_a_while(model_cache):
    model_cache._load.go_on.set()
    notices = [model_cache.get_or_fall_back("lost")[2] for _ in range(3)]
    assert model_cache._load.calls.count("no/where") == 1
    assert len(set(notices)) == 1 and "Lost prior cannot be loaded: no/where is not on this disk" in notices[0]
    model_cache.forget_failures = 0.0
    model_cache.get_or_fall_back("lost")
    assert model_cache._load.calls.count("no/where") == 2


def test_where_another_prior_has_to_do_its_own_presets_count(model_cache, tmp_path):
    model_cache._load.go_on.set()
    large = (Preset("Quick", 500, {"render_size": 96}), Preset("Standard", 1500), Preset("Paper", 9000))
    model_cache.priors["lost"] = replace(model_cache.priors["lost"], presets=large)
    with gr.Blocks():
        settings = RunSettings("text", "text", model_cache, Timings(tmp_path / "timings.json"), False)
    assert settings.settings_of("lost", "Quick", 500, "50", "") == {"num_inference_steps": 20}
    assert settings.settings_of("lost", "Paper", 9000, "", "0.5") == {"num_inference_steps": 40}
    assert settings.settings_of("lost", "Standard", 33, "", "") == {"num_inference_steps": 33}, "what was typed"
    kept = settings.settings_of("toybox", "Quick", 20, "50", "")
    assert kept == {"num_inference_steps": 20, "guidance_scale": 50.0}


def test_a_prompt_that_only_the_other_prior_could_read_is_refused_with_the_reason(model_cache, tmp_path):
    model_cache._load.go_on.set()
    actions = Actions(RunStore(tmp_path), model_cache, 1)
    with pytest.raises(ValueError, match="Lost prior cannot be loaded.*does not know the word 'astronaut'"):
        actions.text("an astronaut", "", "lost", 0, False, {})


def test_the_multi_view_model_can_be_another_one(tmp_path, monkeypatch):
    assert app.multiview_options(torch.device("cpu")) == {}
    tiny_pipeline().save_pretrained(tmp_path)
    monkeypatch.setenv("HIFA_MULTIVIEW", str(tmp_path))
    options = app.multiview_options(torch.device("cpu"))
    assert options["view_steps"] == 50 and options["load_multiview"]().image_size == tiny_pipeline().image_size


def test_a_default_that_cannot_be_loaded_is_no_default_and_this_is_said(model_cache, tmp_path):
    model_cache.priors["lost"] = replace(model_cache.priors["lost"], needs_gpu=True)
    model_cache.get("toybox")
    model_cache.device = type(model_cache.device)("cuda")
    assert model_cache.default.key == "lost"
    model_cache._load.go_on.set()
    assert model_cache.notice() == "", "nobody asked for it yet"
    *_, notice = model_cache.get_or_fall_back(model_cache.default.key)
    assert model_cache.default.key == "toybox" and model_cache.notice() == notice != ""
    assert "cannot be loaded now: no/where is not on this disk" in about(model_cache, model_cache.priors["lost"])
    demo = app.build_demo(tmp_path, model_cache, tiny_pipeline)
    chosen = next(block for block in demo.blocks.values() if getattr(block, "elem_id", "") == "text-prior")
    assert chosen.value == "toybox"
    (tell,) = [fn.fn for fn in demo.fns.values() if getattr(fn.fn, "__name__", "") == "tell_notice"]
    said = tell()
    assert said.value == notice and said.visible
    model_cache._loaded["lost"] = model_cache.get("toybox")  # somebody asked again, and it could be
    assert not tell().visible


def test_a_prior_that_takes_time_to_load_is_told_of_and_one_that_cannot_be_loaded_is_not(tiny_prior):
    model_cache = tiny_model_cache(tiny_prior)
    key = model_cache.fallback.key
    assert "Loading" in model_cache.loading_notice(key)
    model_cache.get(key)
    assert model_cache.loading_notice(key) == model_cache.loading_notice("unknown") == ""
    on_cpu, on_gpu = ModelCache("cpu", PRIORS), ModelCache("meta", PRIORS, load=refused)
    assert on_cpu.loading_notice("sd15") == "" and "Loading" in on_gpu.loading_notice("sd15")
    with pytest.raises(OSError):
        on_gpu.get("sd15")
    assert on_gpu.loading_notice("sd15") == "", "it failed a moment ago"


def refused(*_, **__):
    raise OSError("no such repository")
