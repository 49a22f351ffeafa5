"""Components of `HiFAPipeline`: a diffusers prior from a Hub ID or a folder, and the models that assist the prior."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    SchedulerMixin,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DPTForDepthEstimation,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from .cameras import VIEWS
from .config import HiFAConfig
from .multiview import SyncDreamerPipeline
from .multiview.checkpoint import find_checkpoint
from .multiview.given_views import GivenViews
from .multiview.mvdream import MVDREAM, MVDREAM_TOKENIZER, read_mvdream
from .multiview.pipeline_syncdreamer import TOYBOX as TOYBOX_MULTIVIEW
from .optimization.surface_guidance import SurfaceModels, ViewNormals
from .priors.disparity import DisparityPrior
from .priors.latent_diffusion import LatentDiffusionPrior
from .priors.multiview_diffusion import MultiviewDiffusionPrior
from .priors.normals import MarigoldNormalPrior
from .priors.pixel_diffusion import PixelDiffusionPrior
from .priors.prior import DiffusionPrior
from .priors.sdxl import SDXLPrior, encode_with_both, is_sdxl, overflows_in_half, pooled_dim
from .priors.super_resolution import SuperResolutionPrior, enlarges
from .priors.surface import EmbeddedSurfacePrior, SurfacePrior, load_embedded
from .priors.view_attention import CameraEmbedding
from .prompts import PromptError, check_embeds, check_prompt, check_reads, max_tokens


# Settings that a loaded normal model adds to the preset of a published prior. The weight is 400 times that of the
# embedded prior, because w(t) and the latents are larger: the ratio to the distillation gradient stays the same. The
# weight was never tuned on a GPU.
PUBLISHED_NORMALS = {"lambda_normal": 800.0, "normal_period": 4}
TOYBOX = Path(__file__).parent / "toybox" / "weights"
CHECKPOINTS = (".ckpt", ".pt", ".safetensors")


class HiFAComponents(DiffusionPipeline):
    """Components of the pipeline, and operations on the components.

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
    _optional_components = [
        "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "disparity_estimator",
        "image_noising_scheduler", "camera_embedding",
    ]  # fmt: skip

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
            self._check_second_encoder()
            self._keep_autoencoder_precise()
        self._multiview: SyncDreamerPipeline | None = None
        self._normal_prior: SurfacePrior | None = None
        self._embedded_surface: EmbeddedSurfacePrior | None = None

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
            disparity_estimator: See `HiFAComponents`.
            hub: Arguments for `huggingface_hub.hf_hub_download`, such as `token`.

        Raises:
            ValueError: If the file holds another model, or if `variant` is given: the checkpoint has no variants.
            OSError: If the file or the tokenizer is missing.
        """
        if "variant" in hub:
            raise ValueError(f"{str(path_or_id)!r} is one file without variants, got variant={hub['variant']!r}.")
        models = read_mvdream(find_checkpoint(path_or_id, **hub))
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer), subfolder="tokenizer", **hub)
        pipe = cls(**models, tokenizer=tokenizer, disparity_estimator=disparity_estimator)
        pipe.register_to_config(_name_or_path=str(path_or_id))
        return pipe if dtype is None else pipe.to(dtype)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the pipeline as diffusers does.

        An SDXL autoencoder that overflows in float16 stays in float32.

        Args:
            args, kwargs: See `DiffusionPipeline.to`.
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

    def make_prior(self, image_size: int = 0) -> DiffusionPrior:
        """Build the prior from the components.

        Args:
            image_size: Input size of the prior in pixels per side; 0 for the size that the prior was trained on.

        Raises:
            ValueError: If the prior does not support this size.
        """
        if self.vae is None:
            if image_size:
                raise ValueError(
                    f"prior_size is for latent priors, and this prior has a fixed size, got {image_size}. "
                    "Set prior_size=0."
                )
            if enlarges(self.unet):
                return SuperResolutionPrior(self.unet, self.scheduler, self.image_noising_scheduler)
            return PixelDiffusionPrior(self.unet, self.scheduler)
        if self.camera_embedding is not None:
            return MultiviewDiffusionPrior(self.vae, self.unet, self.scheduler, self.camera_embedding, image_size)
        kind = SDXLPrior if is_sdxl(self.unet) else LatentDiffusionPrior
        return kind(self.vae, self.unet, self.scheduler, image_size)

    def check_views(self, config: HiFAConfig) -> None:
        """Check that the prior supports the number of views of the settings.

        Raises:
            ValueError: If the settings have several views and the prior supports single views only.
        """
        if config.num_views and self.camera_embedding is None:
            raise ValueError(
                f"num_views={config.num_views} needs a multi-view prior such as MVDream, but this prior supports "
                "single views only. Load HiFAPipeline.from_single_file(), or set num_views=0."
            )

    @property
    def embedded(self) -> bool:
        """Return whether the prior is the embedded Toybox prior, which includes a multi-view and a surface model."""
        return self.config.get("_name_or_path") == str(TOYBOX)

    def embedded_multiview(self) -> SyncDreamerPipeline | None:
        """Return the multi-view model of Toybox. The first call loads the model.

        Returns:
            The model, or `None` for another prior, or if the package has no weights because the model is not trained.
        """
        if self._multiview is None and self.embedded and TOYBOX_MULTIVIEW.is_dir():
            self._multiview = SyncDreamerPipeline.from_pretrained().to(self._execution_device)
        return self._multiview

    def default_config(self, views: bool = False, prompt: bool = True, image: bool = False) -> HiFAConfig:
        """Return the preset for a run.

        | Prior                           | Prompt              | Prompt and views        | Views only         |
        |---------------------------------|---------------------|-------------------------|--------------------|
        | up to 64 pixels (Toybox)        | `fast`              | `guided`                | `reconstruction`;  |
        | larger (Stable Diffusion)       | `preview`           | `guided_preview`        | `hallucinated` for |
        | pixel-space (DeepFloyd IF)      | `preview`, at 64    | `guided_preview`, at 64 | hallucinated views |
        | super-resolution (IF's stage 2) | `preview`           | `guided_preview`        |                    |
        | multi-view (MVDream)            | `multiview_preview` | `guided_preview`        |                    |

        Args:
            views: Whether the run has given views.
            prompt: Whether the run has a prompt that the prior can encode.
            image: Whether the views are hallucinated.
        """
        config = self.fitted(self._preset(views, prompt, image))
        guided = self._normal_prior is not None and prompt and self._larger
        return replace(config, **PUBLISHED_NORMALS) if guided else config

    def fitted(self, config: HiFAConfig) -> HiFAConfig:
        """Return a preset with normal guidance switched off if no normal model is available."""
        if self.embedded or self._normal_prior is not None:
            return config
        return replace(config, lambda_normal=0.0, lambda_image_normal=0.0)

    def _preset(self, views: bool, prompt: bool, image: bool) -> HiFAConfig:
        if views and not prompt:  # The run does not use the prior.
            return HiFAConfig.hallucinated() if image else HiFAConfig.reconstruction()
        if not self._larger:
            return HiFAConfig.guided() if views else HiFAConfig.fast()
        preset = HiFAConfig.guided_preview if views else HiFAConfig.preview
        if self.camera_embedding is not None and not views:
            return HiFAConfig.multiview_preview()
        if self.vae is None and enlarges(self.unet):  # The guidance scale is that of IF's own pipeline.
            return preset(guidance_scale=4.0)
        if self.vae is None:  # The input size of the prior. The scale is usual for IF, which saturates less than SD.
            return preset(render_size=64, start_render_size=64, growth_end=0.0, guidance_scale=20.0)
        return preset()

    @property
    def _larger(self) -> bool:
        """Return whether the prior is larger than Toybox."""
        return self.vae is None or self.image_size > 64

    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> Tensor:
        """Encode a prompt.

        Returns:
            Embeddings `(2 + len(VIEWS), tokens, dim)` of the negative prompt, the prompt, and the prompt with each
            view suffix.
        """
        return self._encode(prompt, negative_prompt)[0]

    def encode_pooled_prompt(self, prompt: str, negative_prompt: str = "") -> Tensor | None:
        """Encode a prompt to the pooled embeddings that SDXL needs in addition to the result of `encode_prompt`.

        Returns:
            Embeddings `(2 + len(VIEWS), pooled)` in the order of `encode_prompt`. `None` for models other than SDXL.
        """
        return self._encode(prompt, negative_prompt)[1]

    @torch.no_grad()
    def _encode(self, prompt: str, negative_prompt: str) -> tuple[Tensor, Tensor | None]:
        texts = [negative_prompt, prompt, *(f"{prompt}, {view}" for view in VIEWS)]
        if self.text_encoder_2 is not None:
            encoders, tokenizers = (self.text_encoder, self.text_encoder_2), (self.tokenizer, self.tokenizer_2)
            embeds, pooled = encode_with_both(texts, encoders, tokenizers, self._execution_device)
            if not negative_prompt and self.config.force_zeros_for_empty_prompt:
                embeds[0], pooled[0] = 0, 0
            return embeds, pooled
        if self.vae is None:  # DeepFloyd IF was trained on lowercase captions.
            texts = [text.lower().strip() for text in texts]
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=max_tokens(self.tokenizer), truncation=True, return_tensors="pt"
        ).to(self._execution_device)
        # CLIP was trained with padding tokens and T5 with a mask.
        mask = tokens.attention_mask if isinstance(self.text_encoder, T5EncoderModel) else None
        return self.text_encoder(tokens.input_ids, attention_mask=mask)[0], None

    def release_text_encoder(self) -> None:
        """Free the text encoders.

        The text encoder of DeepFloyd IF is twice as large as all other components together. Existing runs keep their
        embeddings. New runs need `prompt_embeds`, and with SDXL also `pooled_prompt_embeds`.
        """
        # Each hook of `enable_model_cpu_offload` holds a reference to its model and to the previous hook.
        offloaded = bool(getattr(self, "_all_hooks", None))
        if offloaded:
            self.remove_all_hooks()
        self.register_modules(text_encoder=None, text_encoder_2=None)
        gc.collect()  # A model that had a hook is part of a reference cycle.
        if offloaded:
            self.enable_model_cpu_offload(device=self._offload_device)

    def _check_second_encoder(self) -> None:
        """Check that the second text encoder of SDXL has the pooled width that the UNet expects.

        The refiner of SDXL fails this check, because its UNet also gets an aesthetic score.

        Raises:
            ValueError: If the widths differ.
        """
        if self.text_encoder_2 is None or not is_sdxl(self.unet):
            return
        wanted, given = pooled_dim(self.unet), self.text_encoder_2.config.projection_dim
        if wanted != given:
            raise ValueError(
                f"The UNet expects a pooled embedding of {wanted} numbers, but text_encoder_2 returns {given}. SDXL's "
                "refiner is such a model, and it only refines images. Load the base model."
            )

    def _check_embeds(self, embeds: Tensor, pooled: Tensor | None) -> None:
        """Check that embeddings have the shapes that the UNet expects.

        Raises:
            ValueError: If a shape is wrong, such as that of embeddings of another kind of model.
        """
        check_embeds(embeds, self.unet)
        expected = (2 + len(VIEWS), pooled_dim(self.unet)) if is_sdxl(self.unet) else None
        got = None if pooled is None else tuple(pooled.shape)
        if got != expected:
            raise ValueError(
                f"pooled_prompt_embeds must be {expected} for this model, got {got}. Use encode_pooled_prompt."
            )

    def _check_prompt(self, prompt: str | None, negative_prompt: str | None, guided: bool) -> str:
        """Check a prompt.

        Args:
            guided: Whether given views guide the run. A prompt that the prior cannot encode is then no error.

        Returns:
            A note for the user if the run continues without the prompt; otherwise empty.

        Raises:
            TypeError, ValueError: If the prompt is invalid, or there is no text encoder.
        """
        if prompt is None and guided:
            return ""
        needed = [self.text_encoder, self.tokenizer]
        if is_sdxl(self.unet):
            needed += [self.text_encoder_2, self.tokenizer_2]
        if None in needed:
            raise ValueError("No text encoder is loaded. Pass prompt_embeds, or load the model with its text encoder.")
        try:
            check_prompt(self.tokenizer, prompt, negative_prompt)
        except PromptError as error:
            if not guided:
                raise
            return f"The object is reconstructed from the views only, without the prior: {error}"
        return ""

    def _check_readable(
        self,
        prompt: str | None,
        negative_prompt: str | None,
        prompt_embeds: Tensor | None,
        pooled_prompt_embeds: Tensor | None,
        guided: bool,
    ) -> str:
        """Check a prompt as `_check_prompt` does, or only the shapes of its embeddings if embeddings are given."""
        if prompt_embeds is None:
            return self._check_prompt(prompt, negative_prompt, guided)
        self._check_embeds(prompt_embeds, pooled_prompt_embeds)
        return ""

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
        self._normal_prior = MarigoldNormalPrior.from_pretrained(name_or_folder, **kwargs)

    @property
    def has_published_normals(self) -> bool:
        """Return whether a normal model is loaded (`load_normal_model`)."""
        return self._normal_prior is not None

    def surface_models(self, config: HiFAConfig, views: GivenViews | None = None) -> SurfaceModels:
        """Return the models for the surface losses of the settings.

        The embedded prior has a single model for disparity and normals, which is loaded on first use. If the settings
        have `lambda_image_normal`, the call also predicts the normals of the given views.

        Raises:
            ValueError: If the settings need a model that is not loaded.
        """
        needed = [name for name in ("lambda_normal", "lambda_image_normal") if getattr(config, name)]
        normals = self._chosen_normal_prior(needed[0]) if needed else None
        return SurfaceModels(
            disparity=self._disparity_prior() if config.lambda_disparity else None,
            normals=normals,
            views=ViewNormals.read(views, normals) if config.lambda_image_normal and views is not None else None,
        )

    def _disparity_prior(self) -> SurfacePrior:
        if self.disparity_estimator is not None:
            return DisparityPrior(self.disparity_estimator)
        if not self.embedded:
            raise ValueError(
                "lambda_disparity needs a disparity_estimator. Pass a model to HiFAPipeline.from_pretrained, such as "
                "transformers' DPTForDepthEstimation.from_pretrained('Intel/dpt-hybrid-midas'), or set "
                "lambda_disparity=0."
            )
        return self._embedded_surface_prior()

    def _chosen_normal_prior(self, setting: str) -> SurfacePrior:
        if self._normal_prior is not None:
            return self._normal_prior
        if not self.embedded:
            raise ValueError(
                f"{setting} needs a normal model. Use --normal-model prs-eth/marigold-normals-v1-1, call "
                f"pipe.load_normal_model('prs-eth/marigold-normals-v1-1') in Python, or set {setting}=0."
            )
        return self._embedded_surface_prior()

    def _embedded_surface_prior(self) -> EmbeddedSurfacePrior:
        if self._embedded_surface is None:
            self._embedded_surface = load_embedded()
        return self._embedded_surface
