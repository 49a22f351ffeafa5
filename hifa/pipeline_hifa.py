"""HiFAPipeline: a prompt goes in, a 3D asset comes out; diffusers components guide the way."""

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
from .names import file_name
from .optimisation import HiFAStep
from .pictures import PreparedPicture
from .prompts import check_prompt
from .run import HiFARun
from .runner import HiFARunner, check_save_every
from .saved import check_may_save


OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class HiFAPipelineOutput(BaseOutput):
    """Result of `HiFAPipeline`.

    Args:
        images: For each prompt a turntable: PIL images, or an array or tensor `(frames, H, W, 3)` in [0, 1].
        assets: For each prompt the 3D asset.
        runs: For each prompt the run, to be saved or continued. The last one may be unfinished, if a callback
            interrupted it; the prompts after it were not begun then, and all three lists are shorter.
        picture: What became of `image`: the object cut out, and what may spoil the result; `None` without an image.
    """

    images: list[Any]
    assets: list[HiFAAsset]
    runs: list[HiFARun]
    picture: PreparedPicture | None = None


class HiFAPipeline(HiFARunner):
    """Text-to-3D by optimising a radiance field against a 2D diffusion model (HiFA, Zhu et al. 2024).

    Any folder or hub id of Stable Diffusion, SDXL or DeepFloyd IF loads; without one, `from_pretrained()`
    takes the embedded Toybox prior. Arguments as for `HiFAComponents`.
    """

    _callback_tensor_inputs = ["image", "prompt_embeds"]

    def check_inputs(
        self,
        prompt: str | None,
        negative_prompt: str | None = "",
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """Check what a run needs before any work starts.

        Raises:
            TypeError, ValueError: For a bad prompt (`prompts.check_prompt`) or a bad option.
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
        """Make an asset for each prompt.

        Args:
            prompt: What to make; with a list, one after the other. `None` with an image or views.
            negative_prompt: Guides away from it; a list must have the length of `prompt`.
            num_inference_steps, guidance_scale, eta: Settings of `config` under diffusers' names.
            generator: One for all prompts, or a list of the length of `prompt`.
            prompt_embeds: What `encode_prompt` returned for the prompt, without a text encoder; for a list of prompts
                as many.
            pooled_prompt_embeds: The same of `encode_pooled_prompt`, for SDXL.
            config: Settings; `default_config()` without it.
            image: A picture of the object to reconstruct; see `pictures.prepare_picture` for what it may be. Its views
                are hallucinated once for all prompts, with the first generator.
            elevation_deg: Of the picture's camera above the horizon, degrees; estimated without it, which takes a
                hallucination for each of six elevations. The estimate is told in the note of the run.
            multiview: Hallucinates sixteen views of `image`; Toybox brings its own, which knows Toybox pictures.
            multiview_settings: Of its call: `num_inference_steps`, `guidance_scale`, ...
            view_seeds: How many times it hallucinates; the views that agree best are used, see `multiview.selection`.
            views: Sixteen views from elsewhere in place of `image`, see `given_views.read_views`. Both guide the run
                as far as `image_guidance_end` says, a field of `HiFAConfig`.
            hallucinated: Whether a model made `views`, as it makes those of `image`: they disagree in detail.
            save_dir: Where the run is saved every `save_every` steps and at its end, also if that is an error or
                Ctrl-C; `HiFARun.load` and `advance` continue it. With a list of prompts each has a folder in it.
            num_frames, frame_size: Turntable frames and their pixels per side.
            output_type: `"pil"`, `"np"` or `"pt"`.
            return_dict: `False` returns the tuple (images, assets, runs).
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after each step, from step 0.
                Setting `pipe._interrupt = True` ends the run early; what there is becomes the asset. The run is
                `pipe.current_run`.
            callback_on_step_end_tensor_inputs: Names of the tensors it is given: `image`, `prompt_embeds`.
            settings: Other fields of `HiFAConfig`.

        Raises:
            TypeError, ValueError: For bad input, before any work; also for a `save_dir` with an unfinished run.
            Interrupted: After Ctrl-C, a `KeyboardInterrupt`.
            DivergedError: If a run finds no finite loss and gradient, see `advance`. With a list of prompts, this and
                every other error has an attribute `output`: the `HiFAPipelineOutput` of the prompts that are finished,
                if there are any. The run that was cut short is `pipe.current_run`.

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
            raise ValueError(f"prompt_embeds is of one prompt, and there are {len(prompts)}. Give a list of them.")
        embeds = _one_for_each(prompt_embeds, prompts, "prompt_embeds")
        pooled = _one_for_each(pooled_prompt_embeds, prompts, "pooled_prompt_embeds")
        _check_options(output_type, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        guided = image is not None or views is not None
        for text, negative, *embedded in zip(prompts, negatives, embeds, pooled, strict=True):
            self._check_readable(text, negative or "", *embedded, guided)
        folders = _folders(save_dir, prompts) if isinstance(prompt, list) else [save_dir]
        for folder in folders if save_dir is not None else []:
            check_may_save(folder)
        if image is not None:  # one for all prompts
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
        """A callback in diffusers' manner as `run_to_end` calls it."""
        if callback is None:
            return None

        def on_step(step: HiFAStep) -> None:
            tensors = {"image": step.image, "prompt_embeds": run.prompt_embeds}
            returned = callback(self, step.step - 1, step.timestep, {name: tensors[name] for name in tensor_names})
            run.prompt_embeds = (returned or {}).get("prompt_embeds", run.prompt_embeds)

        return on_step


@contextmanager
def _keeping(output: HiFAPipelineOutput, prompts: int) -> Iterator[None]:
    """Give an error the output of the prompts that were finished before it, which would be lost with the call."""
    try:
        yield
    except BaseException as error:
        if output.runs:
            error.output = output
            error.add_note(
                f"{len(output.runs)} of {prompts} prompts are finished: this error has their HiFAPipelineOutput as "
                "`output`."
            )
        raise


def _check_options(output_type: str, tensor_names: list[str] | None, known: list[str]) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
    unknown = set(tensor_names or []) - set(known)
    if unknown:
        raise ValueError(f"callback_on_step_end_tensor_inputs knows {known}, got {sorted(unknown)}.")


def _folders(save_dir: str | Path | None, prompts: list[str]) -> list[Path | None]:
    """For each prompt a folder of its own in `save_dir`, named by number and prompt."""
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
