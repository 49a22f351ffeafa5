"""How long a run will take, measured by prior and preset, and what it costs of a day on ZeroGPU."""

import gradio as gr
import pytest

from hifa.space.deploy.warm_up import warm_up
from hifa.space.jobs.models import PRIORS, ModelCache
from hifa.space.jobs.step_times import ShareClock, Timings, work_key
from hifa.space.ui.run_settings import RunSettings
from tests.helpers.space import tiny_model_cache


def test_presets_of_one_prior_are_measured_apart(tmp_path):
    timings = Timings(tmp_path / "timings.json")
    quick, standard, paper = PRIORS[1].presets
    keys = {
        name: work_key("text", "sd15", p.settings) for name, p in zip("qsp", (quick, standard, paper), strict=True)
    }
    assert keys["q"] == keys["s"] != keys["p"]
    timings.note(keys["q"], 0.2, 3.0)
    timings.note(keys["p"], 2.0, 5.0)
    timings.note(keys["q"], 0.4, 5.0)
    assert timings.get(keys["q"]) == pytest.approx(0.3) and timings.setup(keys["q"]) == pytest.approx(4.0)
    assert timings.get(keys["p"]) == 2.0 and timings.get(work_key("image", "", {})) is None


def test_an_estimate_follows_what_is_measured_after_the_page_was_built(tmp_path):
    timings = Timings(tmp_path / "timings.json")
    with gr.Blocks():
        settings = RunSettings("text", "text", ModelCache("cpu", PRIORS), timings, False)
    assert "known after the first run" in settings.preset.info
    timings.note(work_key("text", "toybox", {"num_inference_steps": 480, "guidance_scale": 20.0}), 0.1, 1.0)
    assert "360 steps, about 36 s, as measured here" in settings.refreshed().info
    assert "128 steps, about 13 s" in settings.refreshed("toybox", "Quick", 128).info
    assert "known after the first run" in settings.refreshed("sd15", "Paper", 10_000).info


def test_warming_up_tells_the_first_visitor_how_long_a_run_takes(tmp_path, tiny_prior, light_files):
    model_cache, timings = tiny_model_cache(tiny_prior), Timings(tmp_path / "timings.json")
    toybox = model_cache.fallback
    warm_up(toybox, model_cache.get(toybox.key), timings)
    key = work_key("text", toybox.key, {})
    assert 1e-3 < timings.get(key) < 10
    with gr.Blocks():
        settings = RunSettings("text", "text", model_cache, timings, False)
        others = [RunSettings(kind, kind, model_cache, timings, False) for kind in ("image", "hallucination")]
    assert "40 steps, about" in settings.preset.info
    assert all("as measured here" in other.preset.info for other in others)
    timings.note(key, 20.0, 1.0)
    assert timings.get(key) == 20.0, "what a run took counts, not its mean with a guess"
    warm_up(toybox, model_cache.get(toybox.key), timings)
    assert timings.get(key) == 20.0


def test_on_zero_gpu_the_quota_is_mentioned_for_priors_on_a_gpu(tmp_path):
    timings = Timings(tmp_path / "timings.json")
    with gr.Blocks():
        settings = RunSettings("text", "text", ModelCache("cuda", PRIORS), timings, True)
    texts = [settings.estimate(key, settings.presets(key)[0], 100) for key in ("sd15", "toybox")]
    assert "daily GPU quota" in texts[0] and "quota" not in texts[1]


def test_the_remaining_time_of_an_export_by_hand():
    times = iter([100.0, 103.0, 103.0, 108.0])
    clock = ShareClock(lambda: next(times))
    assert clock.left_text(0.05) == ""  # too early for an estimate
    assert clock.left_text(0.25) == ", about 9 s left"
    assert clock.left_text(0.3) == ", about 7 s left"
    assert clock.left_text(0.99) == ""
