"""Text to 3D with default settings: 24 prompts, 12 of them held out from training, and 8 judged views of each asset.

    python -m benchmarks.text_to_3d --output-dir benchmarks-cache/text-to-3d --figure text_to_3d.jpg

Assets that exist for the same prior and settings are reused, so an interrupted benchmark resumes. The judge
(`benchmarks.judge`) classifies 64x64 renders at every 45 degrees of azimuth and 15 degrees of elevation, on
backgrounds of the world. The verdicts on all views of all prompts go to `results.json`. The last line printed is one
JSON object:

    trained, never_trained    results of the trained and of the held-out prompts. `kind`, `color` and `kind_and_color`
                              are shares of correct views. `majority` is the share of assets whose most frequent kind
                              and color are correct
    kid                       kernel inception distance between renders of the assets and world renders with the same
                              captions and cameras. The features are those of the judge
    kid_prior                 the same distance for 2D samples of the prior instead of renders of the assets
    kid_prior_own_cameras     like `kid_prior`, but the world renders use any training camera that shows the view of
                              the caption. For all other distances, the elevation is 15 degrees
    kid_world                 the same distance for other world renders instead of renders of the assets. This is the
                              value of a perfect prior. The value is below 0, because two sets with the same captions
                              are more alike than independent sets
    kid_ratio                 (kid - kid_world) / (kid_prior - kid_world). The value is below 1 if the assets are
                              closer to the world than the samples of the prior
    diverged                  number of assets that are empty or opaque everywhere
    same_kind                 share of assets with the same predicted kind in all views
    front_and_back            share of assets with a correct front at azimuth 0 and a correct back at azimuth 180,
                              among the assets of kinds with a front
    consistent                share of assets with `same_kind` and, if the kind has a front, `front_and_back`
    z_variance                mean over opaque pixels, in squared world units
    seconds                   mean wall-clock time to optimize an asset
"""

import argparse
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hifa import TOYBOX, HiFAAsset, HiFAPipeline
from hifa.toybox import world
from hifa.toybox.render import orbit_pose, render
from hifa.toybox.training.dataset import CAMERA_RADIUS, FOV_DEG, SIZE, sample_background

from .judge import COLORS, JUDGE, KINDS, VIEWS, Judge, Verdict, kernel_inception_distance, labels_of, load_judge
from .toybox import features_of, load_pipeline, render_labels, sample


AZIMUTHS = tuple(range(0, 360, 45))
ELEVATION = 15.0
EMPTY, OPAQUE = 0.01, 0.95  # mean opacity over all views
# Seeds that are not used in training. See benchmarks.toybox.
BACKGROUND_SEED, WORLD_SEED, OTHER_WORLD_SEED, SAMPLE_SEED = 10_000_000, 11_000_000, 12_000_000, 13_000_000


# Prompts


class Prompt(NamedTuple):
    """A prompt for one object. `trained` is true if the prior was trained on this combination of kind and color."""

    kind: str
    color: str
    trained: bool

    @property
    def text(self) -> str:
        return world.caption(world.make_scene(self.kind, self.color))


def choose_prompts(count: int = 12, seed: int = 0) -> list[Prompt]:
    """Return `count` trained and `count` held-out combinations, alternating. All kinds are different.

    Half of the kinds in the held-out combinations have a front. The function draws the held-out combinations 1,000
    times and uses the first draw with the largest number of colors. The trained combinations use the remaining kinds,
    and all have different colors.
    """
    rng, pairs = np.random.default_rng(seed), world.combinations(held_out=True)
    draws = [_distinct_kinds([pairs[i] for i in rng.permutation(len(pairs))], count) for _ in range(1000)]
    unseen = max(draws, key=lambda draw: len({color for _, color in draw}))
    kinds = [str(kind) for kind in rng.permutation(sorted(set(KINDS) - {kind for kind, _ in unseen}))[:count]]
    while True:
        seen = list(zip(kinds, map(str, rng.permutation(COLORS)[:count]), strict=True))
        if not any(world.is_held_out(*pair) for pair in seen):
            break
    prompts = zip([Prompt(*pair, True) for pair in seen], [Prompt(*pair, False) for pair in unseen], strict=True)
    return [prompt for both in prompts for prompt in both]


def _distinct_kinds(pairs: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Return the first `count` pairs with different kinds. Half of the kinds have a front."""
    first = {}
    for kind, color in pairs:
        first.setdefault(kind, color)
    fronted = [pair for pair in first.items() if pair[0] in world.KINDS_WITH_FRONT][: count // 2]
    others = [pair for pair in first.items() if pair[0] not in world.KINDS_WITH_FRONT][: count - count // 2]
    return fronted + others


# Assets


def fingerprint(pipe: HiFAPipeline) -> str:
    """Return a short hash of the prior's weights, to distinguish the assets of different priors."""
    digest = hashlib.sha256()
    for model in (pipe.text_encoder, pipe.unet, pipe.vae):
        for tensor in model.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def make_asset(pipe: HiFAPipeline, prior: str, prompt: Prompt, folder: Path, **settings) -> HiFAAsset:
    """Return the asset in `folder` if its prompt, prior and settings match. Otherwise, make and save a new asset."""
    run = pipe.start(prompt.text, seed=0, **settings)
    wanted = {"prompt": prompt.text, "seed": 0, "prior_weights": prior, "config": run.config.to_dict()}
    if folder.exists():
        asset = HiFAAsset.from_pretrained(folder)
        if {name: asset.metadata.get(name) for name in wanted} == json.loads(json.dumps(wanted)):
            return asset
        shutil.rmtree(folder)
    for _ in pipe.advance(run):
        pass
    asset = run.asset()
    asset.metadata["prior_weights"] = prior
    # Rename the folder when the asset is complete, so that an interrupted benchmark leaves no partial asset.
    asset.save_pretrained(folder.with_suffix(".partial")).rename(folder)
    return asset


class Views(NamedTuple):
    """Renders of an asset: images `(8, 3, 64, 64)` in [0, 1], mean opacity, and mean z-variance of opaque pixels."""

    pictures: Tensor
    opacity: float
    z_variance: float


def render_views(asset: HiFAAsset, number: int) -> Views:
    """Render the views for the judge. The number of the asset seeds the backgrounds."""
    rng = np.random.default_rng([BACKGROUND_SEED, number])
    seen = [asset.render(asset.camera(azimuth, ELEVATION), SIZE, sample_background(rng)) for azimuth in AZIMUTHS]
    opacity, z_variance = (torch.stack([getattr(view, name) for view in seen]) for name in ("opacity", "z_variance"))
    opaque = z_variance[opacity > 0.5]
    return Views(
        torch.stack([view.color.permute(2, 0, 1) for view in seen]),
        float(opacity.mean()),
        float(opaque.mean()) if len(opaque) else 0.0,
    )


# Figures


def asset_row(prompt: Prompt, verdict: Verdict, views: Views, seconds: float) -> dict:
    """Return all results of one asset. The verdict is that of the judge on the views of the asset."""
    kinds = [KINDS[i] for i in verdict.kind.tolist()]
    colors = [COLORS[i] for i in verdict.color.tolist()]
    seen = [VIEWS[i] for i in verdict.view.tolist()]
    fronted = prompt.kind in world.KINDS_WITH_FRONT
    faces = (seen[AZIMUTHS.index(0)], seen[AZIMUTHS.index(180)]) == ("front view", "back view")
    return {
        "prompt": prompt.text,
        **prompt._asdict(),
        "kinds": kinds,
        "colors": colors,
        "views": seen,
        "kind_right": kinds.count(prompt.kind),
        "color_right": colors.count(prompt.color),
        "both_right": list(zip(kinds, colors, strict=True)).count((prompt.kind, prompt.color)),
        "majority": [Counter(kinds).most_common(1)[0][0], Counter(colors).most_common(1)[0][0]],
        "same_kind": len(set(kinds)) == 1,
        "front_and_back": faces if fronted else None,
        "consistent": len(set(kinds)) == 1 and (faces or not fronted),
        "opacity": round(views.opacity, 4),
        "z_variance": round(views.z_variance, 5),
        "diverged": not EMPTY <= views.opacity <= OPAQUE,  # also true for NaN
        "seconds": seconds,
    }


def share(values: list[float]) -> float | None:
    """Return the mean, or `None` for an empty list."""
    return round(float(np.mean(values)), 4) if values else None


def view_shares(rows: list[dict]) -> dict:
    """Return the shares of correct views, and the share of assets with a correct majority of views."""
    names = {"kind": "kind_right", "color": "color_right", "kind_and_color": "both_right"}
    return {
        "assets": len(rows),
        **{name: share([row[key] / len(AZIMUTHS) for row in rows]) for name, key in names.items()},
        "majority": share([row["majority"] == [row["kind"], row["color"]] for row in rows]),
    }


def summarize(rows: list[dict]) -> dict:
    """Return all results except the kernel inception distances. The top of this file describes the keys."""
    return {
        "trained": view_shares([row for row in rows if row["trained"]]),
        "never_trained": view_shares([row for row in rows if not row["trained"]]),
        "diverged": sum(row["diverged"] for row in rows),
        "same_kind": share([row["same_kind"] for row in rows]),
        "front_and_back": share([row["front_and_back"] for row in rows if row["front_and_back"] is not None]),
        "consistent": share([row["consistent"] for row in rows]),
        "z_variance": round(float(np.mean([row["z_variance"] for row in rows])), 5),
        "seconds": round(float(np.mean([row["seconds"] for row in rows])), 1),
    }


def world_views(prompts: list[Prompt], seed: int) -> Tensor:
    """Render objects of the world for n prompts, in the eight judged views: `(8 n, 3, 64, 64)` in [0, 1]."""
    pixels = []
    for number, prompt in enumerate(prompts):
        for azimuth in AZIMUTHS:
            rng = np.random.default_rng([seed, number, azimuth])
            shape = world.make_scene(prompt.kind, prompt.color, rng).shape
            pose = orbit_pose(azimuth, ELEVATION, CAMERA_RADIUS)
            pixels.append(render(shape, pose, SIZE, FOV_DEG, sample_background(rng)).color)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).clamp(0, 1)


def distances(judge: Judge, prior: Path, prompts: list[Prompt], pictures: Tensor) -> dict:
    """Return the kernel inception distances. `pictures` `(8 n, 3, 64, 64)` are renders of the assets."""
    named = [(prompt, world.view_of(azimuth, ELEVATION)) for prompt in prompts for azimuth in AZIMUTHS]
    captions = [f"{prompt.text}, {view}" for prompt, view in named]
    samples = sample(load_pipeline(prior), captions, SAMPLE_SEED, steps=25, guidance=4.0, batch=32)
    any_camera = render_labels(np.array([labels_of(p.kind, p.color, view) for p, view in named]), WORLD_SEED)
    reference, others = (features_of(judge, world_views(prompts, seed)) for seed in (WORLD_SEED, OTHER_WORLD_SEED))
    sampled = features_of(judge, samples)
    values = {
        "kid": kernel_inception_distance(features_of(judge, pictures), reference),
        "kid_prior": kernel_inception_distance(sampled, reference),
        "kid_prior_own_cameras": kernel_inception_distance(sampled, features_of(judge, any_camera)),
        "kid_world": kernel_inception_distance(others, reference),
    }
    values["kid_ratio"] = ratio_above(values["kid"], values["kid_prior"], values["kid_world"])
    return {name: round(value, 5) for name, value in values.items()}


def ratio_above(value: float, other: float, floor: float) -> float:
    """Return (value - floor) / (other - floor), or infinity if `other` equals `floor`."""
    return (value - floor) / (other - floor) if other != floor else float("inf")


def contact_sheet(assets: list[HiFAAsset], rows: list[dict], side: int = 112) -> Image.Image:
    """Draw one row per asset: prompt, verdict of the judge, and 8 views. Verdicts with wrong views are red.

    Args:
        assets: Assets to draw.
        rows: Results of the assets, as returned by `asset_row`.
        side: Pixels per side of a view.
    """
    text, top = 200, 22
    sheet = Image.new("RGB", (text + len(AZIMUTHS) * side, top + len(rows) * side), "white")
    draw, bold, plain = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(12)
    for column, azimuth in enumerate(AZIMUTHS):
        draw.text((text + column * side + 4, 4), f"{azimuth}\N{DEGREE SIGN}", "gray", plain)
    for index, (asset, row) in enumerate(zip(assets, rows, strict=True)):
        y, n = top + index * side, len(AZIMUTHS)
        draw.text((8, y + 12), row["prompt"], "black", bold)
        draw.text((8, y + 34), "" if row["trained"] else "never trained", "royalblue", plain)
        verdict = f"judge: {row['majority'][1]} {row['majority'][0]}, {row['both_right']} of {n}"
        draw.text((8, y + 54), verdict, "darkgreen" if row["both_right"] == n else "firebrick", plain)
        if row["front_and_back"] is not None:
            words = "front and back right" if row["front_and_back"] else "front or back wrong"
            draw.text((8, y + 72), words, "darkgreen" if row["front_and_back"] else "firebrick", plain)
        for column, azimuth in enumerate(AZIMUTHS):
            pixels = asset.render(asset.camera(azimuth, ELEVATION), side).color.numpy()
            tile = Image.fromarray((pixels * 255).round().astype(np.uint8))
            sheet.paste(tile, (text + column * side, y))
    return sheet


def run(arguments: argparse.Namespace) -> dict:
    """Run all measurements. Write `results.json` and the figure."""
    judge = load_judge(arguments.judge)  # load first, so that a missing judge fails before the long runs
    pipe = HiFAPipeline.from_pretrained(arguments.prior)
    prior, prompts = fingerprint(pipe), choose_prompts()[: arguments.limit]
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    assets, views, rows = [], [], []
    for number, prompt in enumerate(prompts):
        folder = arguments.output_dir / prompt.text.replace(" ", "-")
        assets.append(make_asset(pipe, prior, prompt, folder, num_inference_steps=arguments.steps))
        views.append(render_views(assets[-1], number))
        rows.append(asset_row(prompt, judge.verdict(views[-1].pictures), views[-1], assets[-1].metadata["seconds"]))
        print(f"{number + 1} of {len(prompts)}: {prompt.text}, {rows[-1]['both_right']} views right", flush=True)
    pictures = torch.cat([view.pictures for view in views])
    result = {**summarize(rows), **distances(judge, arguments.prior, prompts, pictures), "prior_weights": prior}
    (arguments.output_dir / "results.json").write_text(json.dumps({**result, "rows": rows}, indent=1))
    if arguments.figure is not None:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        order = sorted(range(len(rows)), key=lambda i: not rows[i]["trained"])
        contact_sheet([assets[i] for i in order], [rows[i] for i in order]).save(arguments.figure)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", type=Path, default=TOYBOX, help="folder of a Stable Diffusion pipeline")
    parser.add_argument("--judge", type=Path, default=JUDGE, help="folder of another judge")
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks-cache/text-to-3d"))
    parser.add_argument("--figure", type=Path, help="write a contact sheet of all assets")
    parser.add_argument("--limit", type=int, help="number of prompts, for a trial")
    parser.add_argument("--steps", type=int, help="steps per run, for a trial; default: the preset's")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
