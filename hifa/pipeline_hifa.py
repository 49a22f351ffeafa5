"""Text-to-3D pipeline: `HiFAPipeline` generates 3D assets from prompts with a diffusers model as prior."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from .asset import HiFAAsset
from .config import HiFAConfig
from .multiview import SyncDreamerPipeline
from .optimization.loop import HiFARunner, check_save_every
from .optimization.run import HiFARun
from .optimization.step import HiFAStep
from .pictures import PreparedPicture
from .prompts import check_prompt
from .storage.files import file_name
from .storage.run_folder import check_may_save


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


class HiFAPipeline(HiFARunner):
    """Pipeline for text-to-3D that optimizes a radiance field against a 2D diffusion model (HiFA, Zhu et al. 2024).

    `from_pretrained` loads any Hub ID or folder of Stable Diffusion, SDXL or DeepFloyd IF. Without an argument,
    `from_pretrained` loads the embedded Toybox prior. See `HiFAComponents` for the components.
    """

    _callback_tensor_inputs = ["image", "prompt_embeds"]

    def check_inputs(
        self,
        prompt: str | None,
        negative_prompt: str | None = "",
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """Check the arguments of a call before any work starts.

        Raises:
            TypeError, ValueError: If a prompt (see `prompts.check_prompt`) or an option is invalid.
        """
        _check_options(output_type, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_prompt(self.tokenizer, prompt, negative_prompt)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: Tensor | list[Tensor] | None = None,
        pooled_prompt_embeds: Tensor | list[Tensor] | None = None,
        config: HiFAConfig | None = None,
        image: PIL.Image.Image | PreparedPicture | None = None,
        elevation_deg: float | None = None,
        multiview: SyncDreamerPipeline | None = None,
        multiview_settings: dict[str, Any] | None = None,
        view_seeds: int = 1,
        views: Any = None,
        hallucinated: bool = False,
        save_dir: str | Path | None = None,
        save_every: int = 100,
        num_frames: int = 48,
        frame_size: int = 192,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["HiFAPipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["image"],  # noqa: B006  diffusers' signature
        **settings: Any,
    ) -> HiFAPipelineOutput | tuple:
        """Generate an asset for each prompt.

        If a call with several prompts fails, the error has an attribute `output` with the `HiFAPipelineOutput` of the
        finished prompts. The interrupted run is `pipe.current_run`.

        Args:
            prompt: Prompt, or a list of prompts that are processed one after the other. May be `None` with an image
                or views.
            negative_prompt: Negative prompt, or a list of the length of `prompt`.
            num_inference_steps, guidance_scale, eta: Values that override the fields of `config` with the same names.
            generator: One generator for all prompts, or a list of the length of `prompt`.
            prompt_embeds: Result of `encode_prompt`, for a pipeline without a text encoder. A list of prompts needs a
                list of the same length.
            pooled_prompt_embeds: Result of `encode_pooled_prompt`, for SDXL.
            config: Settings. Defaults to `default_config()`.
            image: Picture of the object to reconstruct, see `pictures.prepare_picture`. The views of the object are
                hallucinated once for all prompts, with the first generator.
            elevation_deg: Elevation of the picture's camera above the horizon, degrees. If `None`, the elevation is
                estimated from one sheet of views for each of six elevations. The note of the run contains the
                estimate.
            multiview: Model that hallucinates sixteen views of `image`. With the Toybox prior, the default is the
                embedded model, which supports Toybox objects only.
            multiview_settings: Arguments for the call of `multiview`, such as `num_inference_steps` and
                `guidance_scale`.
            view_seeds: Number of sheets of views to hallucinate. The run uses the best sheet, see
                `multiview.selection`.
            views: Sixteen views from another source in place of `image`, see `given_views.read_views`. Given and
                hallucinated views guide the run as `HiFAConfig.image_guidance_end` specifies.
            hallucinated: Whether `views` are hallucinated and thus disagree in detail, like the views of `image`.
            save_dir: Folder of the checkpoint, which is written every `save_every` steps and at the end of the run,
                also after an error or Ctrl-C. `HiFARun.load` and `advance` resume the run. With a list of prompts,
                each prompt has a subfolder.
            save_every: Number of steps between two checkpoints.
            num_frames, frame_size: Number of turntable frames, and their size in pixels per side.
            output_type: `"pil"`, `"np"` or `"pt"`.
            return_dict: If `False`, return the tuple (images, assets, runs).
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after each step, from step 0.
                Setting `pipe._interrupt = True` ends the run early, and the current field becomes the asset. In the
                callback, `pipe.current_run` is the run.
            callback_on_step_end_tensor_inputs: Names of the tensors that the callback gets: `image`, `prompt_embeds`.
            settings: Other fields of `HiFAConfig`.

        Returns:
            The output, or a tuple if `return_dict` is `False`.

        Raises:
            TypeError, ValueError: If the input is invalid, or if `save_dir` holds an unfinished run. Raised before any
                optimization.
            Interrupted: After Ctrl-C; a subclass of `KeyboardInterrupt`.
            DivergedError: If no attempt at a step has a finite loss and gradient, see `advance`.

        Examples:
            >>> pipe = HiFAPipeline.from_pretrained()
            >>> asset = pipe("a red mushroom").assets[0]
            >>> asset.export_mesh("mushroom.glb")
            >>> sync = SyncDreamerPipeline.from_single_file()
            >>> chicken = pipe(image=PIL.Image.open("chicken.png"), elevation_deg=30, multiview=sync).assets[0]
        """
        prompts = prompt if isinstance(prompt, list) else [prompt]
        negatives = _one_for_each(negative_prompt, prompts, "negative_prompt")
        generators = _one_for_each(generator, prompts, "generator")
        check_save_every(save_every)
        if isinstance(prompt_embeds, Tensor) and len(prompts) > 1:
            raise ValueError(f"prompt_embeds is for one prompt, but there are {len(prompts)} prompts. Pass a list.")
        embeds = _one_for_each(prompt_embeds, prompts, "prompt_embeds")
        pooled = _one_for_each(pooled_prompt_embeds, prompts, "pooled_prompt_embeds")
        _check_options(output_type, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        guided = image is not None or views is not None
        for text, negative, *embedded in zip(prompts, negatives, embeds, pooled, strict=True):
            self._check_readable(text, negative or "", *embedded, guided)
        folders = _folders(save_dir, prompts) if isinstance(prompt, list) else [save_dir]
        for folder in folders if save_dir is not None else []:
            check_may_save(folder)
        if image is not None:  # All prompts share the image.
            image = self._photo(image, views, multiview, elevation_deg, view_seeds, multiview_settings)
        given = {"image": image, "views": views, "hallucinated": hallucinated}
        settings |= {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "eta": eta}
        picture = None if image is None else image.picture
        output = HiFAPipelineOutput(images=[], assets=[], runs=[], picture=picture)
        for text, negative, source, *embedded, folder in zip(
            prompts, negatives, generators, embeds, pooled, folders, strict=True
        ):
            given |= dict(zip(("prompt_embeds", "pooled_prompt_embeds"), embedded, strict=True))
            with _keeping(output, len(prompts)):
                run = self.start(text, negative or "", config=config, generator=source, **given, **settings)
                on_step = self._on_step(run, callback_on_step_end, callback_on_step_end_tensor_inputs)
                self.run_to_end(run, folder, save_every, on_step)
                self.current_run, asset = run, run.asset()
                images = _format(asset.turntable(num_frames, frame_size), output_type)
            self.current_run = None
            output.images.append(images)
            output.assets.append(asset)
            output.runs.append(run)
            if self.interrupt:
                break
        self.maybe_free_model_hooks()
        return output if return_dict else (output.images, output.assets, output.runs)

    def _on_step(
        self, run: HiFARun, callback: Callable | None, tensor_names: list[str]
    ) -> Callable[[HiFAStep], None] | None:
        """Wrap a diffusers callback for `run_to_end`."""
        if callback is None:
            return None

        def on_step(step: HiFAStep) -> None:
            tensors = {"image": step.image, "prompt_embeds": run.prompt_embeds}
            returned = callback(self, step.step - 1, step.timestep, {name: tensors[name] for name in tensor_names})
            run.prompt_embeds = (returned or {}).get("prompt_embeds", run.prompt_embeds)

        return on_step


@contextmanager
def _keeping(output: HiFAPipelineOutput, prompts: int) -> Iterator[None]:
    """Attach the output of the finished prompts to an error, because a failed call returns no output."""
    try:
        yield
    except BaseException as error:
        if output.runs:
            error.output = output
            error.add_note(
                f"{len(output.runs)} of {prompts} prompts are finished. Their HiFAPipelineOutput is the attribute "
                "`output` of this error."
            )
        raise


def _check_options(output_type: str, tensor_names: list[str] | None, known: list[str]) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
    unknown = set(tensor_names or []) - set(known)
    if unknown:
        raise ValueError(f"callback_on_step_end_tensor_inputs must be from {known}, got {sorted(unknown)}.")


def _folders(save_dir: str | Path | None, prompts: list[str]) -> list[Path | None]:
    """Return a subfolder of `save_dir` for each prompt, named by the number and the prompt."""
    if save_dir is None:
        return [None] * len(prompts)
    return [Path(save_dir) / f"{index:04d}-{file_name(text or '')}" for index, text in enumerate(prompts)]


def _one_for_each(value: Any, prompts: list[str], name: str) -> list:
    if not isinstance(value, list):
        return [value] * len(prompts)
    if len(value) != len(prompts):
        raise ValueError(f"{name} has {len(value)} entries for {len(prompts)} prompts.")
    return value


def _format(frames: Tensor, output_type: str) -> Any:
    if output_type == "pt":
        return frames
    if output_type == "np":
        return frames.cpu().numpy()
    return [PIL.Image.fromarray(frame) for frame in (frames * 255).round().byte().cpu().numpy()]
