"""Command line interface that generates a 3D asset from a prompt or an image.

Examples:
    python -m hifa "a red mushroom"
    python -m hifa --image photo.png
"""

import argparse
import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .cli.options import (
    MODEL_HELP,
    RANGES,
    add_export_options,
    add_setting_options,
    add_surface_options,
    add_variant_option,
    check_normal_model,
    check_ranges,
    export_asset,
    given_settings,
    load_multiview,
    load_pipeline,
    preset_config,
)
from .cli.startup import compile_ahead, share_cpu
from .optimization.interrupt import Interrupted
from .prompts import check_toybox_prompt
from .storage.files import file_name
from .storage.run_folder import check_may_save, find_saved, is_saved_in, read_metadata


if TYPE_CHECKING:  # slow imports: invalid arguments are rejected first
    import PIL.Image

    from .optimization.run import HiFARun
    from .photo_cutout import PreparedPicture
    from .pipeline_hifa import HiFAPipeline


PRESETS = ("fast", "preview", "paper", "official", "mvdream", "reconstruction", "hallucinated")
PREVIEW_EVERY = 20  # steps
# Options that are fixed in a saved run.
OF_NEW_RUNS = ("preset", "negative_prompt", "steps", "guidance_scale", "set", "seed", "overwrite")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    parser = argparse.ArgumentParser(prog="python -m hifa", description="Generate a 3D asset from a prompt or image.")
    parser.add_argument("prompt", nargs="?", help="object to generate, such as 'a red mushroom'")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="resume the run saved in DIR")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="default: outputs/<prompt or image name>")
    parser.add_argument("--model", metavar="ID_OR_DIR", help=MODEL_HELP)
    add_surface_options(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps; default: auto")
    parser.add_argument("--half", action="store_true", help="load the prior in float16 (on a GPU)")
    add_variant_option(parser)
    picture = parser.add_argument_group("image to 3D, with or without a prompt")
    picture.add_argument(
        "--image", type=Path, metavar="FILE", help="photo of one object, from which sixteen views are hallucinated"
    )
    picture.add_argument(
        "--elevation",
        type=float,
        metavar="DEG",
        help="camera elevation in degrees, 0 is level; default: estimated from six sheets of views",
    )
    picture.add_argument(
        "--view-seeds", type=int, metavar="N", help="hallucinate N sheets of views and use the best; default: 1"
    )
    picture.add_argument("--views", type=Path, metavar="SHEET", help="sixteen views side by side, instead of --image")
    picture.add_argument(
        "--image-guidance-end",
        type=float,
        metavar="FRACTION",
        help="fraction of the run over which image losses fade to 0",
    )
    picture.add_argument(
        "--multiview", metavar="ID_OR_FILE", help="SyncDreamer folder, Hub ID or checkpoint; default: embedded Toybox"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--preset", choices=PRESETS, help="default: chosen by model and inputs")
    run.add_argument("--negative-prompt")
    run.add_argument("--steps", type=int, help="optimization steps")
    run.add_argument("--guidance-scale", type=float)
    add_setting_options(run)
    run.add_argument("--seed", type=int, help="default: 0")
    run.add_argument(
        "--save-every", type=int, default=100, metavar="STEPS", help="steps between checkpoints; default: 100"
    )
    run.add_argument("--overwrite", action="store_true", default=None, help="replace an unfinished run")
    add_export_options(parser, formats=("glb", "ply"))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line interface.

    Invalid input is reported in one line on stderr.

    Args:
        argv: Arguments; `None` uses `sys.argv`.

    Returns:
        Exit code: 0 on success, 1 if some files could not be exported, 2 for invalid input, 130 if Ctrl-C aborts the
        command. The first Ctrl-C during the optimization does not abort, see `optimize`.
    """
    arguments = build_parser().parse_args(argv)
    try:
        check_arguments(arguments)
        return make(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        run = run_folder(arguments)
        rest = f"resume with: python -m hifa --resume {run}" if is_saved_in(run) else "no run was saved"
        print(f"interrupted; {rest}", file=sys.stderr)
        return 130


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check the arguments before slow imports and before any file is written.

    Raises:
        ValueError: If an argument is invalid. The message names the value and what to do.
    """
    settings = given_settings(arguments)
    pictures = [name for name in ("image", "views") if getattr(arguments, name) is not None]
    new = arguments.prompt is not None or bool(pictures)
    if new == (arguments.resume is not None):
        raise ValueError("Give either a prompt, such as 'a red mushroom', or an image, or --resume DIR.")
    check_picture_arguments(arguments, pictures)
    check_ranges(arguments, (("save_every", 1, 10**9), *RANGES))
    check_normal_model(arguments, settings)
    if arguments.seed is not None:
        check_ranges(arguments, (("seed", 0, 2**63 - 1),))
    check_writable(output_folder(arguments))
    if arguments.resume is not None:
        check_resume(arguments)
        return
    if arguments.model is None and not pictures:  # with images, a prompt with unknown words is ignored
        check_toybox_prompt(arguments.prompt, arguments.negative_prompt)
    if not arguments.overwrite:
        try:
            check_may_save(run_folder(arguments))
        except ValueError as error:
            raise ValueError(
                f"{error} Resume the run with --resume, choose another --output-dir, or give --overwrite."
            ) from error


def check_resume(arguments: argparse.Namespace) -> None:
    """Check that no option conflicts with the saved run.

    Raises:
        ValueError: If an option would change the run or be ignored, or if the prior of the run cannot be found.
    """
    run = find_saved(arguments.resume)
    given = [name for name in OF_NEW_RUNS if getattr(arguments, name) is not None]
    if given:
        option = "--" + given[0].replace("_", "-")
        raise ValueError(f"{option} cannot be combined with --resume: a saved run keeps its settings.")
    try:
        prior = read_metadata(run)["prior"]
    except Exception:  # a damaged file; `HiFARun.load` reports the reason
        return
    unknown = prior == "custom" or (prior is not None and Path(prior).is_absolute() and not Path(prior).exists())
    if unknown and arguments.model is None:
        raise ValueError(f"The prior of this run, {prior!r}, cannot be found. Give the prior as --model.")
    if arguments.model not in (None, prior) and prior is not None and not unknown:
        raise ValueError(
            f"--model {arguments.model!r} is not the prior of this run, {prior!r}. Omit --model, or start a new run "
            "with the other prior."
        )


def check_writable(folder: Path) -> None:
    """Check that an output folder can be created and written, without creating the folder.

    Raises:
        ValueError: If the folder cannot be created or written.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "is not writable" if there.is_dir() else "is a file"
        raise ValueError(f"Cannot write to {str(folder)!r}: {str(there)!r} {reason}. Choose another --output-dir.")


def check_picture_arguments(arguments: argparse.Namespace, pictures: list[str]) -> None:
    """Check that the image options fit together.

    Args:
        arguments: Parsed arguments.
        pictures: Names of the given options out of `image` and `views`.

    Raises:
        ValueError: If options exclude each other or need another option.
    """
    if len(pictures) == 2:
        raise ValueError("Give either --image, from which views are hallucinated, or --views, not both.")
    if arguments.image_guidance_end is not None and not pictures:
        raise ValueError("--image-guidance-end needs --image or --views.")
    for name in ("elevation", "multiview", "view_seeds"):
        if getattr(arguments, name) is not None and arguments.image is None:
            raise ValueError(f"--{name.replace('_', '-')} needs --image.")
    if arguments.image is not None and arguments.model is not None and arguments.multiview is None:
        raise ValueError("--image with --model needs --multiview: the embedded multi-view model supports Toybox only.")


def output_folder(arguments: argparse.Namespace) -> Path:
    """Return the output folder: the given folder, that of the resumed run, or a folder named after the input."""
    if arguments.output_dir is not None:
        return arguments.output_dir
    if arguments.resume is not None:
        run = run_folder(arguments)
        return run.parent if run.name == "run" else run
    name = arguments.prompt if arguments.prompt is not None else (arguments.image or arguments.views).stem
    return Path("outputs") / file_name(name)


def run_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder of the run: the folder of a resumed run, or `run` in the output folder."""
    return output_folder(arguments) / "run" if arguments.resume is None else find_saved(arguments.resume)


def make(arguments: argparse.Namespace) -> int:
    """Generate an asset and write its files. Return the exit status."""
    share_cpu()
    compile_ahead()
    with quick_loading():
        pipe, run = begin(arguments)
    folder = output_folder(arguments)
    optimize(pipe, run, folder, run_folder(arguments), arguments.save_every)
    from .export.asset_files import ExportError

    try:
        export_asset(run.asset(), folder, arguments, show_bar=True)
    except ExportError as error:
        for line in error.failures:
            print(f"error: {line}", file=sys.stderr)
        print(f"all other files are in {folder}")
        return 1
    print(f"asset, turntable.mp4, stills and {', '.join(f'mesh.{s}' for s in arguments.formats)} are in {folder}")
    return 0


@contextmanager
def quick_loading() -> Iterator[None]:
    """Disable garbage collection while thousands of modules are imported.

    The collections free nothing and take a fifth of the import time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def begin(arguments: argparse.Namespace) -> "tuple[HiFAPipeline, HiFARun]":
    """Load the prior, and start or resume a run.

    The function also writes the prepared image to `input.png` and the views to `views.png` in the output folder.
    """
    import torch

    device = pick_device(arguments.device)
    image, views = read_pictures(arguments)
    # These imports load the rest of diffusers, which takes seconds.
    from . import TOYBOX, HiFARun
    from .multiview.hallucination import Photo
    from .toybox import TOYBOX_NAME

    run = None if arguments.resume is None else HiFARun.load(run_folder(arguments), device)
    model = arguments.model or (TOYBOX if run is None or run.prior in (None, TOYBOX_NAME) else run.prior)
    dtype = torch.float16 if arguments.half else torch.float32
    pipe = load_pipeline(model, arguments.disparity_model, dtype, device, arguments.variant, arguments.normal_model)
    if run is not None:
        forget_text_encoder(pipe)
        return pipe, run
    folder = output_folder(arguments)
    if image is not None:
        multiview = arguments.multiview and load_multiview(arguments.multiview, dtype, device)
        seeds = 1 if arguments.view_seeds is None else arguments.view_seeds
        photo = Photo(image, arguments.elevation, multiview or None, seeds)
        image = photo.prepare(pipe.embedded_multiview())
        folder.mkdir(parents=True, exist_ok=True)
        image.model_input().save(folder / "input.png")
    settings = given_settings(arguments)
    run = pipe.start(
        arguments.prompt, arguments.negative_prompt or "", image=image, views=views, seed=arguments.seed or 0,
        config=preset_config(pipe, arguments.preset, settings), **settings,
    )  # fmt: skip
    forget_text_encoder(pipe)
    if run.views is not None:
        folder.mkdir(parents=True, exist_ok=True)
        run.views.sheet().save(folder / "views.png")
    return pipe, run


def forget_text_encoder(pipe: "HiFAPipeline") -> None:
    """Release the text encoder of a pixel-space prior, since a run stores its prompt embeddings.

    T5 is larger than all other models of DeepFloyd IF together.
    """
    if pipe.vae is None:
        pipe.release_text_encoder()


def read_pictures(arguments: argparse.Namespace) -> "tuple[PreparedPicture | None, PIL.Image.Image | None]":
    """Read the input images before any model is loaded, so that an invalid file is reported at once.

    Returns:
        The prepared `--image` and the sheet of `--views`; `None` where an option is not given.
    """
    if arguments.image is None and arguments.views is None:
        return None, None
    from .photo_cutout import open_picture, prepare_picture

    image = None if arguments.image is None else prepare_picture(arguments.image)
    return image, None if arguments.views is None else open_picture(arguments.views)


def pick_device(name: str) -> str:
    """Return a device that torch can use.

    Args:
        name: Name of a torch device. `auto` selects CUDA, then MPS, then the CPU.

    Raises:
        ValueError: If the device is not available.
    """
    import torch

    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "auto":
        return best
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch raises any of these
        raise ValueError(
            f"--device {name} is not available ({str(error).splitlines()[0]}). Omit --device to use {best}."
        ) from error
    return name


def optimize(pipe: "HiFAPipeline", run: "HiFARun", folder: Path, run_folder: Path, save_every: int) -> None:
    """Optimize a run to its end, and save checkpoints and previews at intervals.

    The first Ctrl-C ends the optimization after the current step. The run is saved, and its current state is exported.
    """
    from .asset import save_image

    def save_preview(*_) -> None:
        if run.step % PREVIEW_EVERY == 0 or run.finished:
            save_image(folder / "preview.png", run.preview().cpu().numpy())

    folder.mkdir(parents=True, exist_ok=True)
    clock, stopped = time.perf_counter(), False
    pipe.set_progress_bar_config(desc=run.prompt or "reconstruction")
    try:
        pipe.run_to_end(run, run_folder, save_every, save_preview)
    except Interrupted:
        stopped = not run.finished
    seconds = time.perf_counter() - clock
    print(f"{run.step} of {run.config.num_inference_steps} steps in {seconds:.0f} s; the run is saved in {run_folder}")
    if stopped:
        print(f"stopped; resume with: python -m hifa --resume {run_folder}")


if __name__ == "__main__":
    sys.exit(main())
