"""Time of the main command of the README: the whole process, and the first preview.

    python -m benchmarks.main_job

The benchmark runs `python -m hifa "a red mushroom" --output-dir TMP` in a separate process and checks the output
files. Then the benchmark times the first preview of another run in its own process. All modules are loaded and all
loops are compiled before that run. The last line printed is one JSON object:

    seconds                   wall-clock time of the separate process, including start-up and exports
    first_preview_seconds     from the start of the separate process until `preview.png` exists
    optimization_seconds      part of `seconds` that is spent in optimization steps
    warm_preview_seconds      from `pipe.start` to the end of the first `run.preview()`, in the benchmark process
    missing                   expected output files that are missing or empty
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


PROMPT = "a red mushroom"
PROMISED = (
    "preview.png", "run/run.safetensors", "asset/asset.json", "turntable.mp4", "front.png", "side.png", "back.png",
    "depth.png", "mesh.glb", "mesh.ply",
)  # fmt: skip


def command(folder: Path, prior: Path | None, steps: int | None) -> list[str]:
    """Return the main command. Add the options of a trial if they are given."""
    options = ["--model", str(prior)] * (prior is not None) + ["--steps", str(steps)] * (steps is not None)
    return [sys.executable, "-m", "hifa", PROMPT, "--output-dir", str(folder), *options]


def run_command(words: list[str], preview: Path) -> dict:
    """Run a command to its end, and measure its time.

    Returns:
        The exit code, the wall-clock seconds, and the seconds until the file `preview` exists. The latter is `None` if
        the file never exists.
    """
    start, first = time.perf_counter(), None
    process = subprocess.Popen(words)
    while process.poll() is None:
        if first is None and preview.exists():
            first = time.perf_counter() - start
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    return {
        "exit_code": process.returncode,
        "seconds": round(seconds, 1),
        "first_preview_seconds": None if first is None else round(first, 2),
    }


def missing_files(folder: Path) -> list[str]:
    """Return the names in `PROMISED` whose files in `folder` are missing or empty."""
    return [name for name in PROMISED if not (folder / name).is_file() or not (folder / name).stat().st_size]


def warm_preview_seconds(prior: Path | None) -> float:
    """Return the seconds from `pipe.start` to the first preview. The first run in this process is a warm-up."""
    from hifa import TOYBOX, HiFAPipeline

    pipe = HiFAPipeline.from_pretrained(prior or TOYBOX)
    for _ in range(2):
        start = time.perf_counter()
        run = pipe.start(PROMPT, seed=0)
        next(pipe.advance(run))
        run.preview()
        seconds = time.perf_counter() - start
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", type=Path, help="folder of a Stable Diffusion pipeline; default: embedded Toybox")
    parser.add_argument("--steps", type=int, help="steps of the run, for a trial; default: the preset's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "mushroom"
        result = run_command(command(folder, arguments.prior, arguments.steps), folder / "preview.png")
        result["missing"] = missing_files(folder)
        if (folder / "run").exists():
            from hifa.storage.run_folder import read_metadata

            metadata = read_metadata(folder / "run")
            result |= {"steps": metadata["step"], "optimization_seconds": round(metadata["seconds"], 1)}
    result["warm_preview_seconds"] = round(warm_preview_seconds(arguments.prior), 2)
    print(json.dumps({**result, "cores": os.cpu_count()}))
    return result["exit_code"] or int(bool(result["missing"]))


if __name__ == "__main__":
    sys.exit(main())
