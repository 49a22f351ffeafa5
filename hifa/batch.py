"""Many prompts, spread over processes, GPUs and machines by accelerate.

    accelerate launch -m hifa.batch prompts.jsonl --output-dir OUT

or, for two processes on a CPU, `torchrun --nproc-per-node 2 -m hifa.batch prompts.jsonl --output-dir OUT`.

Each line of a .jsonl file is an object with `prompt` and, if wanted, `negative_prompt`, `seed`, `name` of its folder
and fields of `HiFAConfig`; each line of any other file is a prompt. What is finished is skipped when the command is
run again, and what was interrupted goes on from its saved run. A prompt that fails does not stop the others: all
failures are reported at the end, and the exit code is then 1. Prompt number 3 gets the folder `OUT/0003-its-name/`.
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
from torch import Tensor

from . import TOYBOX, HiFAConfig, HiFAPipeline, HiFARun
from .names import file_name
from .optimisation import HiFAStep
from .options import (
    MODEL_HELP,
    RANGES,
    add_export_options,
    add_surface_options,
    add_variant_option,
    check_normal_model,
    check_ranges,
    embed_first,
    export_asset,
    load_pipeline,
    preset_config,
)
from .prompts import check_prompt
from .saved import is_saved_in, read_facts
from .state import write_text_atomically


PRESETS = ("fast", "preview", "paper", "official", "mvdream")
DONE, FAILED = "done.json", "failed.txt"


@dataclass(frozen=True)
class Job:
    """One line of the file.

    Args:
        prompt, negative_prompt: As for `HiFAPipeline.start`.
        seed: Of everything random.
        name: Of its folder.
        settings: Fields of `HiFAConfig` that differ from the preset.
    """

    prompt: str
    name: str
    negative_prompt: str = ""
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


def read_jobs(path: Path) -> list[Job]:
    """All jobs of a file.

    Raises:
        ValueError: If the file is empty or a line is wrong; the message has its number.
        OSError: If it cannot be read.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    jobs = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            jobs.append(_job(json.loads(line) if path.suffix == ".jsonl" else {"prompt": line}, len(jobs)))
        except ValueError as error:  # json's own is one
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not jobs:
        raise ValueError(f"{path} has no prompts. Write one a line.")
    return jobs


def _job(row: Any, index: int) -> Job:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(f'Expected an object such as {{"prompt": "a red mushroom"}}, got {row!r}.')
    row = dict(row)
    known = {"prompt": row.pop("prompt")}
    for name, kind in (("negative_prompt", str), ("seed", int), ("name", str)):
        if name in row:
            known[name] = row.pop(name)
            if not isinstance(known[name], kind) or isinstance(known[name], bool):
                raise ValueError(f"{name} must be of type {kind.__name__}, got {known[name]!r}.")
    unknown = set(row) - {setting.name for setting in fields(HiFAConfig)}
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: no such setting; see `HiFAConfig`.")
    name = file_name(known.get("name", known["prompt"]))
    return Job(**known | {"name": f"{index:04d}-{name}"}, settings=row)


def is_begun(folder: Path) -> bool:
    """Whether a job is finished or its run saved, which has the embeddings of its prompt."""
    return (folder / DONE).exists() or is_saved_in(folder / "run")


def work(
    pipe: HiFAPipeline,
    job: Job,
    folder: Path,
    config: HiFAConfig | None,
    arguments: argparse.Namespace,
    prompt_embeds: Tensor | None = None,
) -> bool:
    """Bring one job to its end, from where it is. Returns `False` if it was finished before.

    Args:
        config: `None` for the prior's default.
        arguments: `save_every`, `assets_at`, `asset_only`, and those of `options.export_asset`.
        prompt_embeds: Of the prompt, if the text encoder is gone.

    Raises:
        ValueError: For a bad prompt or setting, an empty field, or a folder of another job. After an `ExportError` all
            files but those that it names are there.
        OSError: If the folder cannot be written.
    """
    wanted = _facts(job, str(pipe.config.get("_name_or_path") or "custom"), config or pipe.default_config())
    if (folder / DONE).exists():
        _check_same(wanted, json.loads((folder / DONE).read_text()), folder)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED).unlink(missing_ok=True)
    if is_saved_in(folder / "run"):
        _check_same(wanted, read_facts(folder / "run"), folder)
        run = HiFARun.load(folder / "run", pipe.device)
    else:
        if pipe.text_encoder is None and pipe.tokenizer is not None:  # `start` takes embeddings as they are
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
    """What decides what a job makes, as a saved run names it."""
    settings = replace(config, **job.settings).to_dict()
    return {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": job.seed,
        "prior": prior,
        "config": json.loads(json.dumps(settings)),  # JSON has no tuples
    }


def _check_same(wanted: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """A folder that an earlier file or command filled must not pass for this one's."""
    pairs = [(name, found.get(name), value) for name, value in wanted.items() if name != "config"]
    settings = found.get("config", {})
    # A setting that an earlier version did not have was as it is by default.
    default = HiFAConfig().to_dict()
    pairs += [(name, settings.get(name, default[name]), value) for name, value in wanted["config"].items()]
    for name, was, value in pairs:
        if was != value:
            raise ValueError(
                f"{folder} was made with {name}={was!r}, not {value!r}. Choose another --output-dir, or remove it."
            )


def jobs_of(jobs: list[Job], state: PartialState) -> list[Job]:
    """Those of this process: every n-th one, so that a list sorted by length is shared evenly."""
    return jobs[state.process_index :: state.num_processes]


def run_jobs(jobs: list[Job], run_one: Callable[[Job], bool], output_dir: Path) -> list[str]:
    """The jobs of this process, one after the other; failures of all processes, a line each."""
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
            print(f"{'finished' if made else 'was finished before'}: {job.name}", flush=True)
    return gather_object(failures)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="a .jsonl file, or a text file with a prompt a line")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--model", metavar="ID_OR_DIR", help=MODEL_HELP)
    add_surface_options(parser)
    parser.add_argument("--half", action="store_true", help="load the prior in float16 (on a GPU)")
    add_variant_option(parser)
    parser.add_argument("--preset", choices=PRESETS, help="default: the prior's")
    parser.add_argument(
        "--save-every", type=int, default=100, metavar="STEPS", help="save runs so often; default: 100"
    )
    parser.add_argument("--asset-only", action="store_true", help="no turntables, stills and meshes: the assets alone")
    parser.add_argument(
        "--assets-at",
        type=float,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="keep assets at these shares of a run too",
    )
    add_export_options(parser, formats=("glb",))
    return parser


def main(argv: list[str] | None = None) -> int:
    """0 if everything is finished, 1 if a prompt failed, 2 after bad input."""
    import torch

    arguments = build_parser().parse_args(argv)
    try:
        jobs = read_jobs(arguments.prompts)
        check_ranges(arguments, (("save_every", 1, 10**9), *RANGES))
        check_normal_model(arguments)
        if not all(0 < share <= 1 for share in arguments.assets_at):
            raise ValueError(f"--assets-at takes shares of a run, above 0 and up to 1, got {arguments.assets_at}.")
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        dtype = torch.float16 if arguments.half else torch.float32
        models = (arguments.model or TOYBOX, arguments.disparity_model)
        pipe = load_pipeline(*models, dtype, "cpu", arguments.variant, arguments.normal_model)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    # Without being told, accelerate does not look for its siblings on a machine without an accelerator.
    launched_on_cpu = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    # A process that is done waits for the others, however long they take; the default is minutes.
    state = PartialState(cpu=launched_on_cpu, timeout=timedelta(days=30))
    pipe.to(state.device)
    pipe.set_progress_bar_config(disable=True)  # those of several processes would mix
    config = preset_config(pipe, arguments.preset)
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
    state.wait_for_everyone()  # the launcher ends all processes when the first one fails, and the report comes before
    state.destroy_process_group()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
