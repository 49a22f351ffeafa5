"""Ablations: the claims of the paper, tested on Toybox with 12 prompts x 2 seeds for HiFA and each variant.

    python -m benchmarks.ablations

The benchmark makes the assets with `hifa.batch` and caches the measures next to the assets, so an interrupted
benchmark resumes. The benchmark writes the page `benchmarks/RESULTS.md` and the figures in `benchmarks/results/`. The
remarks on the page come from `benchmarks/ablations/remarks.md`.

The last line printed is one JSON object. The first entry, `seconds`, holds the time of one run for some variants,
measured side by side. Each other entry holds the means of all measures of one variant. The function `measure` in
`benchmarks/ablations/measures.py` describes the measures. Two measures are added here: `late` is the share of correct
views at the end of a run minus the share after 60 % of the run, and `diversity` is the distance between seeds.

A trial has fewer variants, prompts, seeds or steps, or another prior. A trial writes its page and figures to the
output folder of the runs.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

import hifa
from hifa import TOYBOX, HiFAAsset, HiFAPipeline
from hifa.batch import read_jobs

from ..judge import JUDGE, WEIGHTS, Judge, load_judge
from ..text_to_3d import Prompt
from . import flicker
from . import variants as settings
from .about import about
from .claims import claims_about
from .figures import asset_sheet, plot_differences
from .kept import digest, kept
from .measures import diversity, measured
from .report import Table, page, read_remarks
from .statistics import bootstrap
from .times import kept_times
from .variants import HIFA, Variant


PAGE, FIGURES = Path("benchmarks/RESULTS.md"), Path("benchmarks/results")
REMARKS = Path(__file__).parent / "remarks.md"
LATE = 0.6  # fraction of a run after which an intermediate asset is saved, to measure losses later in the run
FLICKERING = (HIFA, "no-kernel")
TIMED = (HIFA, "several-equal", "sds", "vsd-equal")
# --variants, --prompts, --seeds, --steps, --prior
DEFAULTS = (None, settings.PROMPTS, settings.SEEDS, settings.STEPS, TOYBOX)
JPEG_QUALITY = 88


def command(jobs: Path, output_dir: Path, prior: Path, processes: int) -> list[str]:
    """Return the command that runs `hifa.batch`.

    The command uses `torch.distributed.run`, because `accelerate launch` requires MPI on a machine without a GPU.
    """
    launcher = [sys.executable]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    options = ["--output-dir", str(output_dir), "--model", str(prior), "--preset", "fast", "--asset-only"]
    return [*launcher, "-m", "hifa.batch", str(jobs), *options, "--assets-at", str(LATE)]


def check_made_of(output_dir: Path, prior: Path) -> None:
    """Check that the runs in the output folder were made with the same weights and the same code as now.

    Raises:
        ValueError: If the weights or the code have changed.
    """
    sources = [path for path in Path(hifa.__file__).parent.rglob("*.py") if "space" not in path.parts]
    made_of = sorted([*sources, *prior.rglob("*.safetensors")])
    key, note = digest(*(path.read_bytes() for path in made_of)), output_dir / "made_of.txt"
    if note.exists() and note.read_text() != key:
        raise ValueError(
            f"{output_dir} holds runs with other code or weights. Choose another --output-dir, or delete the folder."
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    note.write_text(key)


def make_assets(rows: list[dict], arguments: argparse.Namespace) -> list[Path]:
    """Run all jobs to the end. Return the folders of the runs, in the order of `rows`.

    Raises:
        CalledProcessError: If a run fails. `hifa.batch` prints the error.
    """
    jobs = arguments.output_dir / "jobs.jsonl"
    jobs.write_text("\n".join(map(json.dumps, rows)))
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.processes))}
    launch = command(jobs, arguments.output_dir, arguments.prior, arguments.processes)
    subprocess.run(launch, check=True, env=environment)
    return [arguments.output_dir / job.name for job in read_jobs(jobs)]


def kept_asset(folder: Path, step: int) -> Path:
    """Return the folder of the intermediate asset that `hifa.batch` saved at a step."""
    return folder / f"asset-{step:05d}"


def measure_all(
    compared: list[Variant], prompts: list[Prompt], folders: list[Path], judge: Judge, key: bytes, steps: int
) -> Table:
    """Return the measures of all variants. The folders are in the order of `variants.jobs`."""
    table: Table = {}
    per_variant, seeds = len(folders) // len(compared), len(folders) // (len(compared) * len(prompts))
    for index, variant in enumerate(compared):
        rows = []
        late_step = round(LATE * variant.changes.get("num_inference_steps", steps))
        for place, folder in enumerate(folders[index * per_variant : (index + 1) * per_variant]):
            number = place // seeds
            row = measured(folder / "asset", prompts[number], number, judge, key)
            earlier = measured(kept_asset(folder, late_step), prompts[number], number, judge, key)
            rows.append(row | {"late": row["right"] - earlier["right"]})
        shape = (len(prompts), seeds)
        features = np.array([row["features"] for row in rows], np.float32)
        names = [name for name in rows[0] if name not in ("key", "features")]
        table[variant.name] = {name: np.array([row[name] for row in rows]).reshape(shape) for name in names}
        if seeds > 1:
            by_prompt = features.reshape(*shape, *features.shape[1:])
            table[variant.name]["diversity"] = np.array([[diversity(seen)] for seen in by_prompt])
        print(f"measured: {variant.label}, {100 * table[variant.name]['right'].mean():.1f} % right", flush=True)
    return table


def chosen(compared: list[Variant], names: list[str] | None) -> list[Variant]:
    """Return the variants with these names, or all variants if `names` is `None`.

    Raises:
        ValueError: If a name is unknown.
    """
    if names is None:
        return compared
    known = [variant.name for variant in compared]
    if unknown := set(names) - set(known):
        raise ValueError(f"--variants takes {', '.join(known)}; got {', '.join(sorted(unknown))}.")
    return [variant for variant in compared if variant.name in names]


def flicker_in(folder: Path) -> dict:
    """Return the result of `flicker_of` for the asset of a job. The result is cached next to the asset."""
    asset = folder / "asset"
    key = digest(Path(flicker.__file__).read_bytes(), (asset / SAFETENSORS_WEIGHTS_NAME).read_bytes())
    return kept(folder / "flicker.json", key, lambda: flicker.flicker_of(HiFAAsset.from_pretrained(asset)))


def write_figures(
    compared: list[Variant], prompts: list[Prompt], first: dict[str, list[Path]], table: Table, place: Path
) -> None:
    """Write both figures of each claim.

    Args:
        compared: All variants.
        prompts: All prompts.
        first: Folders of the runs with the first seed, by variant.
        table: Measures of all variants.
        place: Folder of the figures.
    """
    labels = {variant.name: variant.label for variant in compared}
    for claim in claims_about(first):
        plot_differences(claim, table, labels, place / f"{claim.name}.png")
        assets = {
            name: [HiFAAsset.from_pretrained(folder / "asset") for folder in first[name]] for name in claim.variants
        }
        sheet = asset_sheet(claim, assets, [prompt.text for prompt in prompts], labels)
        sheet.save(place / f"{claim.name}_assets.jpg", quality=JPEG_QUALITY)


def run(arguments: argparse.Namespace) -> dict:
    """Run the benchmark. Return the object for the last line."""
    judge = load_judge(arguments.judge)  # load first, so that a missing judge fails before the long runs
    pipe = HiFAPipeline.from_pretrained(arguments.prior)
    pipe.set_progress_bar_config(disable=True)
    prompts = settings.prompts(arguments.prompts)
    compared = chosen(settings.variants(pipe.scheduler, arguments.steps), arguments.variants)
    check_made_of(arguments.output_dir, arguments.prior)
    folders = make_assets(settings.jobs(compared, arguments.steps, prompts, arguments.seeds), arguments)
    key = (arguments.judge / WEIGHTS).read_bytes()
    table = measure_all(compared, prompts, folders, judge, key, arguments.steps)
    timed = [variant for variant in compared if variant.name in TIMED]
    times = kept_times(arguments.output_dir / "times.json", pipe, timed, arguments.steps, prompts[0].text)
    each = len(prompts) * arguments.seeds
    first = {
        variant.name: folders[index * each : (index + 1) * each : arguments.seeds]
        for index, variant in enumerate(compared)
    }
    flickers = {name: [flicker_in(folder) for folder in first[name]] for name in FLICKERING if name in first}
    # Write the page of a trial to the output folder.
    whole = (arguments.variants, arguments.prompts, arguments.seeds, arguments.steps, arguments.prior) == DEFAULTS
    place, figures = (
        (PAGE, FIGURES) if whole else (arguments.output_dir / PAGE.name, arguments.output_dir / FIGURES.name)
    )
    figures.mkdir(parents=True, exist_ok=True)
    write_figures(compared, prompts, first, table, figures)
    labels = {variant.name: variant.label for variant in compared}
    lines = about(compared, arguments.prompts, arguments.seeds, arguments.steps)
    place.write_text(page(table, flickers, times, labels, lines, read_remarks(REMARKS), figures.name))
    return {"seconds": {name: round(value, 1) for name, value in times.items()}} | {
        variant.name: {name: round(bootstrap(values).mean, 5) for name, values in table[variant.name].items()}
        for variant in compared
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", type=Path, default=TOYBOX, help="folder of a Stable Diffusion pipeline")
    parser.add_argument("--judge", type=Path, default=JUDGE, help="folder of another judge")
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks-cache/ablations"))
    parser.add_argument("--processes", type=int, default=2, help="number of parallel processes")
    parser.add_argument("--prompts", type=int, default=settings.PROMPTS, help="number of prompts; fewer for a trial")
    parser.add_argument("--seeds", type=int, default=settings.SEEDS)
    parser.add_argument(
        "--variants", nargs="+", help="run only these variants, and report only claims about these variants"
    )
    parser.add_argument(
        "--steps", type=int, default=settings.STEPS, help="steps of HiFA; the steps of the other variants are derived"
    )
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
