"""How long a run will take, measured by prior and preset, and what it costs of a day on ZeroGPU."""

import gradio as gr
import pytest

from hifa.space.deploy.warm_up import warm_up
from hifa.space.jobs.models import PRIORS, ModelCache
from hifa.space.jobs.quota import BUDGETS, DAYS, gpu_seconds, left_for_last, quota_text
from hifa.space.jobs.step_times import Timings, work_key
from hifa.space.ui.run_settings import RunSettings

from .space_setup import tiny_model_cache


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
    assert "480 steps, about 48 s, as measured here" in settings.refreshed().info
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


def test_a_run_costs_its_steps_and_the_set_up_of_each_lease():
    assert gpu_seconds(100, 0.1, 4) == pytest.approx(14)
    # 52 seconds of a lease are left for work; less the set-up, 48.
    assert gpu_seconds(1000, 0.1, 4) == pytest.approx(100 + 3 * 4)


@pytest.mark.parametrize("seconds, words", [
    (20, "every daily quota"), (100, "quota of a free account (5 min 0 s), not of a visitor (2 min 0 s)"),
    (400, "quota of PRO (40 min 0 s), not of a free account"), (3000, "Resume continues it the next day"),
])  # fmt: skip
def test_it_is_said_whose_day_a_run_fits_into(seconds, words):
    assert words in quota_text(seconds)


def test_the_last_lease_has_to_be_granted_too():
    assert left_for_last(80) > 80 + 0.5 * 60


def test_presets_on_zero_gpu_have_the_steps_that_their_budget_allows(tmp_path):
    timings = Timings(tmp_path / "timings.json")
    with gr.Blocks():
        settings = RunSettings("text", "text", ModelCache("cuda", PRIORS), timings, True)
        at_home = RunSettings("text", "text", ModelCache("cuda", PRIORS), timings, False)
    assert [preset.steps for preset in at_home.presets("sd15")] == [500, 1500, 10_000]
    key = work_key("text", "sd15", {})
    for step_seconds in (None, 0.05, 0.2, 0.5):
        if step_seconds is not None:
            for _ in range(30):  # half of a figure is the last one
                timings.note(key, step_seconds, 4.0)
        quick, standard, paper = settings.presets("sd15")
        for preset, most in ((quick, 500), (standard, 1500)):
            cost, more = (gpu_seconds(steps, step_seconds or 0.25, 4.0) for steps in (preset.steps, preset.steps + 50))
            assert cost <= BUDGETS[preset.name] and (more > BUDGETS[preset.name] - 20 or preset.steps == most)
        assert paper.steps == 10_000
    assert left_for_last(BUDGETS["Quick"]) <= DAYS["a visitor"]
    assert left_for_last(BUDGETS["Standard"]) <= DAYS["a free account"]
    assert "fits into every daily quota" in settings.estimate("sd15", quick, quick.steps)
    assert settings.presets("toybox") == at_home.presets("toybox")
