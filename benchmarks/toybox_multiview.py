"""Benchmark of the embedded Toybox multi-view model: one photo in, sixteen views and a 3D asset out.

    python -m benchmarks.toybox_multiview --figure examples/pictures/toybox_multiview.png

The inputs are photos of scenes that were not used in training. The scenes are single objects and pairs, as in the
training distribution. The photos have any azimuth and an elevation of -10 to 40 degrees. The model is called with
default arguments. The last line printed is one JSON object.

PSNR is in dB, for values in [0, 1] on white. The PSNR of a scene uses the mean squared error over its sixteen views.
All values are means over the scenes:

    model           PSNR of the generated views: `psnr` of all views, `first` of view 0, and `back` of view 8. View 0
                    has the azimuth of the photo
    held_out        the same for kind-color combinations that are held out from training
    input_repeated  PSNR of a baseline: the photo stands for all views. The photo has the true size of the object,
                    which the model does not receive
    input_as_framed the same, with the photo framed as for the model
    mean_of_kind    PSNR of a baseline: the mean of training views of the correct kind at random azimuths. For a pair,
                    the training views show both kinds
    mean_of_kind_turned
                    the same, with all training objects at the true azimuth
    margin          PSNR of the model minus the PSNR of the better of `input_repeated` and `mean_of_kind`
    object          PSNR of the model and of `input_repeated` over the pixels of the object
    silhouette_iou  IoU of the silhouettes of the true object and of an asset that `HiFAPipeline` makes from the photo.
                    The cameras are not on the ring: their elevations are 0, 15 and 55 degrees, and their azimuths are
                    half-way between those of the ring
    silhouette_iou_worst
                    minimum of the same IoU over the scenes
    silhouette_iou_true_views
                    mean of the same IoU for reconstructions from true views, for the first `--assets` / 4 scenes
    seconds_per_sheet, seconds_per_asset
                    wall-clock time. Only these values depend on the machine
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hifa import HiFAAsset, HiFAConfig, HiFAPipeline, Photo
from hifa.cameras import Camera
from hifa.multiview import SyncDreamerPipeline
from hifa.toybox import world
from hifa.toybox.training.multiview_dataset import framed, look, ring_from, sample_photo_camera, take_photo


# Seeds that are not used in training. The multi-view model uses seeds from 10,000,000. The surface model uses seeds
# from 20,000,000.
SCENE_SEED, HELD_OUT_SEED, KIND_SEED = 30_000_000, 31_000_000, 32_000_000
OTHERS = 12  # number of training scenes in the mean of a kind
UNSEEN_ELEVATIONS_DEG, UNSEEN_AZIMUTHS_DEG = (0.0, 15.0, 55.0), (11.25, 101.25, 191.25, 281.25)
MASK_SIZE = 64


@dataclass(frozen=True)
class Trial:
    """A photo and the true views of a scene.

    Args:
        scene: Scene of the world.
        photo: RGBA image.
        azimuth_deg, elevation_deg: Camera of the photo. View 0 has the azimuth of the photo.
        truth: True views, `(16, 64, 64, 3)` in [0, 1].
    """

    scene: world.Scene
    photo: Image.Image
    azimuth_deg: float
    elevation_deg: float
    truth: np.ndarray


def make_trial(scene: world.Scene, rng: np.random.Generator) -> Trial:
    azimuth, (elevation, radius) = rng.uniform(0, 360), sample_photo_camera(rng)
    photo = take_photo(scene.shape, azimuth, elevation, radius)
    return Trial(scene, photo, azimuth, elevation, ring_views(scene, azimuth))


def ring_views(scene: world.Scene, azimuth_deg: float, every: int = 1) -> np.ndarray:
    """Render every `every`-th view of the ring: `(16 / every, 64, 64, 3)` in [0, 1]."""
    return np.stack([look(scene.shape, camera).color for camera in ring_from(azimuth_deg)[::every]])


def trained_trials(count: int) -> list[Trial]:
    """Return trials with scenes of the training distribution. The seeds of the scenes are not used in training."""
    rngs = [np.random.default_rng(SCENE_SEED + index) for index in range(count)]
    return [make_trial(world.sample_scene(rng), rng) for rng in rngs]


def held_out_trials(count: int) -> list[Trial]:
    """Return trials with single objects of held-out combinations."""
    pairs, trials = world.combinations(held_out=True), []
    for index in range(count):
        rng = np.random.default_rng(HELD_OUT_SEED + index)
        trials.append(make_trial(world.make_scene(*pairs[index % len(pairs)], rng), rng))
    return trials


def psnr(images: np.ndarray, truth: np.ndarray, weight: np.ndarray | float = 1.0) -> float:
    """Return the PSNR of images `(views, H, W, 3)` in dB. `weight` `(views, H, W, 1)` weights the squared error."""
    weight = np.broadcast_to(weight, truth.shape)
    return float(-10 * np.log10((weight * (images - truth) ** 2).sum() / weight.sum()))


def object_weight(trial: Trial) -> np.ndarray:
    """Return the masks of the object in the true views, `(16, 64, 64, 1)`. A mask is 1 on the object."""
    masks = [look(trial.scene.shape, camera).mask for camera in ring_from(trial.azimuth_deg)]
    return np.stack(masks)[..., None]


# Baselines


def repeated_input(trial: Trial) -> np.ndarray:
    """Render the scene from the direction of the photo, at the distance of the ring: `(1, 64, 64, 3)`."""
    ring = ring_from(0.0)[0]
    camera = Camera(trial.azimuth_deg, trial.elevation_deg, ring.radius, ring.fov_deg)
    return look(trial.scene.shape, camera).color[None]


def mean_of_kind(trial: Trial, rng: np.random.Generator, turned: bool) -> np.ndarray:
    """Return the mean view over training scenes with the same kind as the trial.

    Args:
        trial: The trial.
        rng: Random generator for scenes and azimuths.
        turned: Use the azimuth of the trial instead of random azimuths.

    Returns:
        `(16, 64, 64, 3)` if `turned`, otherwise `(1, 64, 64, 3)`.
    """
    trained = world.combinations(held_out=False)

    def color_of(kind: str) -> str:
        own = [color for other, color in trained if other == kind]
        return own[rng.integers(len(own))]

    sheets = []
    for _ in range(OTHERS):
        kind, on_kind = trial.scene.kind, trial.scene.on_kind
        if on_kind is None:
            scene = world.make_scene(kind, color_of(kind), rng)
        else:
            scene = world.make_pair(kind, color_of(kind), on_kind, color_of(on_kind), rng)
        azimuth, every = (trial.azimuth_deg, 1) if turned else (rng.uniform(0, 360), 4)
        sheets.append(ring_views(scene, azimuth, every))
    mean = np.mean(sheets, 0)
    # With random azimuths, the expected mean is the same for all views. Average the views for a better estimate.
    return mean if turned else mean.mean(0, keepdims=True)


# The model


def generate(pipe: SyncDreamerPipeline, trial: Trial, seed: int = 0) -> np.ndarray:
    """Generate the views of a photo with default arguments: `(16, 64, 64, 3)` in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    output = pipe(trial.photo, trial.elevation_deg, generator=generator, output_type="np")
    return output.images  # pyright: ignore[reportAttributeAccessIssue]


def unseen_cameras() -> list[Camera]:
    """Return cameras that are not on the ring, at the distance of the ring. Azimuth 0 is the azimuth of the photo."""
    ring = ring_from(0.0)[0]
    return [
        Camera(azimuth, elevation, ring.radius, ring.fov_deg)
        for elevation in UNSEEN_ELEVATIONS_DEG
        for azimuth in UNSEEN_AZIMUTHS_DEG
    ]


def silhouette_iou(asset: HiFAAsset, trial: Trial) -> float:
    """Return the mean intersection over union of the masks from the unseen cameras."""
    values = []
    for camera in unseen_cameras():
        ours = asset.render(camera, MASK_SIZE).opacity.numpy() > 0.5
        turned = Camera(camera.azimuth_deg + trial.azimuth_deg, camera.elevation_deg, camera.radius, camera.fov_deg)
        truth = look(trial.scene.shape, turned, MASK_SIZE).mask > 0.5
        values.append((ours & truth).sum() / (ours | truth).sum())
    return float(np.mean(values))


def make_asset(pipe: HiFAPipeline, config: HiFAConfig, **given) -> HiFAAsset:
    """Run a reconstruction without a prior from seed 0."""
    run = pipe.start(None, config=config, generator=torch.Generator().manual_seed(0), **given)
    for _ in pipe.advance(run):
        pass
    return run.asset()


# Measurements


def measure_views(pipe: SyncDreamerPipeline, trials: list[Trial]) -> tuple[list[np.ndarray], dict]:
    clock, sheets = time.time(), []
    for index, trial in enumerate(trials):
        sheets.append(generate(pipe, trial))
        print(f"{index + 1} of {len(trials)}: {psnr(sheets[-1], trial.truth):.2f} dB {name_of(trial)}", flush=True)
    pairs = list(zip(sheets, [trial.truth for trial in trials], strict=True))
    return sheets, {
        "psnr": mean(psnr(sheet, truth) for sheet, truth in pairs),
        "first": mean(psnr(sheet[:1], truth[:1]) for sheet, truth in pairs),
        "back": mean(psnr(sheet[8:9], truth[8:9]) for sheet, truth in pairs),
        "seconds_per_sheet": round((time.time() - clock) / len(trials), 2),
    }


def name_of(trial: Trial) -> str:
    below = "" if trial.scene.on_kind is None else f" on {trial.scene.on_color} {trial.scene.on_kind}"
    return f"{trial.scene.color} {trial.scene.kind}{below}"


def measure_baselines(trials: list[Trial]) -> dict:
    rng = np.random.default_rng(KIND_SEED)
    return {
        "input_repeated": mean(psnr(repeated_input(trial), trial.truth) for trial in trials),
        "input_as_framed": mean(psnr(framed(trial.photo)[None] / 255, trial.truth) for trial in trials),
        "mean_of_kind": mean(psnr(mean_of_kind(trial, rng, False), trial.truth) for trial in trials),
        "mean_of_kind_turned": mean(psnr(mean_of_kind(trial, rng, True), trial.truth) for trial in trials),
    }


def measure_assets(multiview: SyncDreamerPipeline, trials: list[Trial], steps: int | None) -> dict:
    pipe = HiFAPipeline.from_pretrained()
    changes = {} if steps is None else {"num_inference_steps": steps}
    changes["given_size"] = multiview.image_size
    made, true = HiFAConfig.hallucinated(**changes), HiFAConfig.reconstruction(**changes)  # the default configs
    clock, values = time.time(), []
    for trial in trials:
        photo = {"image": Photo(trial.photo, trial.elevation_deg, multiview)}
        values.append(silhouette_iou(make_asset(pipe, made, **photo), trial))
        print(f"silhouette IoU {values[-1]:.3f} {name_of(trial)}", flush=True)
    seconds = (time.time() - clock) / len(trials)
    true_views = [
        silhouette_iou(make_asset(pipe, true, views=trial.truth), trial) for trial in trials[: -(-len(trials) // 4)]
    ]
    return {
        "assets": len(values),
        "steps": made.num_inference_steps,
        "silhouette_iou": round(float(np.mean(values)), 4),
        "silhouette_iou_worst": round(min(values), 4),
        "silhouette_iou_true_views": round(float(np.mean(true_views)), 4),
        "seconds_per_asset": round(seconds, 1),
    }


@torch.no_grad()
def mean(values) -> float:
    return round(float(np.mean(list(values))), 2)


def write_figure(path: Path, trials: list[Trial], sheets: list[np.ndarray], columns: int = 8) -> None:
    """Write two rows per trial. The first row has the framed photo and `columns` generated views.

    The second row has the true views.
    """
    step, rows = 16 // columns, []
    for trial, sheet in zip(trials, sheets, strict=True):
        photo = framed(trial.photo) / 255
        for first, views in ((photo, sheet), (np.ones_like(photo), trial.truth)):
            rows.append(np.concatenate([first, np.ones((64, 8, 3)), *views[::step]], 1))
    pixels = (np.concatenate(rows) * 255).round().astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, optimize=True)


def run(arguments: argparse.Namespace) -> dict:
    """Run all measurements. The top of this file describes the keys."""
    pipe = SyncDreamerPipeline.from_pretrained(*([arguments.model] if arguments.model else []), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    trials = trained_trials(arguments.scenes)
    sheets, model = measure_views(pipe, trials)
    if arguments.figure is not None:
        write_figure(arguments.figure, trials[: arguments.rows], sheets[: arguments.rows])
    result = {"scenes": len(trials), "model": model}
    if arguments.held_out:
        result["held_out"] = measure_views(pipe, held_out_trials(arguments.held_out))[1]
    result |= measure_baselines(trials)
    result["margin"] = round(model["psnr"] - max(result["input_repeated"], result["mean_of_kind"]), 2)
    weights = [object_weight(trial) for trial in trials]
    scored = list(zip(sheets, trials, weights, strict=True))
    result["object"] = {
        "model": mean(psnr(sheet, trial.truth, weight) for sheet, trial, weight in scored),
        "input_repeated": mean(psnr(repeated_input(trial), trial.truth, weight) for _, trial, weight in scored),
    }
    if arguments.assets:
        result |= measure_assets(pipe, trials[: arguments.assets], arguments.steps)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of another multi-view pipeline; default: the embedded one")
    parser.add_argument("--scenes", type=int, default=64, help="number of new scenes")
    parser.add_argument("--held-out", type=int, default=28, help="number of scenes of held-out combinations")
    parser.add_argument("--assets", type=int, default=64, help="number of scenes to make assets of")
    parser.add_argument("--steps", type=int, help="steps per reconstruction, for a trial; default: the preset's")
    parser.add_argument("--figure", type=Path, help="write a contact sheet of photos, generated views and true views")
    parser.add_argument("--rows", type=int, default=8, help="number of scenes on the contact sheet")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
