"""HiFAPipeline: a prompt goes in, a 3D asset comes out; diffusers components guide the way."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput, logging
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .asset import HiFAAsset
from .cameras import VIEWS
from .config import HiFAConfig
from .given_views import read_views
from .hallucination import check_photo_inputs, hallucinate_views
from .multiview import SyncDreamerPipeline
from .optimisation import HiFAStep, optimisation_step
from .priors.latent_diffusion import LatentDiffusionPrior
from .prompts import PromptError, check_prompt
from .run import HiFARun


TOYBOX = Path(__file__).parent / "toybox" / "weights"
OUTPUT_TYPES = ("pil", "np", "pt")

logger = logging.get_logger(__name__)


@dataclass
class HiFAPipelineOutput(BaseOutput):
    """Result of `HiFAPipeline`.

    Args:
        images: For each prompt a turntable: PIL images, or an array or tensor `(frames, H, W, 3)` in [0, 1].
        assets: For each prompt the 3D asset.
        runs: For each prompt the run, to be saved or continued.
    """

    images: list[Any]
    assets: list[HiFAAsset]
    runs: list[HiFARun]


class HiFAPipeline(DiffusionPipeline):
    """Text-to-3D by optimising a radiance field against a 2D latent diffusion model (HiFA, Zhu et al. 2024).

    Any Stable Diffusion folder or hub id loads; without one, `from_pretrained()` takes the embedded Toybox prior.

    Args:
        vae: `AutoencoderKL`.
        text_encoder, tokenizer: CLIP text model and its tokenizer.
        unet: `UNet2DConditionModel` that predicts epsilon, v or the sample.
        scheduler: Any diffusers scheduler with a noise schedule; a `DDIMScheduler` is made from it.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ["image", "prompt_embeds"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
    ):
        super().__init__()
        scheduler = DDIMScheduler.from_config(scheduler.config)
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        # The prior is never trained. Gradients pass through the encoder to the image, and must not be kept for it.
        for model in (vae, text_encoder, unet):
            model.requires_grad_(False)
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path = TOYBOX, **kwargs: Any) -> "HiFAPipeline":
        """Load a prior: a hub id or a folder in Stable Diffusion's layout; the embedded Toybox by default.

        Args:
            kwargs: As for `DiffusionPipeline.from_pretrained`: `dtype`, `variant`, `token`, ...

        Raises:
            ValueError: If the model is of another kind.
            OSError: If there is no such model.
        """
        try:
            return super().from_pretrained(str(pretrained_model_name_or_path), **kwargs)
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} is not a model in Stable Diffusion's layout (vae, unet, "
                f"text_encoder, tokenizer, scheduler): {error}"
            ) from error

    @property
    def image_size(self) -> int:
        """Pixels per side that the prior was trained on."""
        return self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Steps of the run that is going on."""
        return self._num_timesteps

    def default_config(self, views: bool = False) -> HiFAConfig:
        """`fast` for a prior of up to 64 pixels, as Toybox is, and `preview` for a larger one.

        Args:
            views: With given views, `reconstruction` in place of `fast`.
        """
        if self.image_size > 64:
            return HiFAConfig.preview()
        return HiFAConfig.reconstruction() if views else HiFAConfig.fast()

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
    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> Tensor:
        """Embeddings `(1 + len(VIEWS), tokens, dim)`: the negative prompt, then the prompt as seen from each view."""
        texts = [negative_prompt, *(f"{prompt}, {view}" for view in VIEWS)]
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self._execution_device))[0]

    def start(
        self,
        prompt: str | None,
        negative_prompt: str = "",
        *,
        image: PIL.Image.Image | None = None,
        elevation_deg: float | None = None,
        multiview: SyncDreamerPipeline | None = None,
        multiview_settings: dict[str, Any] | None = None,
        views: Any = None,
        config: HiFAConfig | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> HiFARun:
        """Begin a run: check, encode the prompt, hallucinate views of an image, make a fresh field.

        Args:
            prompt: `None` with views or an image: they are reconstructed, and nothing is distilled. The same happens,
                with a warning and a note in the run, to a prompt that the prior cannot read.
            image, elevation_deg, multiview, multiview_settings: See `__call__`.
            views: See `given_views.read_views`.
            config: Settings; `default_config()` without it.
            generator: Source of all randomness, on the CPU. The same state gives the same result.
            seed: In place of a generator.
            settings: Fields of `HiFAConfig` that differ from `config`, such as `num_inference_steps=200`.
        """
        if image is not None:
            check_photo_inputs(image, views, elevation_deg, multiview)
        guided = image is not None or views is not None
        note = self._check_prompt(prompt, negative_prompt, guided)
        config = config or self.default_config(guided)
        config = replace(config, **{k: v for k, v in settings.items() if v is not None})
        reads = prompt is not None and not note
        if not reads and config.image_guidance_end < 1:
            raise ValueError(
                f"image_guidance_end={config.image_guidance_end} leaves the rest of the run to the prompt, and there "
                f"is none that the prior can read. {note or 'Give a prompt, or image_guidance_end=1.'}"
            )
        if generator is None:
            generator = torch.Generator().manual_seed(0 if seed is None else seed)
        elif generator.device.type != "cpu":
            raise ValueError(f"The generator must be on the CPU, whatever the run is on; got {generator.device}.")
        views = None if views is None else read_views(views, config.bound, config.given_size)
        # The field's own seed is drawn, so that a given generator decides it too.
        field_seed = int(torch.randint(2**31 - 1, (), generator=generator)) if seed is None else seed
        if image is not None:
            hallucinated = hallucinate_views(multiview, image, elevation_deg, generator, multiview_settings or {})
            views = read_views(hallucinated, config.bound, config.given_size)
        if note:
            logger.warning(note)
        # Tensors made in a caller's inference mode could never be optimised.
        with torch.inference_mode(False):
            return HiFARun.begin(
                prompt,
                negative_prompt or "",
                config,
                field_seed,
                str(self.config.get("_name_or_path") or "custom") if reads else None,
                self.encode_prompt(prompt, negative_prompt or "").float() if reads else None,
                generator,
                self._execution_device,
                views,
                note,
            )

    def _check_prompt(self, prompt: str | None, negative_prompt: str | None, guided: bool) -> str:
        """Refuse a bad prompt; with views that guide, one that the prior cannot read only gives a note about that."""
        if prompt is None and guided:
            return ""
        try:
            check_prompt(self.tokenizer, prompt, negative_prompt)
        except PromptError as error:
            if not guided:
                raise
            return f"The views are reconstructed alone, without the prior: {error}"
        return ""

    def advance(self, run: HiFARun, steps: int | None = None) -> Iterator[HiFAStep]:
        """Optimise a run, yielding after each step, until it is finished or `steps` more are done.

        The run is complete and can be saved between any two steps; a consumer that stops asking stops the work.
        """
        prior, image_size = None, None
        if run.prompt_embeds is not None:
            prior, image_size = LatentDiffusionPrior(self.vae, self.unet, self.scheduler), self.image_size
        end = run.config.num_inference_steps
        end = end if steps is None else min(end, run.step + steps)
        while run.step < end:
            clock = time.perf_counter()
            with torch.inference_mode(False), torch.enable_grad():
                result = optimisation_step(run, prior, image_size)
            run.seconds += time.perf_counter() - clock
            yield result

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        config: HiFAConfig | None = None,
        image: PIL.Image.Image | None = None,
        elevation_deg: float | None = None,
        multiview: SyncDreamerPipeline | None = None,
        multiview_settings: dict[str, Any] | None = None,
        views: Any = None,
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
            config: Settings; `default_config()` without it.
            image: A picture of the object to reconstruct; see `pictures.prepare_picture` for what it may be.
            elevation_deg: Of the picture's camera above the horizon, degrees; with `image`.
            multiview: Hallucinates sixteen views of `image`.
            multiview_settings: Of its call: `num_inference_steps`, `guidance_scale`, ...
            views: Sixteen views from elsewhere in place of `image`, see `given_views.read_views`. Both guide the run
                as far as `image_guidance_end` says, a field of `HiFAConfig`.
            num_frames, frame_size: Turntable frames and their pixels per side.
            output_type: `"pil"`, `"np"` or `"pt"`.
            return_dict: `False` returns the tuple (images, assets, runs).
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after each step, from step 0.
                Setting `pipe._interrupt = True` ends the run early; what there is becomes the asset.
            callback_on_step_end_tensor_inputs: Names of the tensors it is given: `image`, `prompt_embeds`.
            settings: Other fields of `HiFAConfig`.

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
        _check_options(output_type, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        guided = image is not None or views is not None
        for text, negative in zip(prompts, negatives, strict=True):
            self._check_prompt(text, negative or "", guided)
        given = {"image": image, "elevation_deg": elevation_deg, "multiview": multiview, "views": views}
        given["multiview_settings"] = multiview_settings
        settings |= {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "eta": eta}
        self._interrupt = False
        output = HiFAPipelineOutput(images=[], assets=[], runs=[])
        for text, negative, source in zip(prompts, negatives, generators, strict=True):
            run = self.start(text, negative or "", config=config, generator=source, **given, **settings)
            self._run_to_end(run, callback_on_step_end, callback_on_step_end_tensor_inputs)
            asset = run.asset()
            output.images.append(_format(asset.turntable(num_frames, frame_size), output_type))
            output.assets.append(asset)
            output.runs.append(run)
        self.maybe_free_model_hooks()
        return output if return_dict else (output.images, output.assets, output.runs)

    def _run_to_end(self, run: HiFARun, callback: Callable | None, tensor_names: list[str]) -> None:
        self._num_timesteps = run.config.num_inference_steps
        with self.progress_bar(total=run.config.num_inference_steps) as progress:
            for step in self.advance(run):
                progress.update()
                progress.set_postfix(loss=f"{step.losses['loss']:.3f}", t=step.timestep)
                if callback is not None:
                    tensors = {"image": step.image, "prompt_embeds": run.prompt_embeds}
                    returned = callback(
                        self, step.step - 1, step.timestep, {name: tensors[name] for name in tensor_names}
                    )
                    run.prompt_embeds = (returned or {}).get("prompt_embeds", run.prompt_embeds)
                if self.interrupt:
                    break


def _check_options(output_type: str, tensor_names: list[str] | None, known: list[str]) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
    unknown = set(tensor_names or []) - set(known)
    if unknown:
        raise ValueError(f"callback_on_step_end_tensor_inputs knows {known}, got {sorted(unknown)}.")


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
