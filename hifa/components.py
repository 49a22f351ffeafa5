"""What HiFAPipeline is made of: a diffusers prior from a hub id or a folder, and the models that stand by it."""

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
from .given_views import GivenViews
from .multiview import SyncDreamerPipeline
from .multiview.checkpoint import find_checkpoint
from .multiview.mvdream import MVDREAM, MVDREAM_TOKENIZER, read_mvdream
from .multiview.pipeline_syncdreamer import TOYBOX as TOYBOX_MULTIVIEW
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
from .surface_guidance import SurfaceModels, ViewNormals


# Added to the settings of a published prior once a model of normals is loaded. The weight has the proportion to its
# guidance that the embedded prior's has: 400 times, for w and the latents are larger. It was never tuned on a GPU.
PUBLISHED_NORMALS = {"lambda_normal": 800.0, "normal_period": 4}
TOYBOX = Path(__file__).parent / "toybox" / "weights"
CHECKPOINTS = (".ckpt", ".pt", ".safetensors")


class HiFAComponents(DiffusionPipeline):
    """Components, and what can be done with them before there is a run.

    Args:
        vae: `AutoencoderKL` or a distilled `AutoencoderTiny`; `None` for a model of pixels, as DeepFloyd IF is.
        text_encoder, tokenizer: CLIP text model and its tokenizer, or T5. They may be `None` if every run is given
            its `prompt_embeds`.
        unet: `UNet2DConditionModel` that predicts epsilon, v or the sample.
        scheduler: Any diffusers scheduler with a noise schedule; a `DDIMScheduler` is made from it.
        disparity_estimator: For settings with `lambda_disparity`, see `DisparityPrior`. Toybox has its own, loaded
            when it is needed.
        text_encoder_2, tokenizer_2: The second ones of SDXL.
        image_noising_scheduler: Of DeepFloyd IF's stage 2.
        camera_embedding: Of a multi-view prior such as MVDream; beside it the UNet is an ordinary 2D model.
        force_zeros_for_empty_prompt: For SDXL an empty negative prompt is zeros, not the embedding of no words.

    Raises:
        ValueError: If they are of another kind or do not fit together.
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
        # The prior is never trained. Gradients pass through the encoder to the image, and must not be kept for it.
        for model in (vae, text_encoder, text_encoder_2, unet, camera_embedding):
            if model is not None:
                model.requires_grad_(False)
        check_reads(unet, text_encoder)
        if unet is not None:
            self.make_prior()  # refuses what it cannot work with, before there is a run
            self._check_second_encoder()
            self._keep_autoencoder_precise()
        self._multiview: SyncDreamerPipeline | None = None
        self._normal_prior: SurfacePrior | None = None
        self._embedded_surface: EmbeddedSurfacePrior | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path = TOYBOX, **kwargs: Any) -> Self:
        """Load a prior: hub id or folder of Stable Diffusion, SDXL or DeepFloyd IF (stage 1 or 2), or the published
        file of MVDream, see `from_single_file`; the embedded Toybox by default.

        Args:
            kwargs: As for `DiffusionPipeline.from_pretrained`: `dtype`, `variant`, `token`, ...

        Raises:
            ValueError: If the model is of another kind.
            OSError: If there is no such model.
        """
        if str(pretrained_model_name_or_path).endswith(CHECKPOINTS):
            given = {name: value for name, value in kwargs.items() if value is not None}
            return cls.from_single_file(pretrained_model_name_or_path, **given)
        try:
            return super().from_pretrained(str(pretrained_model_name_or_path), **kwargs)
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} is not a model in the layout of Stable Diffusion (vae, unet, "
                f"text_encoder, tokenizer, scheduler), SDXL or DeepFloyd IF (the same without vae): {error}"
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
        """Load the published checkpoint of MVDream. `save_pretrained` makes a folder of it, which loads faster and
        serves diffusers' `StableDiffusionPipeline` as a 2D model.

        Args:
            path_or_id: `sd-v2.1-base-4view.pt` as a file, or its place on the Hub, `owner/name/file`.
            tokenizer: Hub id or folder, with the tokenizer in its subfolder `tokenizer`; the checkpoint has none.
            dtype: Of the weights.
            disparity_estimator: As for `HiFAComponents`.
            hub: For `huggingface_hub.hf_hub_download`, such as `token`.

        Raises:
            ValueError: If the file is of another model, or a `variant` is given, of which there is none.
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
        """As in diffusers; but an autoencoder of SDXL that overflows in float16 stays in float32."""
        super().to(*args, **kwargs)
        self._keep_autoencoder_precise()
        return self

    def _keep_autoencoder_precise(self) -> None:
        if None not in (self.vae, self.unet) and is_sdxl(self.unet) and overflows_in_half(self.vae):
            self.vae.to(torch.float32)

    @property
    def image_size(self) -> int:
        """Pixels per side that the prior was trained on."""
        return self.make_prior().image_size

    def make_prior(self, image_size: int = 0) -> DiffusionPrior:
        """The prior of these components.

        Args:
            image_size: Pixels per side that it is shown; 0 for those that it was trained on.

        Raises:
            ValueError: If it cannot be shown this size.
        """
        if self.vae is None:
            if image_size:
                raise ValueError(f"prior_size is for latent priors; this one is shown its own size, got {image_size}.")
            if enlarges(self.unet):
                return SuperResolutionPrior(self.unet, self.scheduler, self.image_noising_scheduler)
            return PixelDiffusionPrior(self.unet, self.scheduler)
        if self.camera_embedding is not None:
            return MultiviewDiffusionPrior(self.vae, self.unet, self.scheduler, self.camera_embedding, image_size)
        kind = SDXLPrior if is_sdxl(self.unet) else LatentDiffusionPrior
        return kind(self.vae, self.unet, self.scheduler, image_size)

    def check_views(self, config: HiFAConfig) -> None:
        """Check that the prior sees as many views at once as the settings say.

        Raises:
            ValueError: If it sees single views only.
        """
        if config.num_views and self.camera_embedding is None:
            raise ValueError(
                f"num_views={config.num_views} needs a multi-view prior such as MVDream; this one sees single views. "
                "Load HiFAPipeline.from_single_file(), or set num_views=0."
            )

    @property
    def embedded(self) -> bool:
        """Whether the prior is the embedded Toybox, which has a multi-view and a disparity model beside it."""
        return self.config.get("_name_or_path") == str(TOYBOX)

    def embedded_multiview(self) -> SyncDreamerPipeline | None:
        """Toybox's multi-view model, loaded when it is first asked for; `None` with another prior, or without its
        weights, which a training may yet have to make."""
        if self._multiview is None and self.embedded and TOYBOX_MULTIVIEW.is_dir():
            self._multiview = SyncDreamerPipeline.from_pretrained().to(self._execution_device)
        return self._multiview

    def default_config(self, views: bool = False, prompt: bool = True, image: bool = False) -> HiFAConfig:
        """The preset for a run:

        | prior                       | a prompt          | a prompt and views       | views alone               |
        |-----------------------------|-------------------|--------------------------|---------------------------|
        | up to 64 pixels, as Toybox  | `fast`            | `guided`                 | `reconstruction`, or      |
        | larger, as Stable Diffusion | `preview`         | `guided_preview`         | `hallucinated` if a model |
        | of pixels, as DeepFloyd IF  | `preview`, at 64  | `guided_preview`, at 64  | made the views            |
        | that enlarges, IF's stage 2 | `preview`         | `guided_preview`         |                           |
        | of several views, as MVDream| `multiview_preview` | `guided_preview`       |                           |

        Args:
            views: Whether there are given views.
            prompt: Whether there is a prompt that the prior can read.
            image: Whether a model made the views.
        """
        config = self.fitted(self._preset(views, prompt, image))
        guided = self._normal_prior is not None and prompt and self._larger
        return replace(config, **PUBLISHED_NORMALS) if guided else config

    def fitted(self, config: HiFAConfig) -> HiFAConfig:
        """A preset without the guidance by normals, if no model of normals is there."""
        if self.embedded or self._normal_prior is not None:
            return config
        return replace(config, lambda_normal=0.0, lambda_image_normal=0.0)

    def _preset(self, views: bool, prompt: bool, image: bool) -> HiFAConfig:
        if views and not prompt:  # no prior is used
            return HiFAConfig.hallucinated() if image else HiFAConfig.reconstruction()
        if not self._larger:
            return HiFAConfig.guided() if views else HiFAConfig.fast()
        preset = HiFAConfig.guided_preview if views else HiFAConfig.preview
        if self.camera_embedding is not None and not views:
            return HiFAConfig.multiview_preview()
        if self.vae is None and enlarges(self.unet):  # guidance as in IF's own pipeline
            return preset(guidance_scale=4.0)
        if self.vae is None:  # as large as it sees; guidance as usual for DeepFloyd IF, which saturates less than SD
            return preset(render_size=64, start_render_size=64, growth_end=0.0, guidance_scale=20.0)
        return preset()

    @property
    def _larger(self) -> bool:
        """Whether the prior is larger than Toybox."""
        return self.vae is None or self.image_size > 64

    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> Tensor:
        """Embeddings `(2 + len(VIEWS), tokens, dim)`: the negative prompt, the prompt, the prompt from each view."""
        return self._encode(prompt, negative_prompt)[0]

    def encode_pooled_prompt(self, prompt: str, negative_prompt: str = "") -> Tensor | None:
        """Pooled embeddings `(2 + len(VIEWS), pooled)` of the same, which SDXL reads too; `None` for others."""
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
        if self.vae is None:  # DeepFloyd IF was trained on such captions
            texts = [text.lower().strip() for text in texts]
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=max_tokens(self.tokenizer), truncation=True, return_tensors="pt"
        ).to(self._execution_device)
        # CLIP is trained with its padding, T5 without.
        mask = tokens.attention_mask if isinstance(self.text_encoder, T5EncoderModel) else None
        return self.text_encoder(tokens.input_ids, attention_mask=mask)[0], None

    def release_text_encoder(self) -> None:
        """Free the text encoders, which for DeepFloyd IF are twice as large as all else: a run keeps its embeddings,
        and new ones are started with `prompt_embeds`, and `pooled_prompt_embeds` for SDXL."""
        # Hooks of `enable_model_cpu_offload` hold their model, and that of the hook before.
        offloaded = bool(getattr(self, "_all_hooks", None))
        if offloaded:
            self.remove_all_hooks()
        self.register_modules(text_encoder=None, text_encoder_2=None)
        gc.collect()  # a model that had a hook refers to itself
        if offloaded:
            self.enable_model_cpu_offload(device=self._offload_device)

    def _check_second_encoder(self) -> None:
        """Refuse a UNet of SDXL that reads something else than its second text encoder says: the refiner is told an
        aesthetic score besides."""
        if self.text_encoder_2 is None or not is_sdxl(self.unet):
            return
        wanted, given = pooled_dim(self.unet), self.text_encoder_2.config.projection_dim
        if wanted != given:
            raise ValueError(
                f"The UNet reads a pooled embedding of {wanted} numbers, but text_encoder_2 gives {given}. SDXL's "
                "refiner is such a model, and only finishes images; give the base model."
            )

    def _check_embeds(self, embeds: Tensor, pooled: Tensor | None) -> None:
        """Refuse embeddings that were made for another kind of model."""
        check_embeds(embeds, self.unet)
        expected = (2 + len(VIEWS), pooled_dim(self.unet)) if is_sdxl(self.unet) else None
        got = None if pooled is None else tuple(pooled.shape)
        if got != expected:
            raise ValueError(
                f"pooled_prompt_embeds must be {expected} for this model, got {got}: see encode_pooled_prompt."
            )

    def _check_prompt(self, prompt: str | None, negative_prompt: str | None, guided: bool) -> str:
        """Refuse a bad prompt; with views that guide, one that the prior cannot read only gives a note about that."""
        if prompt is None and guided:
            return ""
        needed = [self.text_encoder, self.tokenizer]
        if is_sdxl(self.unet):
            needed += [self.text_encoder_2, self.tokenizer_2]
        if None in needed:
            raise ValueError("There is no text encoder: give prompt_embeds, or load the model with it.")
        try:
            check_prompt(self.tokenizer, prompt, negative_prompt)
        except PromptError as error:
            if not guided:
                raise
            return f"The views are reconstructed alone, without the prior: {error}"
        return ""

    def _check_readable(
        self,
        prompt: str | None,
        negative_prompt: str | None,
        prompt_embeds: Tensor | None,
        pooled_prompt_embeds: Tensor | None,
        guided: bool,
    ) -> str:
        """As `_check_prompt`; embeddings in place of a text encoder are taken as they are if they fit the UNet."""
        if prompt_embeds is None:
            return self._check_prompt(prompt, negative_prompt, guided)
        self._check_embeds(prompt_embeds, pooled_prompt_embeds)
        return ""

    def load_normal_model(self, name_or_folder: str | Path, **kwargs: Any) -> None:
        """Load a published model of surface normals, which guides the runs that are started from then on.

        The default settings of a published prior have `lambda_normal > 0` once there is such a model.

        Args:
            name_or_folder: Hub id or folder of a `MarigoldNormalsPipeline`, such as `prs-eth/marigold-normals-v1-1`.
            kwargs: As for `DiffusionPipeline.from_pretrained`.

        Raises:
            ValueError: If it is a model of another kind.
            OSError: If there is no such model.
        """
        self._normal_prior = MarigoldNormalPrior.from_pretrained(name_or_folder, **kwargs)

    @property
    def has_published_normals(self) -> bool:
        """Whether `load_normal_model` was called."""
        return self._normal_prior is not None

    def surface_models(self, config: HiFAConfig, views: GivenViews | None = None) -> SurfaceModels:
        """The models that guide the surface, as far as the settings need them; given views are read by them here.

        The embedded prior has one model for all of it, which is loaded when it is first asked for.

        Raises:
            ValueError: If the settings need a model that was not given.
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
                "lambda_disparity needs a disparity_estimator: give HiFAPipeline.from_pretrained one, such as "
                "transformers' DPTForDepthEstimation.from_pretrained('Intel/dpt-hybrid-midas'), or lambda_disparity=0."
            )
        return self._embedded_surface_prior()

    def _chosen_normal_prior(self, setting: str) -> SurfacePrior:
        if self._normal_prior is not None:
            return self._normal_prior
        if not self.embedded:
            raise ValueError(
                f"{setting} needs a model of normals: give --normal-model prs-eth/marigold-normals-v1-1, or in Python "
                f"call pipe.load_normal_model('prs-eth/marigold-normals-v1-1'), or set {setting}=0."
            )
        return self._embedded_surface_prior()

    def _embedded_surface_prior(self) -> EmbeddedSurfacePrior:
        if self._embedded_surface is None:
            self._embedded_surface = load_embedded()
        return self._embedded_surface
