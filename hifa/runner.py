"""Runs are begun here, optimised step by step, and brought to their end."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers.utils import logging
from torch import Tensor

from .components import HiFAComponents
from .config import HiFAConfig
from .given_views import read_views
from .hallucination import Photo
from .interrupt import Interrupted, first_noted
from .multiview import SyncDreamerPipeline
from .optimisation import DivergedError, HiFAStep, optimisation_step
from .pictures import PreparedPicture
from .priors.variational import VariationalScore, VariationalState, check_adaptable
from .run import HiFARun
from .saved import RunError


logger = logging.get_logger(__name__)


class HiFARunner(HiFAComponents):
    """What components do with a run: `start` makes one, `advance` moves it, `run_to_end` finishes it. Arguments as for
    `HiFAComponents`."""

    _interrupt = False
    # The run that is going on, for callbacks; after an error or Ctrl-C it is the one that was cut short.
    current_run: HiFARun | None = None

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Steps of the run that is going on."""
        return self._num_timesteps

    def start(
        self,
        prompt: str | None,
        negative_prompt: str = "",
        *,
        image: PIL.Image.Image | PreparedPicture | Photo | None = None,
        elevation_deg: float | None = None,
        multiview: SyncDreamerPipeline | None = None,
        multiview_settings: dict[str, Any] | None = None,
        view_seeds: int = 1,
        views: Any = None,
        hallucinated: bool = False,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        config: HiFAConfig | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> HiFARun:
        """Begin a run: check, encode the prompt, hallucinate views of an image, make a fresh field.

        Args:
            prompt: `None` with views or an image: they are reconstructed, and nothing is distilled. The same happens,
                with a warning and a note in the run, to a prompt that the prior cannot read.
            image, elevation_deg, multiview, multiview_settings, view_seeds: See `HiFAPipeline.__call__`. The image
                may be a `hallucination.Photo`, which holds the others.
            views: See `given_views.read_views`.
            hallucinated: Whether a model made `views`, so that they disagree in detail: decides `default_config()`.
            prompt_embeds: What `encode_prompt` returned for this prompt, here or elsewhere; without a text encoder.
            pooled_prompt_embeds: The same of `encode_pooled_prompt`, for SDXL.
            config: Settings; `default_config()` without it.
            generator: Source of all randomness, on the CPU. The same state gives the same result.
            seed: In place of a generator.
            settings: Fields of `HiFAConfig` that differ from `config`, such as `num_inference_steps=200`.
        """
        if image is not None:
            image = self._photo(image, views, multiview, elevation_deg, view_seeds, multiview_settings)
        guided = image is not None or views is not None
        note = self._check_readable(prompt, negative_prompt, prompt_embeds, pooled_prompt_embeds, guided)
        reads = prompt is not None and not note
        follows_views = guided and not reads and config is None and "finest_resolution" not in settings
        config = config or self.default_config(guided, reads, hallucinated or image is not None)
        config = replace(config, **{k: v for k, v in settings.items() if v is not None})
        if not reads:
            _check_without_prior(config, note)
        self.check_views(config)
        self.surface_models(config)  # refuses settings that need a model that was not given
        if reads:
            self.make_prior(config.prior_size)  # refuses a size that it cannot be shown
        if reads and config.distillation == "vsd":
            check_adaptable(self.unet)
        if generator is None:
            generator = torch.Generator().manual_seed(0 if seed is None else seed)
        elif generator.device.type != "cpu":
            raise ValueError(f"The generator must be on the CPU, whatever the run is on; got {generator.device}.")
        views = None if views is None else read_views(views, config.bound, config.given_size)
        # The field's own seed is drawn, so that a given generator decides it too.
        field_seed = int(torch.randint(2**31 - 1, (), generator=generator)) if seed is None else seed
        if note:
            logger.warning(note)
        if image is not None:
            made = image.hallucinate(generator)
            views = read_views(made.images, config.bound, config.given_size, image.cameras(config.bound))
            note = f"{note} {made.note}".strip()
        if follows_views:  # cells finer than a pixel would only hold noise
            config = replace(config, finest_resolution=max(views.size, config.base_resolution))
        if reads and prompt_embeds is None:
            prompt_embeds, pooled_prompt_embeds = self._encode(prompt, negative_prompt or "")
        # Tensors made in a caller's inference mode could never be optimised.
        with torch.inference_mode(False):
            run = HiFARun.begin(
                prompt,
                negative_prompt or "",
                config,
                field_seed,
                str(self.config.get("_name_or_path") or "custom") if reads else None,
                self._kept(prompt_embeds) if reads else None,
                generator,
                self._execution_device,
                views,
                note,
                self._kept(pooled_prompt_embeds) if reads and pooled_prompt_embeds is not None else None,
            )
            if reads and config.distillation == "vsd":
                run.variational = VariationalState.begin(
                    self.unet, config.lora_rank, config.lora_lr, field_seed, self._execution_device
                )
            return run

    def _kept(self, embeds: Tensor) -> Tensor:
        """A copy that a run can keep: float32, whatever the text encoder's precision."""
        return embeds.to(self._execution_device, torch.float32, copy=True)

    def _photo(self, image: Any, views: Any, multiview: SyncDreamerPipeline | None, *options: Any) -> Photo:
        """The image with all that its views need, checked before any work."""
        if views is not None:
            raise ValueError("Give either image, of which views are hallucinated, or views, not both.")
        return image if isinstance(image, Photo) else Photo(image, multiview or self.embedded_multiview(), *options)

    def advance(self, run: HiFARun, steps: int | None = None) -> Iterator[HiFAStep]:
        """Optimise a run, yielding after each step, until it is finished or `steps` more are done.

        The run is complete and can be saved between any two steps; a consumer that stops asking stops the work.

        Raises:
            DivergedError: If no attempt at a step gives a finite loss and gradient; the run is that of the step
                before, and can be saved.
        """
        prior, variational, surfaces = None, None, self.surface_models(run.config, run.views)
        if run.prompt_embeds is not None:
            prior = self.make_prior(run.config.prior_size)
            if run.variational is not None:
                variational = VariationalScore(prior, run.variational)
        end = run.config.num_inference_steps
        end = end if steps is None else min(end, run.step + steps)
        while run.step < end:
            clock = time.perf_counter()
            try:
                with torch.inference_mode(False), torch.enable_grad():
                    result = optimisation_step(run, prior, surfaces, variational)
            finally:
                run.seconds += time.perf_counter() - clock
            if result.skipped:
                logger.warning(f"Step {run.step} took {result.skipped + 1} attempts: the others were not finite.")
            yield result

    def run_to_end(
        self,
        run: HiFARun,
        save_dir: str | Path | None = None,
        save_every: int = 100,
        on_step: Callable[[HiFAStep], None] | None = None,
    ) -> None:
        """Advance a run until it is finished, `_interrupt` is set, or Ctrl-C is pressed; with a progress bar.

        Args:
            save_dir: The run is saved here every `save_every` steps and at the end, whatever ends it. After an error
                inside of a step it can be continued, but not bit for bit. One that diverges is saved as it was before
                that, with the random state after it, so that a continuation does not repeat the failure.
            on_step: Called after each step.

        Raises:
            Interrupted: After Ctrl-C, when the step at hand is finished and the run is saved. The second Ctrl-C does
                not wait for the step.
            RunError: If the folder cannot be written.
            DivergedError: See `advance`.
        """
        check_save_every(save_every)
        end = self._num_timesteps = run.config.num_inference_steps
        self._interrupt, self.current_run, saved = False, run, None
        with first_noted() as interrupt, self.progress_bar(total=end) as progress:
            progress.initial = progress.n = run.step
            try:
                for step in self.advance(run):
                    progress.update()
                    progress.set_postfix(loss=f"{step.losses['loss']:.3f}", t=step.timestep)
                    if save_dir is not None and run.step % save_every == 0:
                        run.save(save_dir)
                        saved = run.step
                    if on_step is not None:
                        on_step(step)
                    if self.interrupt or interrupt.noted:
                        break
            except DivergedError:
                if save_dir is not None:  # also where this step is saved: the random state is another one by now
                    with suppress(RunError):  # a field that was spoilt from outside
                        run.save(save_dir)
                saved = run.step
                raise
            finally:
                if save_dir is not None and saved != run.step:
                    run.save(save_dir)
        if interrupt.noted:
            raise Interrupted
        self.current_run = None


def _check_without_prior(config: HiFAConfig, note: str) -> None:
    """Refuse settings that need a prompt that the prior can read, where there is none.

    Args:
        note: Why there is none, for the user; empty if none was given.
    """
    if config.image_guidance_end < 1:
        raise ValueError(
            f"image_guidance_end={config.image_guidance_end} leaves the rest of the run to the prompt, and there "
            f"is none that the prior can read. {note or 'Give a prompt, or image_guidance_end=1.'}"
        )
    for name in ("lambda_disparity", "lambda_image_latent"):
        if getattr(config, name):
            raise ValueError(
                f"{name}={getattr(config, name)} needs the prior, and there is no prompt that it can read. "
                f"{note or f'Give a prompt, or {name}=0.'}"
            )


def check_save_every(steps: int) -> None:
    """
    Raises:
        ValueError: If it is less than one step.
    """
    if steps < 1:
        raise ValueError(f"save_every must be at least 1 step, got {steps}.")
