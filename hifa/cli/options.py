"""Options, model loading and export of the command line interfaces."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import HiFAConfig
from ..prompts import check_prompt
from ..settings import parse_settings, settings_of, settings_table, settings_text


if TYPE_CHECKING:  # options are parsed before torch is imported
    from ..asset import HiFAAsset
    from ..multiview import SyncDreamerPipeline
    from ..pipeline_hifa import HiFAPipeline
    from ..priors.prompt_embeddings import PromptEmbeddings


CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors")
WITHOUT_NORMALS = ("paper", "official", "mvdream", "reconstruction", "hallucinated")  # presets without normal losses
MODEL_HELP = (
    "Hub ID or folder of Stable Diffusion, SDXL or DeepFloyd IF, or MVDream/MVDream/sd-v2.1-base-4view.pt; "
    "default: embedded Toybox"
)
# Names of options, and the setting that each option changes.
SETTING_OPTIONS = {
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "image_guidance_end": "image_guidance_end",
}
RANGES = (
    ("mesh_resolution", 16, 1024), ("max_faces", 100, 10**7), ("texture_size", 64, 8192), ("frames", 1, 1000),
    ("frame_size", 16, 2048), ("still_size", 16, 2048),
)  # fmt: skip


def add_export_options(parser: argparse.ArgumentParser, formats: tuple[str, ...]) -> None:
    """Add the export options to a parser.

    Args:
        parser: Parser of a command.
        formats: Mesh formats that are written by default.
    """
    export = parser.add_argument_group("export")
    export.add_argument("--formats", nargs="+", default=list(formats), choices=["glb", "obj", "zip", "ply"])
    export.add_argument("--mesh-resolution", type=int, default=128)
    export.add_argument("--max-faces", type=int, default=20_000)
    export.add_argument("--texture-size", type=int, default=1024)
    export.add_argument("--frames", type=int, default=48, help="turntable frames; default: 48")
    export.add_argument("--frame-size", type=int, default=192)
    export.add_argument("--still-size", type=int, default=256, help="pixels per side of front, side, back and depth")


def add_variant_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that selects a variant of the files of the prior."""
    parser.add_argument(
        "--variant", metavar="NAME", help="variant of the files of --model, such as fp16 (half the size)"
    )


def add_surface_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select the models for disparity and normals."""
    parser.add_argument(
        "--disparity-model", metavar="ID_OR_DIR", help="DPT model for --preset official; Toybox includes one"
    )
    parser.add_argument(
        "--normal-model", metavar="ID_OR_DIR",
        help="Marigold model for normal guidance, such as prs-eth/marigold-normals-v1-1; Toybox includes one",
    )  # fmt: skip


class ListSettings(argparse.Action):
    """Option that prints the reference table of all settings and exits."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None
    ) -> None:
        """Print the table and exit."""
        print((settings_table if values == "markdown" else settings_text)(HiFAConfig), end="")
        parser.exit()


def add_setting_options(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add the options that change and list the settings of a run."""
    group.add_argument(
        "--set", nargs="+", action="extend", metavar="KEY=VALUE",
        help="change settings of the preset, such as --set annealing=linear camera_radius=2.4,2.6",
    )  # fmt: skip
    group.add_argument(
        "--list-settings", action=ListSettings, nargs="?", const="text", choices=["text", "markdown"],
        help="print all settings with their defaults and ranges, and exit",
    )  # fmt: skip


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that are given as options or with `--set`.

    The function checks the settings without torch and before any model is loaded. Conflicts between several settings
    are checked only for a given preset, because the default preset depends on the prior.

    Returns:
        Changes of the preset, by name.

    Raises:
        ValueError: If a setting is unknown, invalid, or given twice.
    """
    settings = parse_settings(HiFAConfig, arguments.set or ())
    declared = settings_of(HiFAConfig)
    for name, setting in SETTING_OPTIONS.items():
        value = getattr(arguments, name, None)
        if value is None:
            continue
        if setting in settings:
            raise ValueError(f"--{name.replace('_', '-')} and --set {setting} are the same setting. Omit one of them.")
        declared[setting].check(value)
        settings[setting] = value
    if arguments.preset is not None:
        getattr(HiFAConfig, arguments.preset)(**settings)
    return settings


def check_normal_model(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Check that a given normal model has an effect.

    Args:
        arguments: Parsed arguments.
        settings: Changes of the preset.

    Raises:
        ValueError: If neither the preset nor its changes have normal losses.
    """
    if settings.get("lambda_normal") or settings.get("lambda_image_normal"):
        return
    if arguments.normal_model is not None and arguments.preset in WITHOUT_NORMALS:
        raise ValueError(
            f"--normal-model has no effect with --preset {arguments.preset}, which has no normal losses. "
            "Omit one of the two options."
        )


def preset_config(pipe: "HiFAPipeline", preset: str | None, settings: dict[str, Any]) -> HiFAConfig | None:
    """Return the settings of a preset, adapted to the models of a pipeline.

    Args:
        pipe: Pipeline that runs the preset.
        preset: Name of a preset, or `None`.
        settings: Changes of the preset. Some presets derive settings from other settings. The derived settings take
            the changes into account.

    Returns:
        The settings, or `None` for the default of the prior if `preset` is `None`.
    """
    from ..presets import PUBLISHED_NORMALS

    if preset is None:
        return None
    published = PUBLISHED_NORMALS if preset == "preview" and pipe.has_published_normals else {}
    return pipe.fitted(getattr(HiFAConfig, preset)(**published | settings))


def check_ranges(arguments: argparse.Namespace, ranges: tuple[tuple[str, int, int], ...]) -> None:
    """Check that options are in their ranges.

    Args:
        arguments: Parsed arguments.
        ranges: Name, minimum and maximum of each option, both inclusive.

    Raises:
        ValueError: If an option is out of its range. The message names the option.
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
    """Load a pipeline onto a device, with optional models for disparity and normals.

    Args:
        model: Hub ID or folder of the prior.
        disparity_model: Hub ID or folder of a DPT model, or `None`.
        dtype: Data type of the prior and of the disparity model.
        device: Device of the pipeline.
        variant: Variant of the prior's files, such as `"fp16"`.
        normal_model: Hub ID or folder of a Marigold model, or `None`.

    Raises:
        ValueError, OSError: If a model is missing or of the wrong kind.
    """
    from .. import HiFAPipeline

    given = {}
    if disparity_model is not None:
        from transformers import DPTForDepthEstimation

        given["disparity_estimator"] = DPTForDepthEstimation.from_pretrained(disparity_model, dtype=dtype).eval()
    pipe = HiFAPipeline.from_pretrained(model, dtype=dtype, variant=variant, **given).to(device)
    if normal_model is not None:
        pipe.load_normal_model(normal_model)
    return pipe


def embed_first(pipe: "HiFAPipeline", prompts: Iterable[tuple[str, str]]) -> dict[tuple[str, str], "PromptEmbeddings"]:
    """Encode prompts, then release the text encoder of a pixel-space prior.

    T5 is larger than all other models of DeepFloyd IF together. For a latent prior, this function encodes nothing and
    keeps the text encoder. A prompt that the prior cannot encode is skipped, so that only the run of this prompt fails
    later.

    Args:
        pipe: Pipeline with the text encoder.
        prompts: Pairs of prompt and negative prompt.

    Returns:
        Embeddings of each pair, on the CPU.
    """
    if pipe.vae is not None or pipe.text_encoder is None:
        return {}
    embeds = {}
    for pair in dict.fromkeys(prompts):
        try:
            check_prompt(pipe.tokenizer, *pair)
        except ValueError:
            continue
        embeds[pair] = pipe.encode_prompt(*pair).to("cpu")
    pipe.release_text_encoder()
    return embeds


def load_multiview(name: str, dtype, device) -> "SyncDreamerPipeline":
    """Load a multi-view model from a folder, a Hub ID or a published checkpoint.

    Raises:
        ValueError, OSError: If the model is missing or of the wrong kind.
    """
    from ..multiview import SyncDreamerPipeline

    load = SyncDreamerPipeline.from_single_file if name.endswith(CHECKPOINTS) else SyncDreamerPipeline.from_pretrained
    return load(name, dtype=dtype).to(device)


def export_asset(asset: "HiFAAsset", folder: Path, arguments: argparse.Namespace, show_bar: bool = False) -> None:
    """Write an asset, a turntable, stills and meshes to a folder. If a file fails, the export continues.

    Args:
        asset: Asset to export.
        folder: Output folder.
        arguments: Options of `add_export_options`.
        show_bar: Show a progress bar with the remaining time.

    Raises:
        AssetError: If the asset itself cannot be written. Nothing else is exported then.
        ExportError: If another file cannot be written. All remaining files are written.
    """
    asset.save_pretrained(folder / "asset")
    asset.export(
        folder,
        ("turntable", "stills", *arguments.formats),
        show_bar=show_bar,
        mesh_resolution=arguments.mesh_resolution,
        max_faces=arguments.max_faces,
        texture_size=arguments.texture_size,
        num_frames=arguments.frames,
        frame_size=arguments.frame_size,
        still_size=arguments.still_size,
    )
