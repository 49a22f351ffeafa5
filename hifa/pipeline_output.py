"""Output of `HiFAPipeline`, and helper functions for calls with several prompts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
from diffusers.utils import BaseOutput
from torch import Tensor

from .asset import HiFAAsset
from .optimization.run import HiFARun
from .photo_cutout import PreparedPicture
from .storage.files import file_name


OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class HiFAPipelineOutput(BaseOutput):
    """Output of `HiFAPipeline`.

    The lists have one entry for each prompt. If a callback interrupts a run, the interrupted run is the last entry,
    and the lists have no entries for the remaining prompts.

    Args:
        images: Turntables: each a list of PIL images, or an array or tensor `(frames, H, W, 3)` in [0, 1].
        assets: 3D assets.
        runs: Runs, to save or to continue. The last run is unfinished if a callback interrupted it.
        picture: The object of `image` after background removal, with warnings about the picture. `None` without an
            image.
    """

    images: list[Any]
    assets: list[HiFAAsset]
    runs: list[HiFARun]
    picture: PreparedPicture | None = None


@contextmanager
def keeping(output: HiFAPipelineOutput, prompts: int) -> Iterator[None]:
    """Attach the output of the finished prompts to an error, because a failed call returns no output.

    Args:
        output: Output so far.
        prompts: Number of prompts of the call.
    """
    try:
        yield
    except BaseException as error:
        if output.runs:
            error.output = output  # pyright: ignore[reportAttributeAccessIssue]
            error.add_note(
                f"{len(output.runs)} of {prompts} prompts are finished. Their HiFAPipelineOutput is the attribute "
                "`output` of this error."
            )
        raise


def check_options(output_type: str, tensor_names: list[str] | None, known: list[str]) -> None:
    """Check options of a call.

    Raises:
        ValueError: If `output_type` is unknown, or if `tensor_names` has a name that is not in `known`.
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
    unknown = set(tensor_names or []) - set(known)
    if unknown:
        raise ValueError(f"callback_on_step_end_tensor_inputs must be from {known}, got {sorted(unknown)}.")


def folders_for(save_dir: str | Path | None, prompts: Sequence[str]) -> list[Path | None]:
    """Return a subfolder of `save_dir` for each prompt, named by the number and the prompt."""
    if save_dir is None:
        return [None] * len(prompts)
    return [Path(save_dir) / f"{index:04d}-{file_name(text or '')}" for index, text in enumerate(prompts)]


def one_for_each(value: Any, prompts: Sequence[str | None], name: str) -> list:
    """Return a list with one value for each prompt.

    Raises:
        ValueError: If `value` is a list of another length.
    """
    if not isinstance(value, list):
        return [value] * len(prompts)
    if len(value) != len(prompts):
        raise ValueError(f"{name} has {len(value)} entries for {len(prompts)} prompts.")
    return value


def as_type(frames: Tensor, output_type: str) -> Any:
    """Convert frames `(n, H, W, 3)` in [0, 1] to the output type: PIL images, an array or a tensor."""
    if output_type == "pt":
        return frames
    if output_type == "np":
        return frames.cpu().numpy()
    return [PIL.Image.fromarray(frame) for frame in (frames * 255).round().byte().cpu().numpy()]
