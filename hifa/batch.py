"""Batch generation: many prompts, distributed over processes, GPUs and machines by accelerate.

    accelerate launch -m hifa.batch prompts.jsonl --output-dir OUT

For two processes on a CPU:

    torchrun --nproc-per-node 2 -m hifa.batch prompts.jsonl --output-dir OUT

Each line of a .jsonl file is an object with the key `prompt`. Optional keys are `negative_prompt`, `seed`, `name` (of
the output folder) and the fields of `HiFAConfig`. Each line of any other file is a prompt. Prompt 3, counted from 0,
is written to the folder `OUT/0003-its-name/`. `--set` changes the settings of all prompts. The fields of a line take
precedence.

Running the command again skips finished prompts and resumes interrupted runs. A prompt that fails does not stop the
batch. All failures are reported at the end, and the exit code is then 1.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from . import TOYBOX, HiFAConfig, HiFAPipeline, HiFARun, PromptEmbeddings
from .cli.options import (
    MODEL_HELP,
    RANGES,
    add_export_options,
    add_setting_options,
    add_surface_options,
    add_variant_option,
    check_normal_model,
    check_ranges,
    embed_first,
    export_asset,
    given_settings,
    load_pipeline,
    preset_config,
)
from .optimization.step import HiFAStep
from .prompts import check_prompt
from .storage.checkpoint import write_text_atomically
from .storage.files import file_name
from .storage.migration import current_metadata
from .storage.run_folder import is_saved_in, read_metadata


PRESETS = ("fast", "preview", "paper", "official", "mvdream")
DONE, FAILED = "done.json", "failed.txt"


@dataclass(frozen=True)
class Job:
    """A prompt of a batch file with its settings.

    Args:
        prompt, negative_prompt: See `HiFAPipeline.start`.
        name: Name of the output folder.
        seed: Seed of the run.
        settings: Fields of `HiFAConfig` that differ from the preset.
    """

    prompt: str
    name: str
    negative_prompt: str = ""
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


def read_jobs(path: Path) -> list[Job]:
    """Read all jobs of a file.

    Raises:
        ValueError: If the file is empty or a line is invalid. The message has the line number.
        OSError: If the file cannot be read.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    jobs = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            jobs.append(_job(json.loads(line) if path.suffix == ".jsonl" else {"prompt": line}, len(jobs)))
        except ValueError as error:  # includes json.JSONDecodeError
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not jobs:
        raise ValueError(f"{path} has no prompts. Write one prompt per line.")
    return jobs


def _job(row: Any, index: int) -> Job:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(f'Expected an object such as {{"prompt": "a red mushroom"}}, got {row!r}.')
    row = dict(row)
    known: dict[str, Any] = {"prompt": row.pop("prompt")}
    for name, kind in (("negative_prompt", str), ("seed", int), ("name", str)):
        if name in row:
            known[name] = row.pop(name)
            if not isinstance(known[name], kind) or isinstance(known[name], bool):
                raise ValueError(f"{name} must be of type {kind.__name__}, got {known[name]!r}.")
    unknown = set(row) - {setting.name for setting in fields(HiFAConfig)}
    if unknown:
        raise ValueError(f"Unknown settings: {', '.join(sorted(unknown))}. See `HiFAConfig` for the valid names.")
    known["name"] = f"{index:04d}-{file_name(known.get('name', known['prompt']))}"
    return Job(**known, settings=row)


def is_begun(folder: Path) -> bool:
    """Return whether a job is finished or has a saved run.

    The prompt of such a job is not encoded again, because a saved run stores the embeddings.
    """
    return (folder / DONE).exists() or is_saved_in(folder / "run")


def work(
    pipe: HiFAPipeline,
    job: Job,
    folder: Path,
    config: HiFAConfig | None,
    arguments: argparse.Namespace,
    prompt_embeds: PromptEmbeddings | None = None,
) -> bool:
    """Run one job to its end, or resume its saved run.

    Args:
        pipe: Pipeline with the prior.
        job: Job to run.
        folder: Output folder of the job.
        config: Settings; `None` for the default of the prior.
        arguments: `save_every`, `assets_at`, `asset_only` and the options of `options.export_asset`.
        prompt_embeds: Embeddings of the prompt, required if the text encoder is released.

    Returns:
        `True`, or `False` if the job was already finished.

    Raises:
        ValueError: For an invalid prompt or setting, an empty field, or a folder of another job.
        ExportError: If files cannot be exported. All files that the error does not name are written.
        OSError: If the folder cannot be written.
    """
    wanted = _facts(job, str(pipe.config.get("_name_or_path") or "custom"), config or pipe.default_config())
    if (folder / DONE).exists():
        _check_same(wanted, current_metadata(json.loads((folder / DONE).read_text("utf-8"))), folder)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED).unlink(missing_ok=True)
    if is_saved_in(folder / "run"):
        _check_same(wanted, read_metadata(folder / "run"), folder)
        run = HiFARun.load(folder / "run", pipe.device)
    else:
        if pipe.text_encoder is None and pipe.tokenizer is not None:  # `start` skips this check for embeddings
            check_prompt(pipe.tokenizer, job.prompt, job.negative_prompt)
        given = {"prompt_embeds": prompt_embeds, "seed": job.seed, "config": config}
        run = pipe.start(job.prompt, job.negative_prompt, **given, **job.settings)
    kept = {round(share * run.config.num_inference_steps) for share in arguments.assets_at}

    def keep(step: HiFAStep) -> None:
        if step.step in kept:
            run.asset().save_pretrained(folder / f"asset-{step.step:05d}")

    pipe.run_to_end(run, folder / "run", arguments.save_every, keep)
    if arguments.asset_only:
        run.asset().save_pretrained(folder / "asset")
    else:
        export_asset(run.asset(), folder, arguments)
    write_text_atomically(folder / DONE, json.dumps(wanted | {"steps": run.step, "seconds": round(run.seconds, 1)}))
    return True


def _facts(job: Job, prior: str, config: HiFAConfig) -> dict[str, Any]:
    """Return the metadata that determines the result of a job, with the keys of a saved run."""
    settings = replace(config, **job.settings).to_dict()
    return {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": job.seed,
        "prior": prior,
        "config": json.loads(json.dumps(settings)),  # JSON has no tuples
    }


def _check_same(wanted: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """Check that a folder with earlier results belongs to the same job.

    Raises:
        ValueError: If the results were made with other settings.
    """
    pairs = [(name, found.get(name), value) for name, value in wanted.items() if name != "config"]
    settings = found.get("config", {})
    # A setting that an earlier version did not have counts as its default.
    default = HiFAConfig().to_dict()
    pairs += [(name, settings.get(name, default[name]), value) for name, value in wanted["config"].items()]
    for name, was, value in pairs:
        if was != value:
            raise ValueError(
                f"{folder} was made with {name}={was!r}, not {value!r}. Remove the folder or choose another "
                "--output-dir."
            )


def jobs_of(jobs: list[Job], state: PartialState) -> list[Job]:
    """Return the jobs of this process.

    Each process takes every n-th job, so that the work is balanced even if the prompts are sorted by length.
    """
    return jobs[state.process_index :: state.num_processes]


def run_jobs(jobs: list[Job], run_one: Callable[[Job], bool], output_dir: Path) -> list[str]:
    """Run the jobs of this process in order.

    Args:
        jobs: Jobs of this process.
        run_one: Runs a job; returns `False` if the job was already finished.
        output_dir: Parent of the output folders.

    Returns:
        Failures of all processes, one line each.
    """
    failures = []
    for job in jobs:
        try:
            made = run_one(job)
        except Exception as error:
            failures.append(f"{job.name}: {' '.join(str(error).split()) or type(error).__name__}")
            folder = output_dir / job.name
            folder.mkdir(parents=True, exist_ok=True)
            write_text_atomically(folder / FAILED, traceback.format_exc())
            print(f"failed: {failures[-1]}", file=sys.stderr, flush=True)
        else:
            print(f"{'finished' if made else 'skipped (already finished)'}: {job.name}", flush=True)
    return gather_object(failures)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="a .jsonl file, or a text file with one prompt per line")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--model", metavar="ID_OR_DIR", help=MODEL_HELP)
    add_surface_options(parser)
    parser.add_argument("--half", action="store_true", help="load the prior in float16 (on a GPU)")
    add_variant_option(parser)
    parser.add_argument("--preset", choices=PRESETS, help="default: chosen by the prior")
    add_setting_options(parser)
    parser.add_argument(
        "--save-every", type=int, default=100, metavar="STEPS", help="steps between checkpoints; default: 100"
    )
    parser.add_argument("--asset-only", action="store_true", help="write assets without turntables, stills and meshes")
    parser.add_argument(
        "--assets-at",
        type=float,
        nargs="+",
        default=[],
        metavar="FRACTION",
        help="also save assets at these fractions of a run",
    )
    add_export_options(parser, formats=("glb",))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the batch command.

    Args:
        argv: Arguments; `None` uses `sys.argv`.

    Returns:
        Exit code: 0 if all prompts are finished, 1 if a prompt failed, 2 for invalid input.
    """
    import torch

    arguments = build_parser().parse_args(argv)
    try:
        settings = given_settings(arguments)
        jobs = [replace(job, settings=settings | job.settings) for job in read_jobs(arguments.prompts)]
        check_ranges(arguments, (("save_every", 1, 10**9), *RANGES))
        check_normal_model(arguments, settings)
        if not all(0 < share <= 1 for share in arguments.assets_at):
            raise ValueError(f"--assets-at takes fractions of a run, above 0 and up to 1, got {arguments.assets_at}.")
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        dtype = torch.float16 if arguments.half else torch.float32
        models = (arguments.model or TOYBOX, arguments.disparity_model)
        pipe = load_pipeline(*models, dtype, "cpu", arguments.variant, arguments.normal_model)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    # Without an accelerator, accelerate joins the other processes only if `cpu` is set.
    launched_on_cpu = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    # A finished process waits for the slowest process. The default timeout is minutes.
    state = PartialState(cpu=launched_on_cpu, timeout=timedelta(days=30))
    pipe.to(state.device)
    pipe.set_progress_bar_config(disable=True)  # bars of several processes would overlap
    config = preset_config(pipe, arguments.preset, settings)
    mine, output_dir = jobs_of(jobs, state), arguments.output_dir
    new = [(job.prompt, job.negative_prompt) for job in mine if not is_begun(output_dir / job.name)]
    embeds = embed_first(pipe, new)

    def run_one(job: Job) -> bool:
        prompt_embeds = embeds.get((job.prompt, job.negative_prompt))
        return work(pipe, job, output_dir / job.name, config, arguments, prompt_embeds)

    failures = run_jobs(mine, run_one, output_dir)
    if state.is_main_process:
        print(f"{len(jobs) - len(failures)} of {len(jobs)} prompts are finished in {arguments.output_dir}", flush=True)
        for line in failures:
            print(f"failed: {line}", file=sys.stderr, flush=True)
    state.wait_for_everyone()  # the launcher kills all processes once one fails, so the report is printed first
    state.destroy_process_group()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
