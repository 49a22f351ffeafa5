"""The public code's preset from a stock folder to an asset, in a process and on the command lines."""

import json

import pytest
import torch
from transformers import DPTForDepthEstimation

from hifa import HiFAConfig, HiFAPipeline, HiFARun, batch
from hifa import __main__ as cli
from tests.helpers.runs import QUICK, finish, generator


SMALL = dict(
    num_inference_steps=4, render_size=16, start_render_size=16, n_coarse=8, n_fine=6, levels=3, log2_hashmap_size=8,
    max_resolution=16, hidden_dim=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def pipe(tiny_prior, tiny_dpt):
    model = DPTForDepthEstimation.from_pretrained(tiny_dpt).eval()
    return HiFAPipeline.from_pretrained(tiny_prior, disparity_estimator=model)


def state(run: HiFARun) -> torch.Tensor:
    rows = run.optimizer.state_dict()["state"].values()
    values = [*run.radiance_field.state_dict().values(), *(value for row in rows for _, value in sorted(row.items()))]
    return torch.cat([value.detach().flatten().float() for value in values])


def test_all_its_losses_are_in_force_and_t_ends_at_300(pipe):
    run = pipe.start("a red ball", config=HiFAConfig.official(**SMALL), generator=generator())
    steps = list(pipe.advance(run))
    names = {"sds", "disparity", "z_variance", "monotonic", "z_entropy", "entropy", "loss"}
    assert set(steps[0].losses) == names
    assert [step.timestep for step in steps] == [980, 640, 499, 391]
    # The entropies and z-variance rise from 0, the disparity regression falls.
    assert steps[0].losses["z_variance"] == steps[0].losses["z_entropy"] == steps[0].losses["entropy"] == 0
    assert steps[3].losses["z_entropy"] != 0 and steps[3].losses["z_variance"] > 0
    assert run.asset().metadata["config"]["optimizer"] == "adan"


def test_a_loaded_run_goes_on_bit_for_bit(pipe, tmp_path):
    config = HiFAConfig.official(**SMALL)
    whole = finish(pipe, pipe.start("a red ball", config=config, generator=generator()))
    run = pipe.start("a red ball", config=config, generator=generator())
    list(pipe.advance(run, steps=2))
    run.save(tmp_path)
    resumed = finish(pipe, HiFARun.load(tmp_path))
    assert torch.equal(state(whole), state(resumed)) and resumed.losses == whole.losses


def test_gradients_are_scaled_down_to_the_norm(pipe):
    run = pipe.start("a red ball", config=HiFAConfig.official(**SMALL), generator=generator(), sds_weight=100.0)
    next(pipe.advance(run))
    grads = [p.grad for p in run.radiance_field.parameters() if p.grad is not None]
    assert torch.cat([g.flatten() for g in grads]).norm().item() == pytest.approx(1, rel=1e-3)


def test_in_batch_with_a_disparity_model(tiny_prior, tiny_dpt, tmp_path, capsys):
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"prompt": "a red ball"} | SMALL | {"lambda_zvar": 1.0}))
    arguments = [str(tmp_path / "jobs.jsonl"), "--output-dir", str(tmp_path), "--model", str(tiny_prior), *QUICK]
    assert batch.main([*arguments, "--preset", "official"]) == 1
    assert "lambda_disparity needs a disparity_estimator" in capsys.readouterr().err
    assert batch.main([*arguments, "--preset", "official", "--disparity-model", str(tiny_dpt)]) == 0
    run = HiFARun.load(tmp_path / "0000-a-red-ball" / "run")
    assert run.finished and run.config == HiFAConfig.official(**SMALL, lambda_zvar=1.0)


def test_a_missing_disparity_model_is_told_in_one_line(tiny_prior, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ("a red ball", "--model", str(tiny_prior), "--disparity-model", str(tmp_path / "empty"))
    assert cli.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and str(tmp_path / "empty") in error


@pytest.mark.parametrize("presets", [cli.PRESETS, batch.PRESETS])
def test_presets_of_the_command_lines_exist(presets):
    assert "official" in presets
    assert all(isinstance(getattr(HiFAConfig, name)(), HiFAConfig) for name in presets)
