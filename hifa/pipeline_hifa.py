"""HiFAPipeline: a prompt goes in, a 3D asset comes out; diffusers components guide the way."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .asset import HiFAAsset
from .cameras import VIEWS
from .config import HiFAConfig
from .optimisation import HiFAStep, optimisation_step
from .priors.latent_diffusion import LatentDiffusionPrior
from .run import HiFARun
from .toybox.vocabulary import explain_unknown_word


TOYBOX = Path(__file__).parent / "toybox" / "weights"
OUTPUT_TYPES = ("pil", "np", "pt")


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

    def default_config(self) -> HiFAConfig:
        """`fast` for a prior of up to 64 pixels, as Toybox is, and `preview` for a larger one."""
        return HiFAConfig.fast() if self.image_size <= 64 else HiFAConfig.preview()

    def check_inputs(
        self,
        prompt: str | None,
        negative_prompt: str | None = "",
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """Check what a run needs before any work starts.

        Raises:
            TypeError: If a prompt is not a string.
            ValueError: For an empty or overlong prompt, a word that the tokenizer does not know, or a bad option.
        """
        if not isinstance(prompt, str) or not isinstance(negative_prompt, str | None):
            raise TypeError(f"prompt and negative_prompt must be strings, got {prompt!r} and {negative_prompt!r}.")
        if not prompt.strip():
            raise ValueError(f"The prompt is empty ({prompt!r}). Say what to make, such as 'a red mushroom'.")
        longest = max((f"{prompt}, {view}" for view in VIEWS), key=len)
        for text in (longest, negative_prompt or ""):
            self._check_words(text)
            length, limit = len(self.tokenizer(text).input_ids), self.tokenizer.model_max_length
            if length > limit:
                raise ValueError(
                    f"The prompt takes {length} tokens with its view; the prior reads {limit}: {text!r}. Shorten it."
                )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs or []) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs knows {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )

    def _check_words(self, text: str) -> None:
        """A tokenizer of whole words marks the unknown ones; one of word pieces, such as CLIP's, knows them all."""
        unknown = getattr(self.tokenizer, "unk_token", None)
        if unknown is None or unknown == self.tokenizer.eos_token:
            return
        for word in text.replace(",", " ").split():
            if self.tokenizer.unk_token_id in self.tokenizer(word, add_special_tokens=False).input_ids:
                raise ValueError(explain_unknown_word(word))

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
        prompt: str,
        negative_prompt: str = "",
        *,
        config: HiFAConfig | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> HiFARun:
        """Begin a run: check, encode the prompt, make a fresh field. No optimisation yet.

        Args:
            config: Settings; `default_config()` without it.
            generator: Source of all randomness, on the CPU. The same state gives the same result.
            seed: In place of a generator.
            settings: Fields of `HiFAConfig` that differ from `config`, such as `num_inference_steps=200`.
        """
        self.check_inputs(prompt, negative_prompt)
        config = replace(config or self.default_config(), **{k: v for k, v in settings.items() if v is not None})
        if generator is None:
            generator = torch.Generator().manual_seed(0 if seed is None else seed)
        elif generator.device.type != "cpu":
            raise ValueError(f"The generator must be on the CPU, whatever the run is on; got {generator.device}.")
        # The field's own seed is drawn, so that a given generator decides it too.
        field_seed = int(torch.randint(2**31 - 1, (), generator=generator)) if seed is None else seed
        # Tensors made in a caller's inference mode could never be optimised.
        with torch.inference_mode(False):
            embeds = self.encode_prompt(prompt, negative_prompt or "").float()
            return HiFARun.begin(
                prompt,
                negative_prompt or "",
                config,
                field_seed,
                str(self.config.get("_name_or_path") or "custom"),
                embeds,
                generator,
                self._execution_device,
            )

    def advance(self, run: HiFARun, steps: int | None = None) -> Iterator[HiFAStep]:
        """Optimise a run, yielding after each step, until it is finished or `steps` more are done.

        The run is complete and can be saved between any two steps; a consumer that stops asking stops the work.
        """
        prior = LatentDiffusionPrior(self.vae, self.unet, self.scheduler)
        end = run.config.num_inference_steps
        end = end if steps is None else min(end, run.step + steps)
        while run.step < end:
            clock = time.perf_counter()
            with torch.inference_mode(False), torch.enable_grad():
                result = optimisation_step(run, prior, self.image_size)
            run.seconds += time.perf_counter() - clock
            yield result

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        config: HiFAConfig | None = None,
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
            prompt: What to make; with a list, one after the other.
            negative_prompt: Guides away from it; a list must have the length of `prompt`.
            num_inference_steps, guidance_scale, eta: Settings of `config` under diffusers' names.
            generator: One for all prompts, or a list of the length of `prompt`.
            config: Settings; `default_config()` without it.
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
        """
        prompts = prompt if isinstance(prompt, list) else [prompt]
        negatives = _one_for_each(negative_prompt, prompts, "negative_prompt")
        generators = _one_for_each(generator, prompts, "generator")
        for text, negative in zip(prompts, negatives, strict=True):
            self.check_inputs(text, negative or "", output_type, callback_on_step_end_tensor_inputs)
        settings |= {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "eta": eta}
        self._interrupt = False
        output = HiFAPipelineOutput(images=[], assets=[], runs=[])
        for text, negative, source in zip(prompts, negatives, generators, strict=True):
            run = self.start(text, negative or "", config=config, generator=source, **settings)
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
