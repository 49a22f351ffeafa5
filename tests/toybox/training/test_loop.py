"""The two Toybox trainers on a few pictures: they resume as if never interrupted, and export what diffusers loads."""

import argparse
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn

from hifa.toybox import world
from hifa.toybox.training import autoencoder, dataset, diffusion


@pytest.fixture(scope="module")
def pictures() -> dataset.Pictures:
    pixels, labels = zip(*(dataset.render_scene(seed, views=4) for seed in range(40)), strict=True)
    return dataset.Pictures(np.concatenate(pixels), np.concatenate(labels))


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> Path:
    """A folder with the pictures, in `data`, and an autoencoder of one step, in `vae`."""
    folder = tmp_path_factory.mktemp("toybox")
    (folder / "data").mkdir()
    np.savez(folder / "data/000000.npz", pixels=pictures.pixels, labels=pictures.labels)
    autoencoder.train(pictures, folder, steps=1, batch=2).save_pretrained(folder / "vae")
    return folder


def train_diffusion_in(folder: Path, trained: Path, *steps: int) -> dict[str, torch.Tensor]:
    """The checkpoint after a run to each of `steps` in turn; warm-up makes their learning rates the same."""
    folder.mkdir()
    (folder / "vae").symlink_to(trained / "vae")
    for last in steps:
        diffusion.train(
            argparse.Namespace(
                data=trained / "data", output_dir=folder, init_from=None, export=folder / "prior", export_every=1000,
                steps=last, batch=2, learning_rate=1e-3, noisy_share=0.5, seed=0,
            )
        )  # fmt: skip
    return load_file(folder / "diffusion.safetensors")


def test_an_interrupted_training_ends_as_one_in_a_go(trained, tmp_path):
    straight = train_diffusion_in(tmp_path / "straight", trained, 4)
    resumed = train_diffusion_in(tmp_path / "resumed", trained, 2, 4)
    assert straight.keys() == resumed.keys()
    # Up to rounding: in four steps a parameter moves by about 1e-4.
    torch.testing.assert_close(resumed, straight, rtol=1e-4, atol=1e-6)
    # The caption reader serves the training only.
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "resumed/prior")
    assert pipe("a red car", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)


def test_latents_of_other_pictures_or_another_autoencoder_are_refused(pictures, trained, tmp_path):
    vae, cache = AutoencoderKL.from_pretrained(trained / "vae"), tmp_path / "latents.npy"
    few = dataset.Pictures(pictures.pixels[:6], pictures.labels[:6])
    latents = diffusion.encode_pictures(vae, few, cache)
    assert torch.equal(diffusion.encode_pictures(vae, few, cache), latents) and len(list(tmp_path.iterdir())) == 1
    for other in (
        dataset.Pictures(few.pixels[:5], few.labels[:5]),
        dataset.Pictures(few.pixels[::-1].copy(), few.labels),
    ):
        with pytest.raises(ValueError, match="belongs to other images or another autoencoder. Remove"):
            diffusion.encode_pictures(vae, other, cache)
    with pytest.raises(ValueError, match="another autoencoder"):
        diffusion.encode_pictures(autoencoder.build_autoencoder(), few, cache)


def test_without_an_autoencoder_it_says_how_to_make_one(trained, tmp_path):
    arguments = argparse.Namespace(data=trained / "data", output_dir=tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="nothing.*autoencoder"):
        diffusion.train(arguments)


def test_an_interrupted_autoencoder_ends_as_one_in_a_go(pictures, tmp_path):
    straight = autoencoder.train(pictures, tmp_path / "a", steps=3, batch=2)
    autoencoder.train(pictures, tmp_path / "b", steps=2, batch=2)
    resumed = autoencoder.train(pictures, tmp_path / "b", steps=3, batch=2)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in straight.state_dict().items())


def test_captions_tell_what_their_labels_say():
    labels, rng = dataset.render_scene(3, views=1)[1][0], np.random.default_rng(0)
    drawn = [diffusion.caption_for(labels, rng) for _ in range(300)]
    for text, told in drawn:
        view = world.VIEWS[labels[4]]
        assert told == ((labels[0], labels[1], labels[4] if view in text else -1) if text else (-1, -1, -1))
    assert 0.05 < np.mean([text == "" for text, _ in drawn]) < 0.16


def test_caption_loss_of_a_guess_and_of_nothing_told():
    reader = nn.Linear(5, sum(diffusion.HEADS))
    nn.init.zeros_(reader.weight), nn.init.zeros_(reader.bias)
    model, context = nn.ModuleDict({"reader": reader}), torch.randn(2, 24, 5)
    told = torch.tensor([[3, 1, 2], [0, 5, -1]])
    expected = (2 * math.log(24) + 2 * math.log(12) + math.log(4)) / 2
    assert diffusion.caption_loss(model, context, told).item() == pytest.approx(expected, rel=1e-5)
    assert diffusion.caption_loss(model, context, torch.full((2, 3), -1)).item() == 0


def test_timesteps_cover_all_and_prefer_the_noisy_quarter():
    t = diffusion.draw_timesteps(np.random.default_rng(0), 20_000, noisy_share=0.5)
    assert t.min() == 0 and t.max() == 999
    # Half are drawn from there, and a quarter of the other half fall there: .5 + .5 / 4.
    assert abs((t >= 750).double().mean() - 0.625) < 0.01


def test_fronts_and_backs_are_drawn_twice_as_often_where_they_differ():
    kinds, (front, side) = list(world.KINDS), (world.VIEWS.index("front view"), world.VIEWS.index("side view"))
    rows = [("car", front), ("car", side), ("ball", front)]
    labels = np.array([(kinds.index(kind), 0, -1, -1, view) for kind, view in rows], np.int16)
    np.testing.assert_allclose(diffusion.drawing_chances(labels), [0.5, 0.25, 0.25])
