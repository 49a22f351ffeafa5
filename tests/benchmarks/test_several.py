"""The benchmarks' own arithmetic, by hand, and short runs of those with a long one, on tiny untrained models."""

import argparse
import json
import sys

import pytest
import torch

from benchmarks import hash_grid, judge, main_job, memory, step_time, text_to_3d
from hifa.storage.checkpoint import write_atomically
from hifa.toybox import world
from hifa.toybox.models import save_prior


@pytest.fixture(scope="module")
def pipe():
    return memory.tiny_pipeline(64)


def test_main_job_runs_the_main_command(tmp_path):
    words = main_job.command(tmp_path, None, None)
    assert words == [sys.executable, "-m", "hifa", "a red mushroom", "--output-dir", str(tmp_path)]
    assert main_job.command(tmp_path, tmp_path, 5)[-4:] == ["--model", str(tmp_path), "--steps", "5"]


def test_main_job_sees_the_preview_and_the_exit_code(tmp_path):
    code = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(0.3); sys.exit(2)"
    preview = tmp_path / "preview.png"
    result = main_job.run_command([sys.executable, "-c", code, str(preview)], preview)
    assert result["exit_code"] == 2 and 0 < result["first_preview_seconds"] < result["seconds"] + 0.05
    nothing = main_job.run_command([sys.executable, "-c", ""], tmp_path / "other.png")
    assert nothing["exit_code"] == 0 and nothing["first_preview_seconds"] is None


def test_main_job_misses_absent_and_empty_files(tmp_path):
    for name in main_job.PROMISED[:-1]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "mesh.glb").write_text("")
    assert main_job.missing_files(tmp_path) == ["mesh.glb", "mesh.ply"]


def test_step_time_summary_by_hand():
    steps, bare = [0.2, 0.3, 0.5, 1.0], [[0.05, 0.02, 0.03]] * 3 + [[0.1, 0.05, 0.05]]
    result = step_time.summary(steps, bare)
    assert result["ratio"] == 4.0 and result["ratio_by_quarter"] == [2.0, 3.0, 5.0, 5.0]
    assert (result["step_ms"], result["bare_ms"]) == (400.0, 100.0)
    assert [result[f"{part}_seconds"] for part in step_time.PARTS] == [0.25, 0.11, 0.14]


def test_step_time_repeats_the_unet_calls_of_every_step(pipe):
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, inputs: calls.append((inputs[0].shape, inputs[1])))
    step_seconds, bare_seconds, unet_calls = step_time.measure(pipe, steps=2)
    handle.remove()
    assert len(step_seconds) == len(bare_seconds) == 2 and all(len(parts) == 3 for parts in bare_seconds)
    # After the warm-up: the calls of the first step twice, from t = 980 on, then those of the second twice.
    measured, starts = calls[-2 * unet_calls :], [980, 428]  # 980 - (980 - 200) * sqrt(1/2)
    for t in starts:
        half = [timestep for _, timestep in measured].index(t, 1)
        assert measured[0] == (torch.Size([3, 4, 16, 16]), t) and measured[:half] == measured[half : 2 * half]
        measured = measured[2 * half :]
    assert not measured


def test_hash_grid_prints_one_json_object(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hash_grid", "--points", "500", "--repeats", "1"])
    hash_grid.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["points"] == 500
    for name in ("fast", "large"):
        assert result[name]["ratio"] > 0 and result[name]["largest_difference"] < 1e-5


def test_memory_reads_a_status_file():
    text = "Name:\tpython\nVmHWM:\t    2000 kB\nVmRSS:\t    1000 kB\n"
    assert memory.status_megabytes(text, "VmRSS") == pytest.approx(1.024)
    assert memory.status_megabytes(text, "VmHWM") == pytest.approx(2.048)
    with pytest.raises(ValueError, match="VmPeak"):
        memory.status_megabytes(text, "VmPeak")


@pytest.mark.skipif(not memory.STATUS.exists(), reason="needs /proc")
def test_memory_measures_the_paper_preset():
    result = memory.measure(size=16, prior_size=64, steps=1)
    assert result["samples_a_ray"] == 192 and result["above_mb"] > 0
    assert result["above_mb"] == pytest.approx(result["peak_mb"] - result["baseline_mb"], abs=1)  # each is rounded


@pytest.mark.skipif(not memory.STATUS.exists(), reason="needs /proc")
def test_memory_measures_a_model_that_is_given(tiny_prior):
    result = memory.measure(size=16, prior_size=64, steps=1, model=str(tiny_prior))
    assert (result["model"], result["device"], result["prior_size"]) == (str(tiny_prior), "cpu", 32)
    assert result["peak_mb"] > result["baseline_mb"] > 0 and result["reserved_mb"] is None


def test_prompts_are_half_never_trained_and_of_distinct_kinds():
    prompts = text_to_3d.choose_prompts()
    assert prompts == text_to_3d.choose_prompts()
    assert [prompt.trained for prompt in prompts] == [True, False] * 12
    assert all(world.is_held_out(prompt.kind, prompt.color) != prompt.trained for prompt in prompts)
    assert {prompt.kind for prompt in prompts} == set(world.KINDS)
    for trained in (True, False):
        part = [prompt for prompt in prompts if prompt.trained == trained]
        assert sum(prompt.kind in world.KINDS_WITH_FRONT for prompt in part) == 6
        assert len({prompt.color for prompt in part}) >= 10
    assert text_to_3d.Prompt("ice cream", "orange", True).text == "an orange ice cream"


def verdict_of(kinds: list[str], colors: list[str], views: list[str]) -> judge.Verdict:
    names = zip((judge.KINDS, judge.COLORS, judge.VIEWS), (kinds, colors, views), strict=True)
    return judge.Verdict(*(torch.tensor([known.index(word) for word in said]) for known, said in names))


def test_asset_row_by_hand():
    views = ["front view", *["side view"] * 3, "back view", *["side view"] * 3]
    seen = text_to_3d.Views(torch.zeros(8, 3, 64, 64), opacity=0.2, z_variance=0.001)
    duck = text_to_3d.Prompt("duck", "red", True)
    good = text_to_3d.asset_row(duck, verdict_of(["duck"] * 8, ["red"] * 7 + ["pink"], views), seen, 60.0)
    assert (good["kind_right"], good["color_right"], good["both_right"]) == (8, 7, 7)
    assert good["same_kind"] and good["front_and_back"] and good["consistent"] and not good["diverged"]
    assert good["majority"] == ["duck", "red"]
    # Consistently another kind, and a face on its back; nothing to see.
    empty = text_to_3d.Views(torch.zeros(8, 3, 64, 64), opacity=float("nan"), z_variance=0.0)
    bad = text_to_3d.asset_row(duck, verdict_of(["car"] * 8, ["red"] * 8, ["front view"] * 8), empty, 80.0)
    assert bad["same_kind"] and not bad["front_and_back"] and not bad["consistent"] and bad["diverged"]
    ball = text_to_3d.Prompt("ball", "red", False)
    round_ = text_to_3d.asset_row(ball, verdict_of(["ball"] * 8, ["red"] * 8, ["side view"] * 8), seen, 70.0)
    assert round_["front_and_back"] is None and round_["consistent"]
    result = text_to_3d.summarize([good, bad, round_])
    assert result["trained"] == {
        "assets": 2, "kind": 0.5, "color": 0.9375, "kind_and_color": 0.4375, "majority": 0.5
    }  # fmt: skip
    assert result["never_trained"]["kind_and_color"] == 1.0
    assert (result["diverged"], result["same_kind"], result["front_and_back"]) == (1, 1.0, 0.5)
    assert (result["consistent"], result["seconds"]) == (round(2 / 3, 4), 70.0)


def test_ratio_of_distances_above_that_of_the_world_to_itself():
    # 0.007 lies 0.056 above -0.049, and -0.019 lies 0.030 above it.
    assert text_to_3d.ratio_above(0.007, -0.019, -0.049) == pytest.approx(56 / 30)
    assert text_to_3d.ratio_above(0.1, -0.2, -0.2) == float("inf")


def test_text_to_3d_end_to_end_and_again(pipe, tmp_path, capsys):
    save_prior(tmp_path / "prior", pipe.vae, pipe.unet, pipe.text_encoder)
    pipe.to(torch.float32)
    with torch.random.fork_rng():
        write_atomically(
            tmp_path / judge.WEIGHTS, judge.Judge().state_dict(), {"vocabulary": judge.vocabulary(), "accuracy": {}}
        )
    arguments = argparse.Namespace(
        prior=tmp_path / "prior", judge=tmp_path, output_dir=tmp_path / "out", figure=tmp_path / "sheet.png", limit=2,
        steps=1,
    )  # fmt: skip
    result = text_to_3d.run(arguments)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["prompt"] for row in rows] == [prompt.text for prompt in text_to_3d.choose_prompts()[:2]]
    assert result["trained"]["assets"] == result["never_trained"]["assets"] == 1
    assert {"kid", "kid_prior", "kid_prior_own_cameras", "kid_world", "kid_ratio"} <= result.keys()
    assert (tmp_path / "sheet.png").stat().st_size > 1000

    folder = tmp_path / "out" / rows[0]["prompt"].replace(" ", "-")
    loaded = text_to_3d.HiFAPipeline.from_pretrained(tmp_path / "prior")
    prompt, prior, made = text_to_3d.choose_prompts()[0], result["prior_weights"], folder.stat().st_ino
    text_to_3d.make_asset(loaded, prior, prompt, folder, num_inference_steps=1)
    assert folder.stat().st_ino == made
    text_to_3d.make_asset(loaded, "another prior", prompt, folder, num_inference_steps=1)
    assert text_to_3d.HiFAAsset.from_pretrained(folder).metadata["prior_weights"] == "another prior"
