"""Runs, assets and records of version 0.1, which has British names, open and continue in this version."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hifa import HiFAAsset, HiFAPipeline, HiFARun
from hifa.space.jobs.run_store import Record, Request, RunFolder
from hifa.storage.migration import RECORD, SETTINGS, TENSORS, renamed
from hifa.storage.run_folder import FILE, read_metadata
from tests.helpers.runs import TINY, generator


def earlier(names):
    return {current: name for name, current in names.items()}


def in_earlier_names(path, key="facts"):
    """Rewrite a safetensors file with the tensor and setting names of version 0.1."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = {name: json.loads(text) for name, text in (file.metadata() or {}).items() if name == key}
    tensors = {}
    for name, value in load_file(path).items():
        for current, old in earlier(TENSORS).items():
            name = name.replace(current, old)
        tensors[name] = value
    for values in metadata.values():
        values["config"] = renamed(values["config"], earlier(SETTINGS))
    save_file(tensors, path, metadata={name: json.dumps(values) for name, values in metadata.items()})


@pytest.fixture(scope="module")
def run(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    pipe.set_progress_bar_config(disable=True)
    views = torch.ones(16, 8, 8, 4)
    views[:, :2, :, 3] = 0
    run = pipe.start("a red ball", config=TINY, generator=generator(), views=views, regularizer_warmup=0.3)
    list(pipe.advance(run, 1))
    return run


def test_a_run_of_version_0_1_loads(run, tmp_path):
    run.save(tmp_path)
    in_earlier_names(tmp_path / FILE)
    assert any("colour_net" in name for name in load_file(tmp_path / FILE))
    again = HiFARun.load(tmp_path)
    assert again.config == run.config and again.config.regularizer_warmup == 0.3
    for name, value in run.radiance_field.state_dict().items():
        assert torch.equal(again.radiance_field.state_dict()[name], value), name
    assert torch.equal(again.views.color, run.views.color)
    assert read_metadata(tmp_path)["config"]["max_resolution"] == TINY.max_resolution


def test_an_asset_of_version_0_1_loads(run, tmp_path):
    asset = run.asset()
    asset.save_pretrained(tmp_path)
    in_earlier_names(tmp_path / "diffusion_pytorch_model.safetensors")
    for name in ("config.json", "asset.json"):
        values = json.loads((tmp_path / name).read_text("utf-8"))
        if "config" in values:
            values["config"] = renamed(values["config"], earlier(SETTINGS))
        (tmp_path / name).write_text(json.dumps(renamed(values, earlier(SETTINGS))), "utf-8")
    again = HiFAAsset.from_pretrained(tmp_path)
    assert again.metadata["config"] == json.loads(json.dumps(asset.metadata["config"]))
    torch.testing.assert_close(again.render(size=16).color, asset.render(size=16).color, rtol=0, atol=0)


def test_a_record_of_version_0_1_is_read(tmp_path):
    folder = RunFolder(tmp_path)
    record = Record(
        Request("text", "a red ball", "toybox", 0, settings={"regularizer_warmup": 0.3}), metadata={"faces": 7}
    )
    folder.write(record)
    values = renamed(json.loads((tmp_path / "record.json").read_text("utf-8")), earlier(RECORD))
    values["request"]["settings"] = renamed(values["request"]["settings"], earlier(SETTINGS))
    (tmp_path / "record.json").write_text(json.dumps(values), "utf-8")
    (tmp_path / "previews.json").write_text(json.dumps({"colour": "data:,", "depth": "data:,"}), "utf-8")
    assert folder.read().metadata == {"faces": 7}
    assert folder.read().request.settings == {"regularizer_warmup": 0.3}
    assert set(folder.previews()) == {"color", "depth"}
