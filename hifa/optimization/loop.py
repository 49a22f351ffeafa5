"""Pipeline methods that start, advance and finish a run."""

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

from ..components import HiFAComponents
from ..config import HiFAConfig
from ..multiview import SyncDreamerPipeline
from ..multiview.given_views import read_views
from ..multiview.hallucination import Photo
from ..pictures import PreparedPicture
from ..priors.vsd import VariationalScore, VariationalState, check_adaptable
from ..storage.run_folder import RunError
from .interrupt import Interrupted, first_noted
from .run import HiFARun
from .step import DivergedError, HiFAStep, optimization_step


logger = logging.get_logger(__name__)


class HiFARunner(HiFAComponents):
    """Operations on runs.

    `start` creates a run, `advance` optimizes a run step by step, and `run_to_end` finishes a run. See
    `HiFAComponents` for the components.
    """

    _interrupt = False
    # The active run, for callbacks; after an error or Ctrl-C the interrupted run.
    current_run: HiFARun | None = None

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Return the number of steps of the active run."""
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
        """Start a run: check the arguments, encode the prompt, hallucinate views of an image, initialize the field.

        Args:
            prompt: Prompt, or `None` to reconstruct an image or views without distillation. With an image or views, a
                prompt that the prior cannot encode is ignored, with a warning and a note in the run.
            negative_prompt: Negative prompt.
            image, elevation_deg, multiview, multiview_settings, view_seeds: See `HiFAPipeline.__call__`. The image
                may be a `hallucination.Photo`, which holds the other four.
            views: See `given_views.read_views`.
            hallucinated: Whether `views` are hallucinated and thus disagree in detail. Selects the preset of
                `default_config()`.
            prompt_embeds: Result of `encode_prompt` for this prompt, for a pipeline without a text encoder.
            pooled_prompt_embeds: Result of `encode_pooled_prompt` for this prompt, for SDXL.
            config: Settings. Defaults to `default_config()`.
            generator: CPU generator for all random numbers. The same generator state gives the same result.
            seed: Seed in place of a generator.
            settings: Fields of `HiFAConfig` that override `config`, such as `num_inference_steps=200`.

        Returns:
            The run at step 0.

        Raises:
            TypeError, ValueError: If an argument is invalid, or the settings need a model that is not loaded.
        """
        if image is not None:
            image = self._photo(image, views, multiview, elevation_deg, view_seeds, multiview_settings)
        guided = image is not None or views is not None
        note = self._check_readable(prompt, negative_prompt, prompt_embeds, pooled_prompt_embeds, guided)
        reads = prompt is not None and not note
        follows_views = guided and not reads and config is None and "max_resolution" not in settings
        config = config or self.default_config(guided, reads, hallucinated or image is not None)
        config = replace(config, **{k: v for k, v in settings.items() if v is not None})
        if not reads:
            _check_without_prior(config, note)
        self.check_views(config)
        self.surface_models(config)  # Raises ValueError if the settings need a model that is not loaded.
        if reads:
            self.make_prior(config.prior_size)  # Raises ValueError for an unsupported size.
        if reads and config.distillation == "vsd":
            check_adaptable(self.unet)
        if generator is None:
            generator = torch.Generator().manual_seed(0 if seed is None else seed)
        elif generator.device.type != "cpu":
            raise ValueError(f"The generator must be on the CPU, also for a run on a GPU, got {generator.device}.")
        views = None if views is None else read_views(views, config.bound, config.given_size)
        # The seed of the field is drawn from the generator, so that the generator determines the whole run.
        field_seed = int(torch.randint(2**31 - 1, (), generator=generator)) if seed is None else seed
        if note:
            logger.warning(note)
        if image is not None:
            made = image.hallucinate(generator)
            views = read_views(made.images, config.bound, config.given_size, image.cameras(config.bound))
            note = f"{note} {made.note}".strip()
        if follows_views:  # Cells finer than a pixel would only fit noise.
            config = replace(config, max_resolution=max(views.size, config.base_resolution))
        if reads and prompt_embeds is None:
            prompt_embeds, pooled_prompt_embeds = self._encode(prompt, negative_prompt or "")
        # Tensors that are created in a caller's inference mode cannot be optimized.
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
        """Return a float32 copy of embeddings for a run, independent of the text encoder's precision."""
        return embeds.to(self._execution_device, torch.float32, copy=True)

    def _photo(self, image: Any, views: Any, multiview: SyncDreamerPipeline | None, *options: Any) -> Photo:
        """Combine an image, a multi-view model and the options of `Photo` into a `Photo`, which checks them."""
        if views is not None:
            raise ValueError("Pass either image or views, not both. The views of an image are hallucinated.")
        return image if isinstance(image, Photo) else Photo(image, multiview or self.embedded_multiview(), *options)

    def advance(self, run: HiFARun, steps: int | None = None) -> Iterator[HiFAStep]:
        """Optimize a run and yield after each step.

        Between two steps the run is consistent and can be saved. The optimization stops when the caller stops
        iterating.

        Args:
            run: Run to optimize in place.
            steps: Largest number of steps. If `None`, continue to the end of the run.

        Raises:
            DivergedError: If no attempt at a step has a finite loss and gradient. The run is then in the state before
                the step and can be saved.
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
                    result = optimization_step(run, prior, surfaces, variational)
            finally:
                run.seconds += time.perf_counter() - clock
            if result.skipped:
                logger.warning(
                    f"Step {run.step} took {result.skipped + 1} attempts, because losses or gradients were not finite."
                )
            yield result

    def run_to_end(
        self,
        run: HiFARun,
        save_dir: str | Path | None = None,
        save_every: int = 100,
        on_step: Callable[[HiFAStep], None] | None = None,
    ) -> None:
        """Advance a run with a progress bar until the end, or until `_interrupt` is set or Ctrl-C is pressed.

        Args:
            run: Run to optimize in place.
            save_dir: Folder of the checkpoint, which is written every `save_every` steps and whenever the loop ends,
                also by an error. After an error inside a step, the run can be resumed, but the result is not
                bit-for-bit that of an uninterrupted run. After a `DivergedError`, the checkpoint has the state
                before the failed step but the random state after the failed attempts, so that the resumed run does not
                repeat the failure.
            save_every: Number of steps between two checkpoints.
            on_step: Called after each step.

        Raises:
            Interrupted: After Ctrl-C, when the current step is finished and the run is saved. A second Ctrl-C
                interrupts the step.
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
                if save_dir is not None:  # Even if this step is already saved: the random state has changed.
                    with suppress(RunError):  # Saving fails if a callback made the field infinite or NaN.
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
    """Check the settings of a run without a prompt that the prior can encode.

    Args:
        config: Settings.
        note: Reason why the prior cannot encode the prompt; empty if there is no prompt.

    Raises:
        ValueError: If the settings need such a prompt.
    """
    if config.image_guidance_end < 1:
        raise ValueError(
            f"image_guidance_end={config.image_guidance_end} leaves the rest of the run to the prompt, but there is "
            f"no prompt that the prior can encode. {note or 'Add a prompt, or set image_guidance_end=1.'}"
        )
    for name in ("lambda_disparity", "lambda_image_latent"):
        if getattr(config, name):
            raise ValueError(
                f"{name}={getattr(config, name)} needs the prior, but there is no prompt that the prior can encode. "
                f"{note or f'Add a prompt, or set {name}=0.'}"
            )


def check_save_every(steps: int) -> None:
    """Check the number of steps between two checkpoints.

    Raises:
        ValueError: If `steps` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"save_every must be at least 1 step, got {steps}.")
