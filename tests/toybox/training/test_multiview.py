"""The Toybox multi-view model: its scenes agree with the ring, its training resumes, its embedded weights are good."""

import argparse
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from benchmarks import toybox_multiview as benchmark
from benchmarks import view_steps
from hifa.cameras import Camera
from hifa.multiview import SyncDreamerPipeline, ViewRing
from hifa.multiview.architecture import build_unet, build_volume
from hifa.multiview.given_views import RING_EXTENT, ring_cameras
from hifa.multiview.projection import project
from hifa.toybox import MULTIVIEW_WEIGHTS, SURFACE_WEIGHTS, TOYBOX, world
from hifa.toybox.shapes import signed_distance
from hifa.toybox.training import image_encoder, multiview, multiview_dataset
from hifa.toybox.training.autoencoder import build_autoencoder
from hifa.toybox.training.multiview_models import ARCHITECTURE, start_from_prior


MEGABYTE = 10**6


@pytest.fixture(scope="module")
def scenes() -> multiview_dataset.Scenes:
    rows = [vars(multiview_dataset.render_scene(seed, photos=2)) for seed in range(3)]
    return multiview_dataset.Scenes(**{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


@pytest.fixture(scope="module")
def embedded() -> SyncDreamerPipeline:
    pipe = SyncDreamerPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_shapes_of_the_training_set(scenes):
    assert scenes.views.shape == (3, 16, 64, 64, 3) and scenes.views.dtype == np.uint8
    assert scenes.photos.shape == (3, 2, 64, 64, 3) and scenes.photos.dtype == np.uint8
    assert scenes.first_view.shape == scenes.elevation_deg.shape == (3, 2)
    assert scenes.labels.shape == (3, 4) and len(scenes) == len(scenes.azimuth_deg) == 3
    assert (scenes.views[:, :, 0, 0] == 255).all() and (scenes.photos[:, :, 0, 0] == 255).all(), "on white"
    assert (scenes.elevation_deg >= -10).all() and (scenes.elevation_deg <= 40).all()


def test_the_ring_is_that_of_the_model_and_of_reconstruction(scenes):
    assert tuple(multiview_dataset.ring_from(0.0)) == ring_cameras(multiview_dataset.BOUND)
    # Points of the world, in the ring's units, fall on the object where the model projects them to.
    scene = world.sample_scene(np.random.default_rng(0))
    points = np.random.default_rng(1).uniform(-0.8, 0.8, (200_000, 3)).astype(np.float32)
    inside = points[signed_distance(scene.shape, points) < -0.005]
    turn = np.radians(-scenes.azimuth_deg[0])  # the model counts azimuths from view 0
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    ring, scaled = ViewRing(), torch.from_numpy(inside @ rotation.T * RING_EXTENT).float()
    pixels, _ = project(scaled, ring.world_to_camera(), ring.intrinsics(64))
    column, row = pixels.floor().long().unbind(-1)
    for view in range(16):
        seen = scenes.views[0, view][row[view], column[view]]
        assert (seen < 250).any(-1).mean() > 0.99, f"view {view}"
        painted = np.zeros((64, 64), bool)
        painted[row[view], column[view]] = True
        assert painted.sum() > 0.7 * (scenes.views[0, view] < 250).any(-1).sum(), f"view {view} is of another scale"


def test_a_photo_is_taken_from_the_azimuth_of_its_first_view(scenes):
    scene = world.sample_scene(np.random.default_rng(0))
    for photo, view, elevation in zip(scenes.photos[0], scenes.first_view[0], scenes.elevation_deg[0], strict=True):
        errors = []
        for camera in multiview_dataset.ring_from(float(scenes.azimuth_deg[0])):
            taken = multiview_dataset.take_photo(scene.shape, camera.azimuth_deg, float(elevation), 2.6)
            errors.append(np.abs(multiview_dataset.framed(taken).astype(int) - photo).mean())
        assert int(np.argmin(errors)) == view


def test_framing_hides_the_distance():
    scene = world.make_scene("duck", "yellow")
    near, far = (multiview_dataset.framed(multiview_dataset.take_photo(scene.shape, 40, 10, r)) for r in (2.2, 3.0))
    sides = [np.ptp(np.nonzero((picture < 250).any(-1)), axis=1) + 1 for picture in (near, far)]
    assert abs(int(sides[0].max()) - multiview_dataset.CROP_SIZE) <= 1
    assert np.abs(sides[0] - sides[1]).max() <= 2


def test_batches_start_at_the_view_of_the_photo(scenes):
    # Every latent holds its own number; those of mirrored pictures are 100 more.
    mirror = torch.tensor([0, 100]).view(2, 1, 1, 1, 1, 1)
    views = mirror + torch.arange(3 * 16).view(3, 16, 1, 1, 1).expand(-1, -1, 4, 16, 16)
    photos = mirror + torch.arange(6).view(3, 2, 1, 1, 1).expand(-1, -1, 4, 16, 16)
    latents = multiview.SceneLatents(views, photos)
    batch = multiview.Batch(scenes, latents, ViewRing(), np.random.default_rng(0), (40, 3))
    ids, picture = batch.latents[:, :, 0, 0, 0].long(), batch.picture[:, 0, 0, 0].long()
    mirrored = ids[:, :1] >= 100
    assert torch.equal(mirrored[:, 0], picture >= 100) and 10 < mirrored.sum() < 30
    ids, picture = ids % 100, picture % 100
    scene, photo = ids[:, 0] // 16, picture % 2
    assert torch.equal(picture // 2, scene)
    assert torch.equal(ids[:, 0] % 16, torch.from_numpy(scenes.first_view)[scene, photo].long())
    steps = (ids[:, 1:] - ids[:, :-1]) % 16
    assert torch.equal(steps, torch.where(mirrored, 15, 1).expand(-1, 15)), "the mirrored ring runs the other way"
    elevation = torch.deg2rad(torch.from_numpy(scenes.elevation_deg)[scene, photo] - 30)
    torch.testing.assert_close(batch.v_embed[:, 5, 0], elevation)
    assert all(len(set(row.tolist())) == 3 for row in batch.views)


def test_a_mirrored_photo_shows_the_ring_the_other_way(scenes):
    coarse = image_encoder.coarse_views(scenes)
    images, _, views, *_ = image_encoder.draw_batch(scenes, coarse, np.random.default_rng(0), 30)
    originals = image_encoder.to_images(torch.from_numpy(scenes.photos.reshape(-1, 64, 64, 3)))
    seen = set()
    for image, ring in zip(images, views, strict=True):
        plain = (originals - image).abs().amax((1, 2, 3)) == 0
        mirrored = not plain.any()
        index = int(((originals.flip(-1) - image).abs().amax((1, 2, 3)) == 0 if mirrored else plain).nonzero()[0])
        scene, first = index // 2, int(scenes.first_view.reshape(-1)[index])
        order = [(first + (-view if mirrored else view)) % 16 for view in range(16)]
        expected = coarse[scene, order].float()
        assert torch.equal(ring, expected.flip(-1) if mirrored else expected)
        seen.add(mirrored)
    assert seen == {True, False}


def test_what_a_photo_is_told_to_show(scenes):
    draw = multiview_dataset.PhotoDraw(np.array([1, 1]), np.array([0, 0]), np.array([False, True]), None)
    azimuth = np.radians(scenes.azimuth_deg[1] + 22.5 * scenes.first_view[1, 0])
    expected = [np.sin(azimuth), np.sin(2 * azimuth), np.sin(4 * azimuth)]
    expected += [np.cos(azimuth), np.cos(2 * azimuth), np.cos(4 * azimuth)]
    plain, mirrored = image_encoder.facing(scenes, draw)
    assert plain.tolist() == pytest.approx(expected, abs=1e-5)
    assert mirrored.tolist() == pytest.approx([*(-x for x in expected[:3]), *expected[3:]], abs=1e-5)
    names = image_encoder.names_of(replace(scenes, labels=np.array([[0, 0, 0, 0], [5, 3, -1, -1]])), draw)
    assert names.tolist() == [[5, 3, 24, 12]] * 2, "a single object stands on nothing"


def test_a_model_starts_from_an_earlier_one(tmp_path):
    embedded = SyncDreamerPipeline.from_pretrained()
    embedded.save_pretrained(tmp_path)
    seeing = image_encoder.build_model()
    parts = multiview.initial_parts(seeing["image_encoder"], seeing["conditioner"], 0, tmp_path)
    for name in ("unet", "volume", "depth_attention"):
        for key, value in getattr(embedded, name).state_dict().items():
            assert torch.equal(parts[name].state_dict()[key], value.float()), f"{name}.{key}"
    own = parts["conditioner"].state_dict()
    assert all(torch.equal(own[key], value) for key, value in seeing["conditioner"].state_dict().items())


def test_the_unet_starts_as_the_prior_whatever_the_photo():
    prior = UNet2DConditionModel.from_pretrained(TOYBOX / "unet", dtype=torch.float32).eval()
    unet = build_unet(ARCHITECTURE).eval()
    start_from_prior(unet, prior)
    generator = torch.Generator().manual_seed(0)
    noisy, photo = torch.randn(2, 2, 4, 16, 16, generator=generator)
    context = torch.randn(2, 1, 128, generator=generator)
    with torch.no_grad():
        ours, theirs = unet(torch.cat([noisy, photo], 1), 500, context).sample, prior(noisy, 500, context).sample
    torch.testing.assert_close(ours, theirs)


def training_folder(folder: Path, scenes: multiview_dataset.Scenes) -> Path:
    """Data, and the first two stages done: an autoencoder, an image encoder and a conditioner of no training."""
    (folder / "data").mkdir(parents=True)
    names = multiview_dataset.Scenes.__dataclass_fields__
    np.savez(folder / "data/00000000.npz", **{name: getattr(scenes, name) for name in names})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build_autoencoder().save_pretrained(folder / "vae")
        image_encoder.save(folder, image_encoder.build_model())
    return folder


def train_to(folder: Path, *steps: int) -> dict[str, torch.Tensor]:
    """The checkpoint after a run to each of `steps` in turn; warm-up makes their learning rates the same."""
    for last in steps:
        multiview.train(
            argparse.Namespace(
                data=folder / "data", output_dir=folder, export=folder / "pipeline", export_every=1000, steps=last,
                autoencoder_steps=1, encoder_steps=1, init_from=None, bf16=False, scenes=2, views=2, peak=1e-3,
                seed=0,
            )
        )  # fmt: skip
    return load_file(folder / "multiview.safetensors")


def test_an_interrupted_training_ends_as_one_in_a_go(scenes, tmp_path):
    straight = train_to(training_folder(tmp_path / "straight", scenes), 3)
    resumed = train_to(training_folder(tmp_path / "resumed", scenes), 1, 3)
    assert straight.keys() == resumed.keys()
    torch.testing.assert_close(resumed, straight, rtol=1e-4, atol=1e-6)
    pipe = SyncDreamerPipeline.from_pretrained(tmp_path / "resumed/pipeline", dtype=torch.float32)
    scene = world.make_scene("cube", "red")
    photo = multiview_dataset.take_photo(scene.shape, 0, 10, 2.5)
    assert pipe(photo, 10, num_inference_steps=1, output_type="pt").images.shape == (16, 64, 64, 3)


def test_an_interrupted_image_encoder_ends_as_one_in_a_go(scenes, tmp_path):
    straight = image_encoder.train(scenes, tmp_path / "a", steps=3, batch=2)
    image_encoder.train(scenes, tmp_path / "b", steps=2, batch=2)
    resumed = image_encoder.train(scenes, tmp_path / "b", steps=3, batch=2)
    torch.testing.assert_close(resumed.state_dict(), straight.state_dict(), rtol=1e-4, atol=1e-6)


def test_an_image_encoder_can_begin_with_an_earlier_one(scenes, tmp_path):
    earlier = image_encoder.build_model()
    image_encoder.save(tmp_path, earlier)
    later = image_encoder.train(scenes, tmp_path / "later", steps=1, batch=2, peak=0.0, init_from=tmp_path)
    for name in ("image_encoder", "conditioner"):
        torch.testing.assert_close(later[name].state_dict(), earlier[name].state_dict())


def test_losses_in_bfloat16_are_those_in_float32(scenes):
    model, coarse = image_encoder.build_model(), image_encoder.coarse_views(scenes)
    batch = image_encoder.draw_batch(scenes, coarse, np.random.default_rng(0), 4)
    full, half = image_encoder.losses(model, batch), image_encoder.losses(model, batch, bf16=True)
    assert full["loss"] != half["loss"]
    for name, value in full.items():
        assert half[name].item() == pytest.approx(value.item(), rel=0.02), name


def test_patches_know_where_they_are():
    waves = image_encoder.waves(8, 192)
    assert waves.shape == (64, 192) and waves.square().mean() == pytest.approx(0.5, abs=0.05)
    alike = torch.nn.functional.normalize(waves, dim=1) @ torch.nn.functional.normalize(waves, dim=1).T
    alike.fill_diagonal_(0)
    assert alike.max() < 0.97, "no two patches have the same"
    assert alike[0, 1] == pytest.approx(float(alike[0, 8]), abs=1e-5), "rows and columns alike"
    assert alike[0, 1] > alike[0, 63]


def test_a_blind_step_sees_the_volumes_of_the_unconditional_case():
    volume = build_volume(ARCHITECTURE)
    views, t_embed, v_embed = torch.tensor([[3, 4]]), torch.zeros(1, 128), torch.zeros(1, 16, 4)
    full = volume.frustums(torch.zeros(1, 16, 16, 16, 16), t_embed, v_embed, views)
    empty = multiview.empty_frustums(volume.config, 2)
    assert [level.shape for level in empty] == [level.shape for level in full]
    assert not any(level.any() for level in empty)


def test_latents_of_other_scenes_are_refused(scenes, tmp_path):
    vae = build_autoencoder()
    multiview.encode_scenes(vae, scenes, tmp_path / "latents.npz")
    fewer = multiview_dataset.Scenes(**{n: getattr(scenes, n)[:2] for n in multiview_dataset.Scenes.__annotations__})
    with pytest.raises(ValueError, match="holds 3 scenes, expected 2. Remove"):
        multiview.encode_scenes(vae, fewer, tmp_path / "latents.npz")


def test_without_scenes_it_says_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="multiview_dataset"):
        multiview_dataset.load_dataset(tmp_path)


# The embedded weights


def test_a_plain_git_push_takes_the_weights():
    folders = [TOYBOX, MULTIVIEW_WEIGHTS, SURFACE_WEIGHTS]
    sizes = {path: path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert max(sizes.values()) <= 9 * MEGABYTE, max(sizes, key=sizes.get)
    assert sum(sizes.values()) <= 40 * MEGABYTE
    assert all(path.suffix in (".json", ".safetensors") for path in sizes), "safetensors only"


def test_it_beats_the_repeated_input_by_far(embedded):
    for name in ("unet", "volume", "image_encoder"):
        assert next(embedded.components[name].parameters()).dtype == torch.float32
    for trial in benchmark.trained_trials(2):
        model = benchmark.psnr(benchmark.generate(embedded, trial), trial.truth)
        assert model > benchmark.psnr(benchmark.repeated_input(trial), trial.truth) + 2


def test_a_seed_decides_the_views(embedded):
    photo = multiview_dataset.take_photo(world.make_scene("car", "blue").shape, 30, 10, 2.5)
    first, again, other = (
        embedded(
            photo, 10, num_inference_steps=2, generator=torch.Generator().manual_seed(seed), output_type="pt"
        ).images
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


# The benchmark's own arithmetic


def test_what_seeds_are_worth_by_hand(monkeypatch):
    """Sheets that are wrong by 0.1, 0.01 and 0.1 everywhere; the first and the last are the same one."""
    truth = np.zeros((16, 4, 4, 3))
    sheets = [torch.full(truth.shape, error, dtype=torch.float64) for error in (0.1, 0.01, 0.1)]

    def found(pipe, photo, elevation_deg, seeds, num_inference_steps):
        assert list(seeds) == [0, 1, 2] and num_inference_steps == 5
        return [SimpleNamespace(images=sheet) for sheet in sheets]

    monkeypatch.setattr(view_steps, "best_of_seeds", found)
    figures = view_steps.measure(None, [benchmark.Trial(None, None, 0.0, 0.0, truth)], 5, 3)
    assert (figures["one_seed"], figures["chosen"], figures["best"]) == (26.67, 20.0, 40.0)
    assert figures["spread"] == round(-20 * np.log10(0.09), 2), "of the pairs that differ"
    sheets[:] = sheets[:1] * 3
    assert view_steps.measure(None, [benchmark.Trial(None, None, 0.0, 0.0, truth)], 5, 3)["spread"] is None


def test_psnr_by_hand():
    truth = np.zeros((1, 2, 2, 3))
    images = truth.copy()
    images[0, 0, 0] = 0.1
    weight = np.zeros((1, 2, 2, 1))
    weight[0, 0, 0] = 1
    assert benchmark.psnr(images, truth) == pytest.approx(20 + 10 * np.log10(4))
    assert benchmark.psnr(images, truth, weight) == pytest.approx(20)


def test_the_mean_of_a_kind_knows_the_kind_and_with_turning_the_azimuth():
    trial = benchmark.make_trial(world.make_scene("car", "blue"), np.random.default_rng(0))
    rng = np.random.default_rng(0)
    turned, plain = benchmark.mean_of_kind(trial, rng, True), benchmark.mean_of_kind(trial, rng, False)
    assert turned.shape == trial.truth.shape and plain.shape == (1, 64, 64, 3)
    assert benchmark.psnr(turned, trial.truth) > benchmark.psnr(plain, trial.truth) > 8


def test_silhouettes_of_the_truth_itself_agree(analytic_field):
    """A ball as a field and as a mask: the cameras off the ring look at the same thing."""

    class Ball:
        def render(self, camera: Camera, size: int):
            return argparse.Namespace(opacity=torch.from_numpy(multiview_dataset.look(shape, camera, size).mask))

    scene = world.make_scene("ball", "red")
    shape = scene.shape
    trial = benchmark.Trial(scene, None, 77.0, 0.0, None)
    assert benchmark.silhouette_iou(Ball(), trial) == 1.0
