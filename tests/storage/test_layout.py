"""Files with tensors of other shapes or types: refused by name before anything is built with them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import hifa.optimization.run
from hifa import HiFAAsset, HiFAPipeline, HiFARun
from hifa.asset import AssetError
from hifa.multiview.checkpoint import read_tensors
from hifa.multiview.conversion import Source, _take
from hifa.optimization.adan import Adan
from hifa.storage.checkpoint import load_optimizer_tensors, optimizer_tensors
from hifa.storage.layout import LayoutError, Spec, check_layout, layout_of, read_layout
from hifa.storage.run_folder import FILE, RunError, read_metadata
from hifa.toybox.training import loop as training
from hifa.toybox.training.loop import EMA, Recipe, load_checkpoint, optimize, save_checkpoint
from tests.helpers.runs import TINY, generator


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipe(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def views():
    images = torch.ones(16, 8, 8, 4)
    images[:, :2, :, 3] = 0
    return images


@pytest.fixture(scope="module")
def saved(pipe, views, tmp_path_factory):
    """Folders of saved runs after a step, by their methods."""
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in (("hifa", {"views": views}), ("adan", {"optimizer": "adan"}), ("vsd", {})):
        settings |= {"distillation": "vsd", "guidance_scale": 7.5} if name == "vsd" else {}
        run = pipe.start("a red ball", config=TINY, generator=generator(), **settings)
        list(pipe.advance(run, 1))
        run.save(folder / name)
    return folder


def rewritten(source, folder, change, **metadata):
    """A copy of a saved run with other tensors."""
    tensors = load_file(source / FILE)
    change(tensors)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / FILE, metadata={"facts": json.dumps(read_metadata(source) | metadata)})
    return folder


def test_what_is_saved_loads(saved):
    for name in ("hifa", "adan", "vsd"):
        assert HiFARun.load(saved / name).step == 1


@pytest.mark.parametrize(
    "method, name",
    [
        ("hifa", "optimizer/0.exp_avg"), ("hifa", "optimizer/0.exp_avg_sq"), ("hifa", "optimizer/1.exp_avg"),
        ("hifa", "field/grid.table"), ("hifa", "field/density_net.0.weight"), ("hifa", "grid"),
        ("hifa", "generator"), ("hifa", "prompt_embeds"),
        ("adan", "optimizer/0.exp_avg_diff"), ("adan", "optimizer/0.previous"),
        ("vsd", "variational/camera.0.weight"), ("vsd", "variational/camera.1.bias"),
        ("vsd", "variational_optimizer/0.exp_avg"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("change", ["shorter", "longer", "flat", "type", "gone"])
def test_a_run_with_a_wrong_tensor_is_refused_by_its_name(saved, tmp_path, method, name, change):
    """A shorter `exp_avg` made the fused step write beyond its end."""

    def spoil(tensors):
        value = tensors[name]
        tensors[name] = {
            "shorter": value[:-1].clone(),
            "longer": torch.cat([value, value[:1]]),
            "flat": value[None],
            "type": value.to(torch.float16 if value.is_floating_point() else torch.int32),
            "gone": None,
        }[change]
        if change == "gone":
            del tensors[name]

    with pytest.raises(RunError, match=f"wrong parts.*{name.split('/')[-1]}"):
        HiFARun.load(rewritten(saved / method, tmp_path / "run", spoil))


@pytest.mark.parametrize(
    "name", ["optimizer/99.exp_avg", "optimizer/-1.step", "optimizer/x.step", "field/more", "more"]
)
def test_a_run_with_an_unknown_tensor_is_refused(saved, tmp_path, name):
    folder = rewritten(saved / "hifa", tmp_path / "run", lambda tensors: tensors.update({name: torch.zeros(3)}))
    with pytest.raises(RunError, match=f"{name.split('/')[-1]} is unknown"):
        HiFARun.load(folder)


@pytest.mark.parametrize("name", ["views/color", "views/mask", "views/cameras"])
@pytest.mark.parametrize("change", ["flat", "type", "gone"])
def test_views_with_a_wrong_tensor_are_refused(saved, tmp_path, name, change):
    def spoil(tensors):
        value = tensors.pop(name)
        if change != "gone":
            tensors[name] = value[None] if change == "flat" else value.half()

    with pytest.raises(RunError, match=f"wrong parts.*{name}"):
        HiFARun.load(rewritten(saved / "hifa", tmp_path / "run", spoil))


def test_views_of_other_numbers_are_refused(saved, tmp_path):
    def spoil(tensors):
        tensors["views/cameras"] = tensors["views/cameras"][:-1].clone()

    with pytest.raises(RunError, match="16 views but 15 cameras"):
        HiFARun.load(rewritten(saved / "hifa", tmp_path / "run", spoil))


def test_a_large_field_without_its_weights_is_refused_by_the_header(saved, tmp_path, monkeypatch):
    """It took gigabytes before it was refused."""
    large = read_metadata(saved / "hifa")["config"] | {"levels": 32, "log2_hashmap_size": 24}
    folder = rewritten(saved / "hifa", tmp_path / "run", lambda tensors: None, config=large)
    monkeypatch.setattr(hifa.optimization.run, "read", lambda _: pytest.fail("its tensors were read"))
    with pytest.raises(RunError, match="density_net.0.weight must be .8, 64."):
        HiFARun.load(folder)


def test_a_run_that_is_not_finite_is_refused(saved, tmp_path):
    def spoil(tensors):
        tensors["field/grid.table"][3, 1] = torch.nan

    with pytest.raises(RunError, match="table is not finite"):
        HiFARun.load(rewritten(saved / "hifa", tmp_path / "run", spoil))


@pytest.fixture
def asset(saved, tmp_path):
    return HiFARun.load(saved / "hifa").asset().save_pretrained(tmp_path / "asset")


@pytest.mark.parametrize("change", ["shorter", "flat", "whole", "half", "gone", "more", "nan"])
def test_an_asset_with_a_wrong_tensor_is_refused(asset, change):
    tensors, name = load_file(asset / WEIGHTS), "grid.table"
    value = tensors.pop(name)
    if change != "gone":
        tensors[name] = {
            "shorter": value[:-1].clone(), "flat": value.flatten(), "whole": value.long(), "half": value.half(),
            "more": value, "nan": value * torch.nan,
        }[change]  # fmt: skip
    if change == "more":
        tensors["more.weight"] = torch.zeros(3)
    save_file(tensors, asset / WEIGHTS, metadata={"format": "pt"})
    said = {"gone": "grid.table is missing", "more": "more.weight is unknown", "nan": "grid.table is not finite"}
    with pytest.raises(AssetError, match=said.get(change, "grid.table must be")):
        HiFAAsset.from_pretrained(asset)


@pytest.mark.parametrize("name, value", [("max_resolution", 2**22 - 1), ("levels", 10**6), ("bound", "1")])
def test_an_asset_with_settings_out_of_range_is_refused(asset, name, value):
    """Rendering the first of them ended the process."""
    config = json.loads((asset / "config.json").read_text())
    (asset / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(AssetError, match=f"{name} must be "):
        HiFAAsset.from_pretrained(asset)


def test_an_asset_that_is_a_pickle_is_not_read(asset):
    torch.save(load_file(asset / WEIGHTS), asset / "diffusion_pytorch_model.bin")
    (asset / WEIGHTS).unlink()
    with pytest.raises(AssetError, match="damaged"):
        HiFAAsset.from_pretrained(asset)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, Adan])
def test_optimizer_states_must_be_those_of_the_parameters(make):
    parameter = torch.nn.Parameter(torch.zeros(4, 3))
    optimizer = make([parameter], lr=1e-3)
    parameter.grad = torch.ones(4, 3)
    optimizer.step()
    state = optimizer_tensors(optimizer)
    load_optimizer_tensors(optimizer, state)
    load_optimizer_tensors(make([parameter], lr=1e-3), {})  # before its first step
    for name in state:
        with pytest.raises(LayoutError, match=f"{name} must be"):
            load_optimizer_tensors(optimizer, state | {name: torch.zeros(2)})
        with pytest.raises(LayoutError, match=f"{name} is missing"):
            load_optimizer_tensors(optimizer, {key: value for key, value in state.items() if key != name})


def test_a_checkpoint_of_another_module_is_refused(tmp_path):
    def parts(width):
        module = torch.nn.Linear(3, width)
        return module, EMA(module), torch.optim.AdamW(module.parameters())

    save_checkpoint(tmp_path / "checkpoint", 5, *parts(4))
    assert load_checkpoint(tmp_path / "checkpoint", *parts(4)) == 5
    with pytest.raises(LayoutError, match="bias must be .5. float32, got .4. float32"):
        load_checkpoint(tmp_path / "checkpoint", *parts(5))


def test_a_training_skips_what_is_not_finite_and_ends_when_all_is(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "REPORT_EVERY", 1)
    module, bad = torch.nn.Linear(3, 2), {1}

    def losses_at(step):
        return {"loss": module(torch.ones(3)).sum() * (torch.inf if step in bad else 1.0)}

    average = optimize(module, losses_at, Recipe(3), tmp_path / "checkpoint")
    assert all(value.isfinite().all() for value in average.values.values())
    before, bad = (tmp_path / "checkpoint").read_bytes(), set(range(3, 100))
    with pytest.raises(ValueError, match="10 gradients in a row were not finite, up to step 13"):
        optimize(module, losses_at, Recipe(100), tmp_path / "checkpoint")
    assert all(value.isfinite().all() for value in load_file(tmp_path / "checkpoint").values())
    assert before


@pytest.mark.parametrize("shape", [(6, 2), (2, 6, 1), (3, 2, 2), (12,), (6, 4)])
def test_published_weights_must_have_the_shape_of_ours(shape):
    with pytest.raises(ValueError, match="key has shape"):
        _take(torch.zeros(shape), Source("key"), torch.Size((2, 3, 2)))
    with pytest.raises(ValueError, match="key has shape"):
        _take(torch.zeros(shape), Source("key", part=2), torch.Size((2, 3, 2)))
    with pytest.raises(ValueError, match="key has shape.*int64"):
        _take(torch.zeros(2, 3, 2, dtype=torch.int64), Source("key"), torch.Size((2, 3, 2)))


def test_a_checkpoint_has_plain_tensors_alone(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(2), "poses": [1.0]}}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="more than plain tensors: poses"):
        read_tensors(tmp_path / "model.ckpt")


def test_layouts_of_files_and_of_tensors_are_the_same(tmp_path):
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros((), dtype=torch.float64),
        "c": torch.zeros(1, dtype=torch.bool),
    }
    save_file(tensors, tmp_path / "file")
    assert read_layout(tmp_path / "file") == layout_of(tensors)
    check_layout(layout_of(tensors), layout_of(tensors) | {"a": Spec((None, 3))})
    with pytest.raises(LayoutError, match=r"a must be \(any, 4\) float32, got \(2, 3\) float32"):
        check_layout(layout_of(tensors), layout_of(tensors) | {"a": Spec((None, 4))})
