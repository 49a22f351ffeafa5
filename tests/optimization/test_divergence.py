"""A bad gradient costs a step one attempt, and never the run: see `hifa.optimization.gradient_guard`."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from hifa import HiFAPipeline, HiFARun
from hifa.asset import AssetError
from hifa.field import RadianceField
from hifa.optimization.gradient_guard import LARGEST_NORM, gradient_norm, is_safe
from hifa.optimization.step import ATTEMPTS, DivergedError
from hifa.rendering.density_grid import DensityGrid
from hifa.storage.checkpoint import optimizer_tensors
from hifa.storage.run_folder import FILE, RunError, read_metadata
from tests.helpers.runs import TINY, generator


@pytest.fixture(scope="module")
def pipe(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def start(pipe, **settings) -> HiFARun:
    return pipe.start("a red ball", config=TINY, generator=generator(), **settings)


def tensors(run: HiFARun) -> dict[str, torch.Tensor]:
    """Copies of all that a step may change, but for the random state."""
    values = {**run.radiance_field.state_dict(), **optimizer_tensors(run.optimizer), "grid": run.grid.values}
    if run.variational is not None:
        values |= {f"vsd/{name}": value for name, value in run.variational.tensors().items()}
        values |= {f"vsd/{name}": value for name, value in optimizer_tensors(run.variational.optimizer).items()}
    return {name: value.detach().clone() for name, value in values.items()}


def assert_finite(run: HiFARun) -> None:
    for name, value in tensors(run).items():
        assert value.isfinite().all(), name
    assert all(math.isfinite(value) for row in run.losses for value in row.values())


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class Poison:
    """Makes one entry of a parameter's gradient infinite in some of its backward passes, counted from 1."""

    def __init__(self, parameter: torch.Tensor, calls, value: float = math.inf):
        self.calls, self.value, self.count = calls, value, 0
        self.handle = parameter.register_hook(self.spoil)

    def spoil(self, gradient: torch.Tensor) -> torch.Tensor:
        self.count += 1
        if self.count not in self.calls:
            return gradient
        gradient = gradient.clone()
        gradient.view(-1)[0] = self.value
        return gradient


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 10 * LARGEST_NORM])
@pytest.mark.parametrize("settings", [{}, {"max_gradient_norm": 1.0}, {"optimizer": "adan"}])
def test_a_bad_gradient_costs_one_attempt(pipe, settings, value):
    run = start(pipe, **settings)
    Poison(run.radiance_field.grid.table, {2}, value)
    steps = list(pipe.advance(run))
    assert [(step.step, step.skipped) for step in steps] == [(1, 0), (2, 1), (3, 0)]
    assert run.skipped == 1 and run.step == len(run.losses) == 3
    assert_finite(run)


def test_the_attempts_around_it_are_as_if_it_had_not_been(pipe):
    """The next attempt has other noise, and the step before is that of a run without a bad gradient."""
    run, other = start(pipe), start(pipe)
    Poison(run.radiance_field.grid.table, {2})
    steps, others = list(pipe.advance(run)), list(pipe.advance(other))
    assert steps[0].losses == others[0].losses and steps[1].losses != others[1].losses


def test_several_in_a_row_end_the_run_in_its_last_good_state(pipe, tmp_path):
    run = start(pipe)
    list(pipe.advance(run, 1))
    run.save(tmp_path)
    good, random = tensors(run), run.generator.get_state()
    poison = Poison(run.radiance_field.grid.table, range(1, 1000))
    with pytest.raises(DivergedError, match=f"diverged at step 2: {ATTEMPTS} attempts.*gradient of norm inf.*step 1"):
        pipe.run_to_end(run, tmp_path, save_every=1)
    assert poison.count == ATTEMPTS and run.step == 1
    assert_same(tensors(run), good)
    # Saved although this step was: a continuation from the random state before would fail in the same way.
    saved = HiFARun.load(tmp_path)
    assert saved.step == 1 and saved.skipped == run.skipped == ATTEMPTS
    assert_same(tensors(saved), good)
    assert not torch.equal(saved.generator.get_state(), random)
    list(pipe.advance(saved))
    assert saved.finished
    assert_finite(saved)


def test_a_bad_gradient_of_the_variational_score_spoils_neither_state(pipe):
    run = start(pipe, distillation="vsd", guidance_scale=7.5, lora_lr=1e-2)
    list(pipe.advance(run, 1))
    good = tensors(run)
    Poison(run.variational.parameters["camera.1.bias"], range(1, ATTEMPTS + 1))
    with pytest.raises(DivergedError):
        list(pipe.advance(run))
    assert_same(tensors(run), good)
    list(pipe.advance(run))
    assert run.finished
    assert_finite(run)


def test_a_decoded_estimate_that_overflows_spoils_nothing(pipe, monkeypatch):
    """As in half precision, where inf - inf is no number."""
    run = start(pipe, lambda_rgb=1.0)
    decode, calls = pipe.vae.decode, []

    def overflowing(*arguments, **options):
        decoded = decode(*arguments, **options)
        calls.append(True)
        if len(calls) == 2:
            decoded.sample[..., 0] = math.nan  # an infinite one is clamped
        return decoded

    monkeypatch.setattr(pipe.vae, "decode", overflowing)
    steps = list(pipe.advance(run))
    assert [step.skipped for step in steps] == [0, 1, 0]
    assert_finite(run)


def test_a_step_reads_from_the_device_once_after_its_gradients(pipe):
    """`item()` waits for a GPU. Losses and norms are read by one `tolist()`."""

    class Reads(TorchDispatchMode):
        count, counting = 0, False

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            self.count += self.counting and function is torch.ops.aten._local_scalar_dense.default
            return function(*arguments, **(options or {}))

    run, reads = start(pipe), Reads()
    list(pipe.advance(run, 1))
    stream = pipe.advance(run)
    run.radiance_field.grid.table.register_post_accumulate_grad_hook(lambda _: setattr(reads, "counting", True))
    with reads:
        next(stream)
    assert reads.counting and reads.count == 0


def test_the_norm_is_that_of_all_gradients():
    first, second, third = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    first.grad, second.grad = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])
    assert gradient_norm([first, second, third]).item() == 5.0
    assert is_safe(5.0) and not is_safe(math.inf) and not is_safe(math.nan) and not is_safe(10 * LARGEST_NORM)


def test_the_count_is_saved_and_files_without_it_load(pipe, tmp_path):
    run = start(pipe)
    Poison(run.radiance_field.grid.table, {1, 2})
    list(pipe.advance(run))
    run.save(tmp_path)
    assert read_metadata(tmp_path)["skipped"] == 2 and HiFARun.load(tmp_path).skipped == 2
    metadata = read_metadata(tmp_path)
    del metadata["skipped"]
    save_file(load_file(tmp_path / FILE), tmp_path / FILE, metadata={"facts": json.dumps(metadata)})
    assert HiFARun.load(tmp_path).skipped == 0


@pytest.mark.parametrize("part", ["field", "optimizer", "grid", "prompt_embeds"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_saved(pipe, tmp_path, part, value):
    run = start(pipe)
    list(pipe.advance(run, 1))
    run.save(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    spoilt = {
        "field": run.radiance_field.grid.table.data,
        "optimizer": run.optimizer.state[run.radiance_field.grid.table]["exp_avg"],
        "grid": run.grid.values,
        "prompt_embeds": run.embeddings.tokens,
    }[part]
    spoilt.view(-1)[3] = value
    with pytest.raises(RunError, match=f"not saved.*{part}.* is not finite"):
        run.save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    if part == "field":
        with pytest.raises(AssetError, match="not saved.*table is not finite"):
            run.asset().save_pretrained(tmp_path / "asset")
        assert not (tmp_path / "asset").exists()


def test_a_field_that_was_spoilt_from_outside_does_not_replace_the_save(pipe, tmp_path):
    run = start(pipe)
    list(pipe.advance(run, 1))
    run.save(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    run.radiance_field.grid.table.data.fill_(math.nan)
    with pytest.raises(DivergedError, match="loss of nan"):
        pipe.run_to_end(run, tmp_path, save_every=1)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_grid_passes_over_what_is_no_number():
    field = RadianceField(levels=1, base_resolution=2, max_resolution=2, log2_hashmap_size=5, hidden_dim=4)
    grid = DensityGrid(4, 1.0)
    grid.refresh(field)
    good = grid.values.clone()
    field.density = lambda points: torch.where(points[:, 0] > 0, math.nan, 1.0)
    grid.refresh(field)
    assert grid.values.isfinite().all()
    assert torch.equal(grid.values[..., 2:], 0.6 * good[..., 2:])


def test_a_list_of_prompts_keeps_what_was_finished(pipe, tmp_path):
    """The error of a later prompt has the output of the prompts before it."""

    def spoil(pipeline, step, timestep, tensors):
        if pipeline.current_run.prompt == "a blue cube" and step == 1:
            Poison(pipeline.current_run.radiance_field.grid.table, range(1, 1000))
        return tensors

    options = {"config": TINY, "num_frames": 1, "callback_on_step_end": spoil, "save_dir": tmp_path}
    with pytest.raises(DivergedError) as caught:
        pipe(["a red ball", "a green duck", "a blue cube"], **options)
    output = caught.value.output
    assert [run.prompt for run in output.runs] == ["a red ball", "a green duck"]
    assert len(output.assets) == len(output.images) == 2 and all(run.finished for run in output.runs)
    assert any("2 of 3 prompts" in note and "output" in note for note in caught.value.__notes__)
    assert pipe.current_run.prompt == "a blue cube" and pipe.current_run.step == 2
    assert HiFARun.load(tmp_path / "0002-a-blue-cube").step == 2


def test_the_first_prompt_that_fails_has_nothing_to_give(pipe):
    def fail(*_):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no") as caught:
        pipe(["a red ball", "a blue cube"], config=TINY, num_frames=1, callback_on_step_end=fail)
    assert not hasattr(caught.value, "output")


def test_a_run_whose_turntable_fails_is_there(pipe, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("hifa.asset.HiFAAsset.turntable", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        pipe("a red ball", config=TINY)
    assert pipe.current_run.finished
