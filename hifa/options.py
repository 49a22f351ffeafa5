"""What the command lines share: options, models, and what is made of an asset."""

import argparse
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from .prompts import check_prompt


if TYPE_CHECKING:  # the options are read before torch is loaded
    from torch import Tensor

    from .asset import HiFAAsset
    from .config import HiFAConfig
    from .multiview import SyncDreamerPipeline
    from .pipeline_hifa import HiFAPipeline


# Of the progress bar, in frames of a turntable.
STILL_WORK, MESH_WORK = 8, 40
CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors")
WITHOUT_NORMALS = ("paper", "official", "mvdream", "reconstruction", "hallucinated")  # presets
MODEL_HELP = (
    "id or folder of Stable Diffusion, SDXL or DeepFloyd IF, or MVDream/MVDream/sd-v2.1-base-4view.pt; "
    "default: embedded Toybox"
)
RANGES = (
    ("mesh_resolution", 16, 1024), ("max_faces", 100, 10**7), ("texture_size", 64, 8192), ("frames", 1, 1000),
    ("frame_size", 16, 2048), ("still_size", 16, 2048),
)  # fmt: skip


def add_export_options(parser: argparse.ArgumentParser, formats: tuple[str, ...]) -> None:
    """Add the options; `formats` are the mesh files by default."""
    export = parser.add_argument_group("export")
    export.add_argument("--formats", nargs="+", default=list(formats), choices=["glb", "obj", "zip", "ply"])
    export.add_argument("--mesh-resolution", type=int, default=128)
    export.add_argument("--max-faces", type=int, default=20_000)
    export.add_argument("--texture-size", type=int, default=1024)
    export.add_argument("--frames", type=int, default=48, help="turntable frames; default: 48")
    export.add_argument("--frame-size", type=int, default=192)
    export.add_argument("--still-size", type=int, default=256, help="pixels per side of front, side, back and depth")


def add_variant_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--variant", metavar="NAME", help="of the files of --model, such as fp16: half as much to load"
    )


def add_surface_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name models which see depth and normals in pictures."""
    parser.add_argument(
        "--disparity-model", metavar="ID_OR_DIR", help="DPT for the preset official; Toybox brings its own"
    )
    parser.add_argument(
        "--normal-model", metavar="ID_OR_DIR",
        help="guide surfaces by a Marigold model, such as prs-eth/marigold-normals-v1-1; Toybox brings its own",
    )  # fmt: skip


def check_normal_model(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: If the preset has no use for a model of normals.
    """
    if arguments.normal_model is not None and arguments.preset in WITHOUT_NORMALS:
        raise ValueError(
            f"--normal-model has no effect with --preset {arguments.preset}, whose losses have no normals. "
            "Leave out one of them."
        )


def preset_config(pipe: "HiFAPipeline", preset: str | None) -> "HiFAConfig | None":
    """The settings of a preset for the models that a pipeline has; `None` for the prior's default."""
    from .components import PUBLISHED_NORMALS
    from .config import HiFAConfig

    if preset is None:
        return None
    published = PUBLISHED_NORMALS if preset == "preview" and pipe.has_published_normals else {}
    return pipe.fitted(getattr(HiFAConfig, preset)(**published))


def check_ranges(arguments: argparse.Namespace, ranges: tuple[tuple[str, int, int], ...]) -> None:
    """
    Raises:
        ValueError: If an option is out of its range; the message names it.
    """
    for name, low, high in ranges:
        if not low <= getattr(arguments, name) <= high:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must be between {low} and {high}, got {getattr(arguments, name)}.")


def load_pipeline(
    model: str | Path,
    disparity_model: str | None,
    dtype,
    device,
    variant: str | None = None,
    normal_model: str | None = None,
) -> "HiFAPipeline":
    """A pipeline on a device, with models of disparity and of normals by hub id or folder if they are given.

    Args:
        variant: Of the prior's files, such as `"fp16"`.

    Raises:
        ValueError, OSError: If one of them is missing or of another kind.
    """
    from . import HiFAPipeline

    given = {}
    if disparity_model is not None:
        from transformers import DPTForDepthEstimation

        given["disparity_estimator"] = DPTForDepthEstimation.from_pretrained(disparity_model, dtype=dtype).eval()
    pipe = HiFAPipeline.from_pretrained(model, dtype=dtype, variant=variant, **given).to(device)
    if normal_model is not None:
        pipe.load_normal_model(normal_model)
    return pipe


def embed_first(pipe: "HiFAPipeline", prompts: Iterable[tuple[str, str]]) -> dict[tuple[str, str], "Tensor"]:
    """Embeddings, on the CPU, of prompts with their negative prompts, before a model of pixels loses its text encoder:
    T5 is larger than all else in DeepFloyd IF. Other models keep theirs, and nothing is embedded.

    A prompt that the model cannot read is left out; its own run is to fail, not those of the others.
    """
    if pipe.vae is not None or pipe.text_encoder is None:
        return {}
    embeds = {}
    for pair in dict.fromkeys(prompts):
        try:
            check_prompt(pipe.tokenizer, *pair)
        except ValueError:
            continue
        embeds[pair] = pipe.encode_prompt(*pair).cpu()
    pipe.release_text_encoder()
    return embeds


def load_multiview(name: str, dtype, device) -> "SyncDreamerPipeline":
    """A multi-view model from a folder, a hub id or a published checkpoint.

    Raises:
        ValueError, OSError: If it is missing or of another kind.
    """
    from .multiview import SyncDreamerPipeline

    load = SyncDreamerPipeline.from_single_file if name.endswith(CHECKPOINTS) else SyncDreamerPipeline.from_pretrained
    return load(name, dtype=dtype).to(device)


def export_asset(asset: "HiFAAsset", folder: Path, arguments: argparse.Namespace, show_bar: bool = False) -> None:
    """Write the asset, a turntable, stills and meshes into a folder. One that fails does not keep the others back.

    Args:
        show_bar: Show a progress bar with the time that is left.

    Raises:
        AssetError: If the asset itself cannot be written; then nothing else is tried.
        ExportError: If another file cannot be written; all others are there.
    """
    from tqdm import tqdm

    from .export.each import export_each

    asset.save_pretrained(folder / "asset")
    frames, size = arguments.frames, arguments.frame_size
    with tqdm(
        total=frames + STILL_WORK + MESH_WORK * len(arguments.formats), desc="export", disable=not show_bar
    ) as bar:

        def turntable() -> None:
            asset.export_video(folder / "turntable.mp4", frames, size, on_frame=bar.update)

        exports = {"turntable.mp4": turntable, "stills": lambda: asset.export_stills(folder, arguments.still_size)}
        exports |= _mesh_exports(asset, folder, arguments)
        work = {"turntable.mp4": frames, "stills": STILL_WORK}
        done = 0

        def started(name: str) -> None:
            nonlocal done
            bar.update(done - bar.n)  # also past one that failed half way
            bar.set_description(f"export {name}")
            done += work.get(name, MESH_WORK)

        try:
            export_each(exports, started)
        finally:
            bar.update(done - bar.n)


def _mesh_exports(asset: "HiFAAsset", folder: Path, arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """How each mesh file is written. They share one surface and one texture; a PLY needs no texture."""
    from .export import bake_texture, write_mesh, write_ply

    mesh = cache(lambda: asset.mesh(arguments.mesh_resolution, arguments.max_faces))
    textured = cache(lambda: bake_texture(mesh(), asset.colour, arguments.texture_size))

    def write(path: Path) -> None:
        if path.suffix == ".ply":
            write_ply(path, mesh())
        else:
            write_mesh(path, textured())

    return {f"mesh.{suffix}": partial(write, folder / f"mesh.{suffix}") for suffix in arguments.formats}
