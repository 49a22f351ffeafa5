"""The Toybox prior is an ordinary Stable Diffusion folder, small enough for a plain git push."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from hifa import TOYBOX
from hifa.cameras import VIEWS
from hifa.toybox import vocabulary
from hifa.toybox.models import MAX_TOKENS, build_text_encoder, build_tokenizer, build_unet, save_prior
from hifa.toybox.training.autoencoder import build_autoencoder


MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """What training would save, before any step."""
    folder = tmp_path_factory.mktemp("untrained")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_prior(folder, build_autoencoder(), build_unet(), build_text_encoder())
    return folder


@pytest.fixture(scope="module", params=["untrained", "packaged"])
def folder(request):
    return request.getfixturevalue("untrained") if request.param == "untrained" else TOYBOX


def test_stock_stable_diffusion_samples_from_it(folder):
    pipe = StableDiffusionPipeline.from_pretrained(str(folder))
    assert isinstance(pipe, StableDiffusionPipeline)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        "a red mushroom, front view",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    assert images.shape == (1, 64, 64, 3) and np.isfinite(images).all()


def test_it_is_what_the_package_builds(folder):
    pipe = StableDiffusionPipeline.from_pretrained(str(folder))
    assert pipe.tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert pipe.scheduler.config.prediction_type == "v_prediction" and not pipe.scheduler.config.clip_sample
    for model, built in [
        (pipe.vae, build_autoencoder()),
        (pipe.unet, build_unet()),
        (pipe.text_encoder, build_text_encoder()),
    ]:
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        assert shapes == {name: value.shape for name, value in built.state_dict().items()}
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_its_tokenizer_reads_prompts_as_the_pipeline_pads_them(folder):
    tokenizer = StableDiffusionPipeline.from_pretrained(str(folder), vae=None, unet=None, text_encoder=None).tokenizer
    assert tokenizer.model_max_length == MAX_TOKENS
    texts = ["", *(f"a red ball on a blue cube, {view}" for view in VIEWS)]
    rows = tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    assert rows.shape == (5, MAX_TOKENS) and not (rows == tokenizer.unk_token_id).any()
    assert torch.equal(rows, build_tokenizer()(texts, padding="max_length", return_tensors="pt").input_ids)
    assert len({tuple(row.tolist()) for row in rows}) == 5


def test_a_plain_git_push_takes_it(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "model_index.json" for path in files), f"no prior in {folder}"
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    assert max(sizes.values()) <= 9 * MEGABYTE, max(sizes, key=sizes.get)
    assert sum(sizes.values()) <= 40 * MEGABYTE
    weights = [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    assert not weights, "safetensors only"
    assert all(path.suffix in (".json", ".safetensors", ".md") for path in files), sorted(sizes)


def test_training_changed_the_packaged_prior(untrained):
    fresh, packaged = (StableDiffusionPipeline.from_pretrained(str(path)) for path in (untrained, TOYBOX))
    for name in ("vae", "unet", "text_encoder"):
        first, second = getattr(fresh, name).state_dict(), getattr(packaged, name).state_dict()
        assert any(not torch.equal(first[key], second[key]) for key in first), name


def test_words_of_the_prior_are_those_of_the_world():
    assert set(build_tokenizer().get_vocab()) == {"<unk>", "<start>", "<end>", *vocabulary.all_words()}
