"""The published checkpoint of MVDream: its layout, its text encoder, and a pipeline that is loaded from one."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from hifa import TOYBOX, HiFAConfig, HiFAPipeline
from hifa.multiview import mvdream
from hifa.multiview.conversion import check_keys
from hifa.multiview.mvdream import MVDreamArchitecture, build_models, read_mvdream, sources, to_published, unused_keys
from tests.helpers.mvdream import GOLDEN, REDUCED, TINY, checkpoint_file, small_config, weights_by_name
from tests.helpers.paths import GOLDEN_FOLDER


LAYOUT = {
    key: tuple(shape)
    for key, shape in json.loads((GOLDEN_FOLDER / "mvdream_checkpoint_layout.json").read_text("utf-8")).items()
}


@pytest.fixture(scope="module")
def published_size():
    with torch.device("meta"):
        return build_models(MVDreamArchitecture())


def test_every_key_of_the_published_file_is_accounted_for(published_size):
    table = sources(published_size)
    wanted = {source.key for names in table.values() for source in names.values()}
    assert len(LAYOUT) == 1244 and wanted | unused_keys(published_size) == set(LAYOUT)
    assert not wanted & unused_keys(published_size)
    check_keys(dict.fromkeys(LAYOUT), table, unused_keys(published_size), "MVDream")


def test_every_tensor_has_the_published_shape(published_size):
    def without_ones(shape):
        return [size for size in shape if size != 1]

    for part, names in sources(published_size).items():
        state = published_size[part].state_dict()
        for name, source in names.items():
            shape = tuple(state[name].shape)
            whole = shape if source.part is None else (3 * shape[0], *shape[1:])
            assert without_ones(LAYOUT[source.key]) == without_ones(whole), (part, name)


@torch.no_grad()
def test_text_encoder_stops_before_the_last_layer():
    encoder = weights_by_name(build_models(REDUCED))["text_encoder"]
    states = encoder(torch.from_numpy(GOLDEN["text_ids"]).long()).last_hidden_state
    np.testing.assert_allclose(states[..., ::4], GOLDEN["text_out_penultimate_s4"], atol=1e-5)


def test_noise_schedule():
    np.testing.assert_allclose(mvdream.build_scheduler().alphas_cumprod, GOLDEN["alphas_cumprod"], rtol=1e-5)


def test_there_and_back_is_the_identity(tmp_path):
    torch.manual_seed(0)
    models = build_models(TINY)
    loaded = read_mvdream(checkpoint_file(tmp_path, models), TINY)
    for part, model in models.items():
        assert not loaded[part].training
        assert all(torch.equal(loaded[part].state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("change, message", [("missing", "1 tensors are missing"), ("unknown", "1 are unknown")])
def test_another_checkpoint_is_refused(tmp_path, change, message):
    models = build_models(TINY)
    tensors = to_published(models) | {key: torch.zeros(1) for key in unused_keys(models)}
    if change == "missing":
        del tensors["model.diffusion_model.camera_embed.0.weight"]
    else:
        tensors["surplus"] = torch.zeros(1)
    torch.save(tensors, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=message):
        read_mvdream(tmp_path / "other.pt", TINY)


def test_code_in_a_file_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (print, ("harm",))

    torch.save({"x": Harm()}, tmp_path / "harm.pt")
    with pytest.raises(ValueError, match="No code was run"):
        read_mvdream(tmp_path / "harm.pt", TINY)


@pytest.fixture
def pipe(tmp_path, monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr("hifa.pipeline_hifa.read_mvdream", lambda path: read_mvdream(path, TINY))
    tokenizer = HiFAPipeline.from_pretrained(TOYBOX).tokenizer
    return HiFAPipeline.from_single_file(checkpoint_file(tmp_path, build_models(TINY)), tokenizer)


def test_a_folder_is_saved_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "folder")
    loaded = HiFAPipeline.from_pretrained(tmp_path / "folder")
    expected, got = pipe.camera_embedding.state_dict(), loaded.camera_embedding.state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_default_settings_see_four_views(tmp_path, monkeypatch):
    large = replace(TINY, sample_size=64)  # 128 pixels
    monkeypatch.setattr("hifa.pipeline_hifa.read_mvdream", lambda path: read_mvdream(path, large))
    pipe = HiFAPipeline.from_single_file(
        checkpoint_file(tmp_path, build_models(large)), HiFAPipeline.from_pretrained().tokenizer
    )
    assert pipe.default_config() == HiFAConfig.multiview_preview()
    assert pipe.default_config(views=True) == HiFAConfig.guided_preview()


def test_the_folder_is_a_2d_model_of_diffusers(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "folder")
    plain = StableDiffusionPipeline.from_pretrained(
        tmp_path / "folder", safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    plain.set_progress_bar_config(disable=True)
    picture = plain("a red chair", num_inference_steps=2, output_type="np", generator=torch.manual_seed(0)).images
    assert picture.shape == (1, 16, 16, 3) and np.isfinite(picture).all()


def test_a_file_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("hifa.pipeline_hifa.read_mvdream", lambda path: read_mvdream(path, TINY))
    tokenizer, path = HiFAPipeline.from_pretrained().tokenizer, checkpoint_file(tmp_path, build_models(TINY))
    pipe = HiFAPipeline.from_pretrained(path, tokenizer=tokenizer, variant=None, dtype=torch.bfloat16)
    assert pipe.camera_embedding is not None and pipe.unet.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="without variants, got variant='fp16'"):
        HiFAPipeline.from_pretrained(path, tokenizer=tokenizer, variant="fp16")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="neither a file nor owner/name"):
        HiFAPipeline.from_pretrained(tmp_path / "sd-v2.1-base-4view.pt")


def test_a_run_from_the_file(pipe):
    run = pipe.start("a red chair", seed=0, config=small_config())
    steps = list(pipe.advance(run))
    assert run.finished and [step.step for step in steps] == [1, 2, 3] and steps[0].image.shape == (16, 16, 3)
    assert all(np.isfinite(list(step.losses.values())).all() for step in steps)
