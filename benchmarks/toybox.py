"""Benchmark of the embedded Toybox prior, a stock Stable Diffusion pipeline, with `benchmarks.judge` as classifier.

    python -m benchmarks.toybox --figure samples.png

The last line printed is one JSON object:

    autoencoder_psnr_db   PSNR of new renders after encoding to the mean latent and decoding. The renders include pairs
                          of objects. Pixels are in [0, 1]
    trained, held_out     shares of samples that match their captions, for trained and for held-out kind-color
                          combinations. `benchmarks.judge` describes which views count
    trained_renders, held_out_renders
                          the same shares for world renders of the same captions. These are the values of a perfect
                          prior
    kid                   kernel inception distance between the trained samples and world renders of the same captions,
                          in features of the judge
    kid_of_renders        the same distance for other world renders instead of samples. This is the value of a perfect
                          prior. The value is slightly below 0, because two sets with the same captions are more alike
                          than independent sets
    seconds_per_sample    wall-clock time of a trained sample. Only this value depends on the machine

Every image has its own fixed seed, so the samples do not depend on `--batch`.
"""

import argparse
import json
import time
from importlib import resources
from pathlib import Path
from typing import Any

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


# Seeds that are not used in training. The prior uses seeds below 1,000,000. The judge uses seeds from 7,000,000.
AUTOENCODER_SEED, SAMPLE_SEED, HELD_OUT_SEED = 1_000_000, 2_000_000, 3_000_000
RENDER_SEED, OTHER_RENDER_SEED, FIGURE_SEED = 4_000_000, 5_000_000, 6_000_000


def unseen_pictures(count: int) -> torch.Tensor:
    """Render one view of each of `count` new scenes of the training distribution: `(count, 64, 64, 3)` uint8."""
    renders = [dataset.render_scene(seed, views=1)[0] for seed in range(AUTOENCODER_SEED, AUTOENCODER_SEED + count)]
    return torch.from_numpy(np.concatenate(renders))


def trained_labels(count: int) -> np.ndarray:
    """Return labels `(count, 5)` of single objects: random trained combinations in random views."""
    rng, trained = np.random.default_rng(SAMPLE_SEED), world.combinations(held_out=False)
    rows = [(*trained[rng.integers(len(trained))], VIEWS[rng.integers(len(VIEWS))]) for _ in range(count)]
    return np.array([labels_of(*row) for row in rows])


def held_out_labels(repeats: int) -> np.ndarray:
    """Return labels `(28 * 4 * repeats, 5)`: every held-out combination in every view, `repeats` times."""
    return np.array([labels_of(*pair, view) for pair in world.combinations(held_out=True) for view in VIEWS] * repeats)


def captions(labels: np.ndarray, seed: int) -> list[str]:
    """Return a caption with varied words for each row of labels, including the view."""
    rows = enumerate(labels)
    return [world.caption(dataset.scene_of(row), np.random.default_rng([seed, i]), VIEWS[row[4]]) for i, row in rows]


def render_labels(labels: np.ndarray, seed: int) -> torch.Tensor:
    """Render the rows of labels, on backgrounds of the training set: `(n, 3, 64, 64)` in [0, 1]."""
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
        # (B, 64, 64, 3) -> (B, 3, 64, 64)
        images.append(torch.from_numpy(output.images).permute(0, 3, 1, 2))  # pyright: ignore[reportAttributeAccessIssue]
        print(f"{first + len(part)} of {len(prompts)} samples", flush=True)
    return torch.cat(images)


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load the prior as a diffusers pipeline in float32, without a progress bar.

    Raises:
        FileNotFoundError: If the folder has no pipeline. Without this check, diffusers would search the Hub.
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
        pictures: `(4 n, 3, 64, 64)` in [0, 1]: four consecutive views of each of n objects.
        names: Names of the n objects.
        columns: Number of objects side by side.
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
    """Return names and plain captions of 24 objects, one per kind. Each object has four captions, one per view."""
    trained, names = world.combinations(held_out=False), []
    for index, kind in enumerate(KINDS):
        own = [color for other, color in trained if other == kind]
        names.append(f"{own[5 * index % len(own)]} {kind}")
    articles = ["an" if name[0] in "aeiou" else "a" for name in names]
    return names, [f"{a} {name}, {view}" for a, name in zip(articles, names, strict=True) for view in VIEWS]


def print_weakest(right_kind: torch.Tensor, labels: np.ndarray, count: int = 6) -> None:
    """Print the `count` kinds with the lowest accuracy."""
    shares = {kind: float(right_kind[labels[:, 0] == i].float().mean()) for i, kind in enumerate(KINDS)}
    known = sorted((share, kind) for kind, share in shares.items() if share == share)  # a kind without samples is NaN
    print("weakest kinds: " + ", ".join(f"{kind} {share:.2f}" for share, kind in known[:count]), flush=True)


def run(arguments: argparse.Namespace) -> dict:
    """Run all measurements. The top of this file describes the keys."""
    pipeline, judge = load_pipeline(arguments.prior), load_judge(arguments.judge)
    result: dict[str, Any] = {"autoencoder_psnr_db": round(psnr(pipeline.vae, unseen_pictures(arguments.renders)), 2)}
    how = {"steps": arguments.steps, "guidance": arguments.guidance, "batch": arguments.batch}
    # Repeat the 28 held-out combinations in 4 views, to get about as many samples as for trained combinations.
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
    """Return features `(n, 192)` of images `(n, 3, 64, 64)`. Each row is scaled to a mean square of 1.

    With this scale, the cubic kernel is between 1 and 8, so no single image can dominate the distance.
    """
    features = torch.cat([judge.features(part) for part in pictures.split(256)])
    return features / features.square().mean(1, keepdim=True).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    packaged = Path(str(resources.files("hifa.toybox") / "weights"))
    parser.add_argument("--prior", type=Path, default=packaged, help="folder of a Stable Diffusion pipeline")
    parser.add_argument("--judge", type=Path, default=JUDGE, help="folder of another judge")
    parser.add_argument(
        "--samples",
        type=int,
        default=480,
        help="samples of trained combinations; about as many of held-out combinations",
    )
    parser.add_argument("--renders", type=int, default=256, help="number of new renders for the autoencoder")
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps")
    parser.add_argument("--guidance", type=float, default=4.0, help="classifier-free guidance scale")
    parser.add_argument("--batch", type=int, default=32, help="prompts per batch")
    parser.add_argument("--figure", type=Path, help="write a contact sheet with samples of every kind in four views")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
