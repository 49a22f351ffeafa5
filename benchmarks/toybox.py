"""Benchmark of the embedded Toybox prior, a stock Stable Diffusion pipeline, with `benchmarks.judge` as classifier.

    python -m benchmarks.toybox --figure samples.png

The last line printed is one JSON object:

    autoencoder_psnr_db   encode -> mean -> decode of unseen renders, including pairs; pixels in [0, 1]
    trained, held_out     shares of samples that match their caption, for trained and for held-out kind-color
                          combinations; `benchmarks.judge` describes how views count
    trained_renders, held_out_renders
                          the same shares for renders of the same captions: the values of a perfect prior
    kid, kid_of_renders   kernel inception distance, in features of the judge, from the trained samples, and from other
                          renders, to renders of the same captions. The second is the value of a perfect prior. It is
                          slightly below 0, because sets with the same captions are more alike than independent sets
    seconds_per_sample    wall-clock time of the trained samples; the only number that depends on the machine

Every image has a fixed seed of its own, so the samples do not depend on `--batch`.
"""

import argparse
import json
import time
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from hifa.toybox import world
from hifa.toybox.training import dataset
from hifa.toybox.training.autoencoder import psnr

from .judge import (
    COLORS,
    JUDGE,
    KINDS,
    VIEWS,
    Judge,
    kernel_inception_distance,
    labels_of,
    load_judge,
    score,
    take_picture,
    to_unit,
)


# Seeds that are not used in training. The prior's seeds are below 1,000,000, the judge's start with 7,000,000.
AUTOENCODER_SEED, SAMPLE_SEED, HELD_OUT_SEED = 1_000_000, 2_000_000, 3_000_000
RENDER_SEED, OTHER_RENDER_SEED, FIGURE_SEED = 4_000_000, 5_000_000, 6_000_000


def unseen_pictures(count: int) -> torch.Tensor:
    """Render one view of each of `count` new scenes of the training distribution: `(count, 64, 64, 3)` uint8."""
    renders = [dataset.render_scene(seed, views=1)[0] for seed in range(AUTOENCODER_SEED, AUTOENCODER_SEED + count)]
    return torch.from_numpy(np.concatenate(renders))


def trained_labels(count: int) -> np.ndarray:
    """Return `(count, 5)` labels of single objects: random trained combinations in random views."""
    rng, trained = np.random.default_rng(SAMPLE_SEED), world.combinations(held_out=False)
    rows = [(*trained[rng.integers(len(trained))], VIEWS[rng.integers(len(VIEWS))]) for _ in range(count)]
    return np.array([labels_of(*row) for row in rows])


def held_out_labels(repeats: int) -> np.ndarray:
    """Return `(28 * 4 * repeats, 5)` labels: every held-out combination in every view, `repeats` times."""
    return np.array([labels_of(*pair, view) for pair in world.combinations(held_out=True) for view in VIEWS] * repeats)


def captions(labels: np.ndarray, seed: int) -> list[str]:
    """Return a caption for each row, in varied words, with its view."""
    rows = enumerate(labels)
    return [world.caption(dataset.scene_of(row), np.random.default_rng([seed, i]), VIEWS[row[4]]) for i, row in rows]


def render_labels(labels: np.ndarray, seed: int) -> torch.Tensor:
    """Render the rows on backgrounds as in the training set: `(n, 3, 64, 64)` in [0, 1]."""
    pixels = []
    for index, (kind, color, _, _, view) in enumerate(labels):
        rng = np.random.default_rng([seed, index])
        scene = world.make_scene(KINDS[kind], COLORS[color], rng)
        pixels.append(take_picture(scene, VIEWS[view], rng, dataset.sample_background(rng)))
    return to_unit(torch.from_numpy(np.stack(pixels)))


def sample(
    pipeline: StableDiffusionPipeline, prompts: list[str], seed: int, steps: int, guidance: float, batch: int
) -> torch.Tensor:
    """Sample one image per prompt, `(n, 3, 64, 64)` in [0, 1]. The noise of prompt i has the seed `seed + i`."""
    images = []
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        generators = [torch.Generator().manual_seed(seed + first + i) for i in range(len(part))]
        output = pipeline(
            part, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
        )
        images.append(torch.from_numpy(output.images).permute(0, 3, 1, 2))  # (B, 64, 64, 3) -> (B, 3, 64, 64)
        print(f"{first + len(part)} of {len(prompts)} samples", flush=True)
    return torch.cat(images)


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load the prior as a diffusers pipeline in float32, without a progress bar.

    Raises:
        FileNotFoundError: If the folder has no pipeline. diffusers would look up the name on the Hub.
    """
    if not (folder / "model_index.json").exists():
        raise FileNotFoundError(
            f"No diffusers pipeline in {folder}. Train one with: python -m hifa.toybox.training.diffusion"
        )
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def contact_sheet(pictures: torch.Tensor, names: list[str], columns: int = 3, scale: int = 2) -> Image.Image:
    """Draw samples below their names.

    Args:
        pictures: `(4 n, 3, 64, 64)` in [0, 1], with the four views of each of n objects in a row.
        names: The n objects.
        columns: Objects side by side.
        scale: Pixels on the sheet per pixel of an image.
    """
    side, text = 64 * scale, 20
    rows = -(-len(names) // columns)
    sheet = Image.new("RGB", (columns * (4 * side + text), rows * (side + text) + text), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    pixels = (pictures.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    for index, name in enumerate(names):
        x, y = index % columns * (4 * side + text) + text // 2, index // columns * (side + text) + text
        draw.text((x, y + 1), name, "black", font)
        for view in range(4):
            tile = Image.fromarray(pixels[4 * index + view]).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(tile, (x + view * side, y + text))
            if index < columns:
                draw.text((x + view * side, 1), VIEWS[view], "gray", font)
    return sheet


def figure_captions() -> tuple[list[str], list[str]]:
    """Return the names of the 24 kinds, each in a trained color, and their 96 plain captions, four views per kind."""
    trained, names = world.combinations(held_out=False), []
    for index, kind in enumerate(KINDS):
        own = [color for other, color in trained if other == kind]
        names.append(f"{own[5 * index % len(own)]} {kind}")
    articles = ["an" if name[0] in "aeiou" else "a" for name in names]
    return names, [f"{a} {name}, {view}" for a, name in zip(articles, names, strict=True) for view in VIEWS]


def print_weakest(right_kind: torch.Tensor, labels: np.ndarray, count: int = 6) -> None:
    """Print the kinds with the lowest accuracy."""
    shares = {kind: float(right_kind[labels[:, 0] == i].float().mean()) for i, kind in enumerate(KINDS)}
    known = sorted((share, kind) for kind, share in shares.items() if share == share)  # a kind without samples is NaN
    print("weakest kinds: " + ", ".join(f"{kind} {share:.2f}" for share, kind in known[:count]), flush=True)


def run(arguments: argparse.Namespace) -> dict:
    """Run all measurements. The top of this file describes the keys."""
    pipeline, judge = load_pipeline(arguments.prior), load_judge(arguments.judge)
    result = {"autoencoder_psnr_db": round(psnr(pipeline.vae, unseen_pictures(arguments.renders)), 2)}
    how = {"steps": arguments.steps, "guidance": arguments.guidance, "batch": arguments.batch}
    # The 28 held-out combinations in 4 views, repeated to make about as many samples.
    sets = {
        "trained": (trained_labels(arguments.samples), SAMPLE_SEED),
        "held_out": (held_out_labels(max(1, round(arguments.samples / 112))), HELD_OUT_SEED),
    }
    for name, (labels, seed) in sets.items():
        clock = time.time()
        images = sample(pipeline, captions(labels, seed), seed, **how)
        seconds = (time.time() - clock) / len(images)
        renders, verdict = render_labels(labels, RENDER_SEED), judge.verdict(images)
        result[name] = {"samples": len(images), **score(verdict, labels)}
        result[f"{name}_renders"] = score(judge.verdict(renders), labels)
        print_weakest(verdict.kind == torch.from_numpy(labels[:, 0]), labels)
        if name == "trained":
            others = render_labels(labels, OTHER_RENDER_SEED)
            a, b, c = (features_of(judge, pictures) for pictures in (images, renders, others))
            result["kid"] = round(kernel_inception_distance(a, b), 5)
            result["kid_of_renders"] = round(kernel_inception_distance(c, b), 5)
            result["seconds_per_sample"] = round(seconds, 3)
    if arguments.figure is not None:
        names, prompts = figure_captions()
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(sample(pipeline, prompts, FIGURE_SEED, **how), names).save(arguments.figure)
    return {**result, **how}


@torch.no_grad()
def features_of(judge: Judge, pictures: torch.Tensor) -> torch.Tensor:
    """Return the features `(n, 192)` of `(n, 3, 64, 64)` images, with each row scaled to a mean square of 1.

    With this scale the cubic kernel lies between 1 and 8, so that no single image can dominate the distance.
    """
    features = torch.cat([judge.features(part) for part in pictures.split(256)])
    return features / features.square().mean(1, keepdim=True).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    packaged = Path(str(resources.files("hifa.toybox") / "weights"))
    parser.add_argument("--prior", type=Path, default=packaged, help="folder of a Stable Diffusion pipeline")
    parser.add_argument("--judge", type=Path, default=JUDGE, help="folder of another judge")
    parser.add_argument(
        "--samples", type=int, default=480, help="samples of trained combinations, and about as many of held-out ones"
    )
    parser.add_argument("--renders", type=int, default=256, help="unseen renders for the autoencoder")
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps")
    parser.add_argument("--guidance", type=float, default=4.0, help="classifier-free guidance scale")
    parser.add_argument("--batch", type=int, default=32, help="prompts per batch")
    parser.add_argument("--figure", type=Path, help="write a contact sheet of samples, every kind in four views")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
