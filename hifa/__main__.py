"""python -m hifa "a red mushroom": a prompt goes in, a folder with a 3D asset comes out."""

import argparse
import re
import signal
import sys
import time
from pathlib import Path


PRESETS = ("fast", "preview", "paper")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hifa", description="Make a 3D asset from a prompt.")
    parser.add_argument("prompt", nargs="?", help="what to make, such as 'a red mushroom'")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue the run saved in DIR")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="default: outputs/<the prompt>")
    parser.add_argument("--model", metavar="ID_OR_DIR", help="Stable Diffusion id or folder; default: embedded Toybox")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps; default: auto")
    parser.add_argument("--half", action="store_true", help="load the prior in float16 (on a GPU)")
    run = parser.add_argument_group("run")
    run.add_argument("--preset", choices=PRESETS, help="default: fast for Toybox, preview for other models")
    run.add_argument("--negative-prompt", default="")
    run.add_argument("--steps", type=int, help="optimisation steps")
    run.add_argument("--guidance-scale", type=float)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument(
        "--save-every", type=int, default=100, metavar="STEPS", help="save the run so often; default: 100"
    )
    export = parser.add_argument_group("export")
    export.add_argument("--formats", nargs="+", default=["glb", "ply"], choices=["glb", "obj", "zip", "ply"])
    export.add_argument("--mesh-resolution", type=int, default=128)
    export.add_argument("--max-faces", type=int, default=20_000)
    export.add_argument("--texture-size", type=int, default=1024)
    export.add_argument("--frames", type=int, default=48, help="turntable frames; default: 48")
    export.add_argument("--frame-size", type=int, default=192)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0, or 2 after bad input, which is reported in one line."""
    arguments = build_parser().parse_args(argv)
    try:
        check_arguments(arguments)
        return make(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work before anything slow is imported.

    Raises:
        ValueError: Naming the value and what to do.
    """
    if (arguments.prompt is None) == (arguments.resume is None):
        raise ValueError("Give either a prompt, such as 'a red mushroom', or --resume DIR.")
    for name, low, high in (
        ("save_every", 1, 10**9), ("mesh_resolution", 16, 1024), ("max_faces", 100, 10**7), ("texture_size", 64, 8192),
        ("frames", 1, 1000), ("frame_size", 16, 2048), ("seed", 0, 2**63 - 1),
    ):  # fmt: skip
        if not low <= getattr(arguments, name) <= high:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must be between {low} and {high}, got {getattr(arguments, name)}.")
    folder = output_folder(arguments)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(
            f"Cannot write to {str(folder)!r} ({error.strerror}). Choose another --output-dir."
        ) from error


def output_folder(arguments: argparse.Namespace) -> Path:
    if arguments.output_dir is not None:
        return arguments.output_dir
    if arguments.resume is not None:
        return arguments.resume.parent if arguments.resume.name == "run" else arguments.resume
    return Path("outputs") / (re.sub(r"[^a-z0-9]+", "-", arguments.prompt.lower()).strip("-")[:60] or "asset")


def make(arguments: argparse.Namespace) -> int:
    import torch

    from . import TOYBOX, HiFAConfig, HiFAPipeline, HiFARun

    device = pick_device(arguments.device)
    run = None if arguments.resume is None else HiFARun.load(arguments.resume, device)
    model = arguments.model or (TOYBOX if run is None or run.prior in (None, "custom") else run.prior)
    dtype = torch.float16 if arguments.half else torch.float32
    pipe = HiFAPipeline.from_pretrained(model, dtype=dtype).to(device)
    folder = output_folder(arguments)
    if run is None:
        config = getattr(HiFAConfig, arguments.preset)() if arguments.preset else pipe.default_config()
        run = pipe.start(
            arguments.prompt, arguments.negative_prompt, config=config, seed=arguments.seed,
            num_inference_steps=arguments.steps, guidance_scale=arguments.guidance_scale,
        )  # fmt: skip
    optimise(pipe, run, folder, arguments.save_every)
    export(run, folder, arguments)
    return 0


def pick_device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def optimise(pipe, run, folder: Path, save_every: int) -> None:
    """Advance to the end, saving on the way; Ctrl-C ends after the current step, and what there is is kept."""
    from tqdm.auto import tqdm

    from .asset import save_image

    stopped = []
    previous = signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    clock = time.perf_counter()
    try:
        save_image(folder / "preview.png", run.preview().cpu().numpy())
        with tqdm(total=run.config.num_inference_steps, initial=run.step, desc=run.prompt or "reconstruction") as bar:
            for step in pipe.advance(run):
                bar.update()
                bar.set_postfix(loss=f"{step.losses['loss']:.3f}", t=step.timestep)
                if run.step % save_every == 0:
                    run.save(folder / "run")
                    save_image(folder / "preview.png", run.preview().cpu().numpy())
                if stopped:
                    break
    finally:
        signal.signal(signal.SIGINT, previous)
        run.save(folder / "run")
    seconds = time.perf_counter() - clock
    print(f"{run.step} of {run.config.num_inference_steps} steps in {seconds:.0f} s; the run is in {folder / 'run'}")
    if stopped:
        print(f"stopped; continue with: python -m hifa --resume {folder / 'run'}")


def export(run, folder: Path, arguments: argparse.Namespace) -> None:
    asset = run.asset()
    asset.save_pretrained(folder / "asset")
    asset.export_video(folder / "turntable.mp4", num_frames=arguments.frames, size=arguments.frame_size)
    asset.export_stills(folder)
    for suffix in arguments.formats:
        asset.export_mesh(
            folder / f"mesh.{suffix}", arguments.mesh_resolution, arguments.max_faces, arguments.texture_size
        )
    print(f"asset, turntable.mp4, stills and {', '.join(f'mesh.{s}' for s in arguments.formats)} are in {folder}")


if __name__ == "__main__":
    sys.exit(main())
