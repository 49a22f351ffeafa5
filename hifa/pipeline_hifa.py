"""Text-to-3D pipeline: `HiFAPipeline` generates 3D assets from prompts with a diffusers model as prior."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import PIL.Image
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    SchedulerMixin,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from torch import Tensor
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DPTForDepthEstimation,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .config import HiFAConfig, check_views, check_without_prior
from .multiview import SyncDreamerPipeline
from .multiview.checkpoint import find_checkpoint
from .multiview.given_views import GivenViews, read_views
from .multiview.hallucination import Photo, PreparedPhoto
from .multiview.mvdream import MVDREAM, MVDREAM_TOKENIZER, read_mvdream
from .optimization import loop
from .optimization.distillation import make_distiller
from .optimization.run import HiFARun
from .optimization.step import HiFAStep
from .optimization.surface_guidance import SurfaceModels
from .optimization.surface_models import LoadedSurfaceModels
from .photo_cutout import PreparedPicture
from .pipeline_output import HiFAPipelineOutput, as_type, check_options, folders_for, keeping, one_for_each
from .presets import PUBLISHED_NORMALS
from .priors import text_encoding
from .priors.families import build_prior, is_large, preset_for
from .priors.prior import DiffusionPrior
from .priors.prompt_embeddings import PromptEmbeddings
from .priors.sdxl import is_sdxl, overflows_in_half
from .priors.view_attention import CameraEmbedding
from .priors.vsd import VariationalState, check_adaptable
from .prompts import check_prompt, check_reads
from .storage.run_folder import check_may_save
from .toybox import MULTIVIEW_WEIGHTS, TOYBOX, TOYBOX_NAME


logger = logging.get_logger(__name__)
CHECKPOINTS = (".ckpt", ".pt", ".safetensors")  # suffixes of `from_single_file`


class HiFAPipeline(DiffusionPipeline):
    """Pipeline for text-to-3D that optimizes a radiance field against a 2D diffusion model (HiFA, Zhu et al. 2024).

    `from_pretrained` loads any Hub ID or folder of Stable Diffusion, SDXL or DeepFloyd IF. Without an argument,
    `from_pretrained` loads the embedded Toybox prior.

    Args:
        vae: `AutoencoderKL` or a distilled `AutoencoderTiny`. `None` for a pixel-space model such as DeepFloyd IF.
        text_encoder, tokenizer: CLIP or T5 text model and its tokenizer. Both may be `None` if every run gets
            `prompt_embeds`.
        unet: `UNet2DConditionModel` that predicts epsilon, v or the sample.
        scheduler: Any diffusers scheduler with a noise schedule. The scheduler is converted to a `DDIMScheduler`.
        disparity_estimator: Model for settings with `lambda_disparity`, see `DisparityPrior`. Toybox loads its own
            model on first use.
        text_encoder_2, tokenizer_2: Second text encoder and tokenizer of SDXL.
        image_noising_scheduler: Scheduler of DeepFloyd IF's stage 2 that adds noise to the low-resolution image.
        camera_embedding: Camera embedding of a multi-view prior such as MVDream. The UNet of such a prior is an
            ordinary 2D model.
        force_zeros_for_empty_prompt: Whether SDXL represents an empty negative prompt by zeros instead of the
            embedding of the empty string.

    Raises:
        ValueError: If a component is of an unsupported kind, or the components do not fit together.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components: ClassVar[list[str]] = [
        "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "disparity_estimator",
        "image_noising_scheduler", "camera_embedding",
    ]  # fmt: skip
    _callback_tensor_inputs: ClassVar[list[str]] = ["image", "prompt_embeds"]
    _interrupt = False
    # The active run, for callbacks; after an error or Ctrl-C the interrupted run.
    current_run: HiFARun | None = None

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny | None,
        text_encoder: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        disparity_estimator: DPTForDepthEstimation | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        image_noising_scheduler: SchedulerMixin | None = None,
        camera_embedding: CameraEmbedding | None = None,
        force_zeros_for_empty_prompt: bool = True,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler.from_config(scheduler.config),
            disparity_estimator=disparity_estimator,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            image_noising_scheduler=image_noising_scheduler,
            camera_embedding=camera_embedding,
        )
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)
        # The prior is never trained. Gradients flow through the encoder to the image, but the encoder's parameters
        # need none.
        for model in (vae, text_encoder, text_encoder_2, unet, camera_embedding):
            if model is not None:
                model.requires_grad_(False)
        check_reads(unet, text_encoder)
        if unet is not None:
            self.make_prior()  # Raises ValueError for an unsupported model before a run starts.
            text_encoding.check_second_encoder(unet, text_encoder_2)
            self._keep_autoencoder_precise()
        self._multiview: SyncDreamerPipeline | None = None
        self._surfaces = LoadedSurfaceModels()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path = TOYBOX, **kwargs: Any) -> Self:
        """Load a prior.

        Args:
            pretrained_model_name_or_path: Hub ID or folder of Stable Diffusion, SDXL or DeepFloyd IF (stage 1 or 2),
                or the checkpoint file of MVDream, see `from_single_file`. The default is the embedded Toybox prior.
            kwargs: Arguments for `DiffusionPipeline.from_pretrained`, such as `dtype`, `variant` and `token`.

        Raises:
            ValueError: If the model is of an unsupported kind.
            OSError: If the model does not exist.
        """
        if str(pretrained_model_name_or_path).endswith(CHECKPOINTS):
            given = {name: value for name, value in kwargs.items() if value is not None}
            return cls.from_single_file(pretrained_model_name_or_path, **given)
        try:
            return super().from_pretrained(str(pretrained_model_name_or_path), **kwargs)
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} is not a model in the layout of Stable Diffusion (vae, unet, "
                f"text_encoder, tokenizer, scheduler), SDXL, or DeepFloyd IF (no vae): {error}"
            ) from error

    @classmethod
    def from_single_file(
        cls,
        path_or_id: str | Path = MVDREAM,
        tokenizer: str | Path | PreTrainedTokenizerBase = MVDREAM_TOKENIZER,
        dtype: torch.dtype | None = None,
        disparity_estimator: DPTForDepthEstimation | None = None,
        **hub: Any,
    ) -> Self:
        """Load the published checkpoint of MVDream.

        `save_pretrained` converts the checkpoint to a folder. The folder loads faster, and diffusers'
        `StableDiffusionPipeline` loads the folder as a 2D model.

        Args:
            path_or_id: Path of `sd-v2.1-base-4view.pt`, or its location on the Hub, `owner/name/file`.
            tokenizer: Tokenizer, or a Hub ID or folder with a subfolder `tokenizer`. The checkpoint contains no
                tokenizer.
            dtype: Data type of the weights.
            disparity_estimator: See `HiFAPipeline`.
            hub: Arguments for `huggingface_hub.hf_hub_download`, such as `token`.

        Raises:
            ValueError: If the file holds another model, or if `variant` is given: the checkpoint has no variants.
            OSError: If the file or the tokenizer is missing.
        """
        if "variant" in hub:
            raise ValueError(f"{str(path_or_id)!r} is one file without variants, got variant={hub['variant']!r}.")
        models = read_mvdream(find_checkpoint(path_or_id, **hub))
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = cast(
                CLIPTokenizer, CLIPTokenizer.from_pretrained(str(tokenizer), subfolder="tokenizer", **hub)
            )
        pipe = cls(**models, tokenizer=tokenizer, disparity_estimator=disparity_estimator)
        pipe.register_to_config(_name_or_path=str(path_or_id))
        return pipe if dtype is None else pipe.to(dtype)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the pipeline as diffusers does.

        An SDXL autoencoder that overflows in float16 stays in float32.

        Args:
            *args: See `DiffusionPipeline.to`.
            **kwargs: See `DiffusionPipeline.to`.
        """
        super().to(*args, **kwargs)
        self._keep_autoencoder_precise()
        return self

    def _keep_autoencoder_precise(self) -> None:
        if None not in (self.vae, self.unet) and is_sdxl(self.unet) and overflows_in_half(self.vae):
            self.vae.to(torch.float32)

    @property
    def image_size(self) -> int:
        """Return the image size that the prior was trained on, in pixels per side."""
        return self.make_prior().image_size

    @property
    def embedded(self) -> bool:
        """Return whether the prior is the embedded Toybox prior, which includes a multi-view and a surface model."""
        return self.config.get("_name_or_path") == str(TOYBOX)

    @property
    def has_published_normals(self) -> bool:
        """Return whether a normal model is loaded (`load_normal_model`)."""
        return self._surfaces.published is not None

    @property
    def interrupt(self) -> bool:
        """Return whether the call ends after the current step."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Return the number of steps of the active run."""
        return self._num_timesteps

    def make_prior(self, image_size: int = 0) -> DiffusionPrior:
        """Build the prior from the components, see `priors.families.build_prior`.

        Args:
            image_size: Input size of the prior in pixels per side; 0 for the size that the prior was trained on.
        """
        noising = self.image_noising_scheduler
        return build_prior(self.vae, self.unet, self.scheduler, noising, self.camera_embedding, image_size)

    def embedded_multiview(self) -> SyncDreamerPipeline | None:
        """Return the multi-view model of Toybox. The first call loads the model.

        Returns:
            The model, or `None` if the prior is not Toybox or the package contains no weights of the model.
        """
        if self._multiview is None and self.embedded and MULTIVIEW_WEIGHTS.is_dir():
            self._multiview = SyncDreamerPipeline.from_pretrained().to(self._execution_device)
        return self._multiview

    def load_normal_model(self, name_or_folder: str | Path, **kwargs: Any) -> None:
        """Load a published model of surface normals, for runs with `lambda_normal` or `lambda_image_normal`.

        With a normal model, the default settings of a published prior have `lambda_normal > 0`.

        Args:
            name_or_folder: Hub ID or folder of a `MarigoldNormalsPipeline`, such as `prs-eth/marigold-normals-v1-1`.
            kwargs: Arguments for `DiffusionPipeline.from_pretrained`.

        Raises:
            ValueError: If the model is of another kind.
            OSError: If the model does not exist.
        """
        self._surfaces.load_published(name_or_folder, **kwargs)

    def surface_models(self, config: HiFAConfig, views: GivenViews | None = None) -> SurfaceModels:
        """Return the models for the surface losses of the settings, see `LoadedSurfaceModels.for_run`."""
        return self._surfaces.for_run(config, views, self.disparity_estimator, self.embedded)

    def default_config(self, views: bool = False, prompt: bool = True, image: bool = False) -> HiFAConfig:
        """Return the preset for a run, see `priors.families.preset_for`.

        Args:
            views: Whether the run has given views.
            prompt: Whether the run has a prompt that the prior can encode.
            image: Whether the views are hallucinated.
        """
        prior = self.make_prior()
        config = self.fitted(preset_for(prior, views, prompt, image))
        guided = self.has_published_normals and prompt and is_large(prior)
        return replace(config, **PUBLISHED_NORMALS) if guided else config

    def fitted(self, config: HiFAConfig) -> HiFAConfig:
        """Return a preset without the parts that need a model that is not available.

        Views with camera poses need a multi-view prior. Normal guidance needs a normal model.
        """
        if self.camera_embedding is None:
            config = replace(config, num_views=0)
        if self.embedded or self.has_published_normals:
            return config
        return replace(config, lambda_normal=0.0, lambda_image_normal=0.0)

    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> PromptEmbeddings:
        """Encode the negative prompt, the prompt, and the prompt with each view suffix.

        Returns:
            `2 + len(VIEWS)` embeddings. The embeddings have a pooled part for SDXL only.
        """
        return text_encoding.encode_prompt(self, prompt, negative_prompt)

    def release_text_encoder(self) -> None:
        """Free the text encoders.

        The text encoder of DeepFloyd IF is twice as large as all other components together. Existing runs keep their
        embeddings. New runs need `prompt_embeds`.
        """
        text_encoding.release_text_encoders(self)

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
        check_options(output_type, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_prompt(self.tokenizer, prompt, negative_prompt)

    def _check_text(
        self, prompt: str | None, negative_prompt: str | None, embeddings: PromptEmbeddings | None, guided: bool
    ) -> str:
        """Check a prompt with `text_encoding.check_text`. If embeddings are given, check only their shapes."""
        if embeddings is None:
            return text_encoding.check_text(self, prompt, negative_prompt, guided)
        text_encoding.check_embeddings(embeddings, self.unet)
        return ""

    def _prepared(self, image: Any, views: Any) -> PreparedPhoto | None:
        if image is None or isinstance(image, PreparedPhoto):
            return image
        if views is not None:
            raise ValueError("Pass either image or views, not both. The views of an image are hallucinated.")
        photo = image if isinstance(image, Photo) else Photo(image)
        return photo.prepare(None if photo.multiview is not None else self.embedded_multiview())

    def start(
        self,
        prompt: str | None,
        negative_prompt: str = "",
        *,
        image: PIL.Image.Image | PreparedPicture | Photo | PreparedPhoto | None = None,
        views: Any = None,
        hallucinated: bool = False,
        prompt_embeds: PromptEmbeddings | Tensor | None = None,
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
            image: See `__call__`. The image may also be prepared (`Photo.prepare`).
            views: See `__call__`.
            hallucinated: See `__call__`.
            prompt_embeds: See `__call__`.
            config: Settings. Defaults to `default_config()`.
            generator: CPU generator for all random numbers. The same generator state gives the same result.
            seed: Seed in place of a generator.
            settings: Fields of `HiFAConfig` that override `config`, such as `num_inference_steps=200`.

        Returns:
            The run at step 0.

        Raises:
            TypeError, ValueError: If an argument is invalid, or the settings need a model that is not loaded.
        """
        photo, embeddings = self._prepared(image, views), _as_embeddings(prompt_embeds)
        guided = photo is not None or views is not None
        note = self._check_text(prompt, negative_prompt, embeddings, guided)
        reads = prompt is not None and not note
        follows_views = guided and not reads and config is None and "max_resolution" not in settings
        config = config or self.default_config(guided, reads, hallucinated or photo is not None)
        config = replace(config, **{k: v for k, v in settings.items() if v is not None})
        self._check_config(config, reads, note)
        if generator is None:
            generator = torch.Generator().manual_seed(0 if seed is None else seed)
        elif generator.device.type != "cpu":
            raise ValueError(f"The generator must be on the CPU, also for a run on a GPU, got {generator.device}.")
        views = None if views is None else read_views(views, config.bound, config.given_size)
        # The seed of the field is drawn from the generator, so that the generator determines the whole run.
        field_seed = int(torch.randint(2**31 - 1, (), generator=generator)) if seed is None else seed
        if note:
            logger.warning(note)
        if photo is not None:
            made = photo.hallucinate(generator)
            views = read_views(made.images, config.bound, config.given_size, photo.cameras(config.bound))
            note = f"{note} {made.note}".strip()
        if follows_views:  # Cells finer than a pixel would only fit noise.
            config = replace(config, max_resolution=max(views.size, config.base_resolution))
        if prompt is not None and reads and embeddings is None:
            embeddings = self.encode_prompt(prompt, negative_prompt or "")
        device = self._execution_device
        # Tensors that are created in a caller's inference mode cannot be optimized.
        with torch.inference_mode(False):
            run = HiFARun.begin(
                prompt,
                config,
                generator=generator,
                seed=field_seed,
                device=device,
                negative_prompt=negative_prompt or "",
                prior=self._name if reads else None,
                # A float32 copy, independent of the precision of the text encoder.
                embeddings=embeddings.to(device, torch.float32, copy=True) if reads and embeddings else None,
                views=views,
                note=note,
            )
            if reads and config.distillation == "vsd":
                run.variational = VariationalState.begin(
                    self.unet, config.lora_rank, config.lora_lr, field_seed, device
                )
            return run

    @property
    def _name(self) -> str:
        return TOYBOX_NAME if self.embedded else str(self.config.get("_name_or_path") or "custom")

    def _check_config(self, config: HiFAConfig, reads: bool, note: str) -> None:
        """Check that the pipeline can run the settings.

        Args:
            config: Settings.
            reads: Whether the run has a prompt that the prior can encode.
            note: Reason why the prior cannot encode the prompt; empty if there is no prompt.

        Raises:
            ValueError: If the settings need a model that is not loaded, or a prompt.
        """
        if not reads:
            check_without_prior(config, note)
        check_views(config, self.camera_embedding is not None)
        self.surface_models(config)  # Raises ValueError if the settings need a model that is not loaded.
        if reads:
            self.make_prior(config.prior_size)  # Raises ValueError for an unsupported size.
        if reads and config.distillation == "vsd":
            check_adaptable(self.unet)

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
            ValueError: If the run was started with other weights of the embedded prior.
        """
        if self.embedded and run.embeddings is not None and run.prior != TOYBOX_NAME:
            raise ValueError(
                f"The run was started with the prior {run.prior!r}, whose weights differ from {TOYBOX_NAME!r}, the "
                "embedded prior of this version. Start a new run."
            )
        surfaces = self.surface_models(run.config, run.views)
        distiller = None if run.embeddings is None else make_distiller(run, self.make_prior(run.config.prior_size))
        yield from loop.advance(run, distiller, surfaces, steps)

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
        loop.check_save_every(save_every)
        self._num_timesteps = run.config.num_inference_steps
        self._interrupt, self.current_run = False, run
        progress = self.progress_bar(total=self._num_timesteps)  # pyright: ignore[reportCallIssue]
        loop.run_to_end(run, self.advance(run), progress, lambda: self.interrupt, save_dir, save_every, on_step)
        self.current_run = None

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: PromptEmbeddings | Tensor | list[PromptEmbeddings | Tensor] | None = None,
        config: HiFAConfig | None = None,
        image: PIL.Image.Image | PreparedPicture | Photo | None = None,
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
            num_inference_steps: Overrides the field of `config`.
            guidance_scale: Overrides the field of `config`.
            eta: Overrides the field of `config`.
            generator: One generator for all prompts, or a list of the length of `prompt`.
            prompt_embeds: Result of `encode_prompt`, for a pipeline without a text encoder. A tensor stands for
                embeddings without a pooled part. A list of prompts needs a list of the same length.
            config: Settings. Defaults to `default_config()`.
            image: Picture of the object to reconstruct, see `photo_cutout.prepare_picture`, or a `Photo` with a
                multi-view model, an elevation and seeds. The views of the object are hallucinated once for all
                prompts, with the first generator.
            views: Sixteen views from another source in place of `image`, see `given_views.read_views`. Given and
                hallucinated views guide the run as `HiFAConfig.image_guidance_end` specifies.
            hallucinated: Whether `views` are hallucinated and thus disagree in detail, like the views of `image`.
                Selects the preset of `default_config()`.
            save_dir: Folder of the checkpoint, which is written every `save_every` steps and at the end of the run,
                also after an error or Ctrl-C. `HiFARun.load` and `advance` resume the run. With a list of prompts,
                each prompt has a subfolder.
            save_every: Number of steps between two checkpoints.
            num_frames: Number of turntable frames.
            frame_size: Height and width of the frames in pixels.
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
            >>> duck = pipe("a yellow duck", image=Photo("duck.png", elevation_deg=20)).assets[0]
        """
        loop.check_save_every(save_every)
        check_options(output_type, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        prompts: Sequence[str | None] = prompt if isinstance(prompt, list) else [prompt]
        negatives = one_for_each(negative_prompt, prompts, "negative_prompt")
        generators = one_for_each(generator, prompts, "generator")
        if isinstance(prompt_embeds, Tensor | PromptEmbeddings) and len(prompts) > 1:
            raise ValueError(f"prompt_embeds is for one prompt, but there are {len(prompts)} prompts. Pass a list.")
        embeds = one_for_each(prompt_embeds, prompts, "prompt_embeds")
        guided = image is not None or views is not None
        for text, negative, embedded in zip(prompts, negatives, embeds, strict=True):
            self._check_text(text, negative or "", _as_embeddings(embedded), guided)
        folders = folders_for(save_dir, prompt) if isinstance(prompt, list) else [save_dir]
        for folder in folders:
            if folder is not None:
                check_may_save(folder)
        photo = self._prepared(image, views)  # All prompts share the image.
        given = {"image": photo, "views": views, "hallucinated": hallucinated, "config": config}
        settings |= {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "eta": eta}
        output = HiFAPipelineOutput([], [], [], None if photo is None else photo.picture)
        for text, negative, source, embedded, folder in zip(
            prompts, negatives, generators, embeds, folders, strict=True
        ):
            with keeping(output, len(prompts)):
                run = self.start(text, negative or "", generator=source, prompt_embeds=embedded, **given, **settings)
                on_step = self._on_step(run, callback_on_step_end, callback_on_step_end_tensor_inputs)
                self.run_to_end(run, folder, save_every, on_step)
                self.current_run, asset = run, run.asset()
                images = as_type(asset.turntable(num_frames, frame_size), output_type)
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
            embeddings = run.embeddings
            tensors = {"image": step.image, "prompt_embeds": None if embeddings is None else embeddings.tokens}
            returned = callback(self, step.step - 1, step.timestep, {name: tensors[name] for name in tensor_names})
            if embeddings is not None and "prompt_embeds" in (returned or {}):
                run.embeddings = replace(embeddings, tokens=returned["prompt_embeds"])

        return on_step


def _as_embeddings(embeds: PromptEmbeddings | Tensor | None) -> PromptEmbeddings | None:
    return PromptEmbeddings(embeds) if isinstance(embeds, Tensor) else embeds
