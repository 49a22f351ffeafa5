"""SyncDreamerPipeline: views of an object from sixteen fixed cameras, generated from one image."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from ..toybox import MULTIVIEW_WEIGHTS
from .architecture import Architecture, build_scheduler
from .cameras import ViewRing
from .checkpoint import PUBLISHED, find_checkpoint, read_checkpoint
from .conditioning import Condition, ViewConditioner, clip_embedding, image_latent, view_embedding
from .denoiser import VolumeDenoiser, predict
from .depth_attention import DepthAttention
from .input_image import prepare_image
from .volume import MultiViewVolume


T = TypeVar("T")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class SyncDreamerPipelineOutput(BaseOutput):
    """Output of `SyncDreamerPipeline`.

    Args:
        images: Views in the order of `pipe.ring`: PIL images, an array or tensor `(views, H, W, 3)` in [0, 1], or
            latents `(views, C, h, w)`.
    """

    images: Any


class SyncDreamerPipeline(DiffusionPipeline):
    """Pipeline that generates consistent views of an object from one image.

    The method is SyncDreamer (Liu et al. 2023, arXiv 2309.03453). The views are those of `pipe.ring`: elevation 30
    degrees, azimuth 0, 22.5, ..., 337.5 degrees counterclockwise from that of the input image. The cameras cannot be
    changed, because the weights are trained for these cameras.

    Args:
        vae: Stable Diffusion's autoencoder.
        image_encoder: CLIP's vision model.
        unet: UNet with the latent of the input image concatenated to the noisy latent.
        volume, depth_attention, conditioner: Networks that SyncDreamer adds.
        scheduler: Any diffusers scheduler with a noise schedule, which is converted to a `DDIMScheduler`.
        num_inference_steps, guidance_scale, eta, crop_size: Defaults of a call, saved with the model, because the best
            values depend on the size of the model. The values below are SyncDreamer's.

    Raises:
        ValueError: If the components do not fit together.
    """

    config: Any  # The defaults of a call are its attributes.
    model_cpu_offload_seq = "vae->image_encoder->unet"
    # Not offloaded, because these models are called inside the UNet, or by methods other than `forward`. The models
    # take 0.2 GB in half precision.
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["volume", "depth_attention", "conditioner"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(
        self,
        vae: AutoencoderKL,
        image_encoder: CLIPVisionModelWithProjection,
        unet: UNet2DConditionModel,
        volume: MultiViewVolume,
        depth_attention: DepthAttention,
        conditioner: ViewConditioner,
        scheduler: DDIMScheduler,
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        eta: float = 1.0,
        crop_size: int | None = None,
    ):
        super().__init__()
        _check_fit(vae, unet, volume, depth_attention)
        self.register_modules(
            vae=vae,
            image_encoder=image_encoder,
            unet=unet,
            volume=volume,
            depth_attention=depth_attention,
            conditioner=conditioner,
            scheduler=DDIMScheduler.from_config(scheduler.config),
        )
        self.register_to_config(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, eta=eta, crop_size=crop_size
        )
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path = MULTIVIEW_WEIGHTS, **kwargs: Any
    ) -> "SyncDreamerPipeline":
        """Load a model from a folder of `save_pretrained` or from the Hub; by default the embedded Toybox model.

        Args:
            pretrained_model_name_or_path: Folder or Hub ID.
            kwargs: Arguments of `DiffusionPipeline.from_pretrained`: `dtype`, `variant`, `token`, `revision`, ...
        """
        if pretrained_model_name_or_path == MULTIVIEW_WEIGHTS:
            # Stored in half precision, which transformers would keep for the image encoder.
            kwargs = {"dtype": torch.float32} | kwargs
        elif not Path(pretrained_model_name_or_path).is_dir():
            # diffusers loads classes of other packages only from a local folder.
            hub = ("revision", "token", "cache_dir", "force_download", "local_files_only")
            pretrained_model_name_or_path = snapshot_download(
                str(pretrained_model_name_or_path),
                allow_patterns=["*.json", "*.safetensors"],
                **{name: kwargs.pop(name) for name in hub if name in kwargs},
            )
        return super().from_pretrained(str(pretrained_model_name_or_path), **{"use_safetensors": True} | kwargs)

    @classmethod
    def from_single_file(
        cls,
        path_or_id: str | Path = PUBLISHED,
        *,
        dtype: torch.dtype | None = None,
        architecture: Architecture | None = None,
        **hub: Any,
    ) -> "SyncDreamerPipeline":
        """Load a published checkpoint, by default that of SyncDreamer's author. Only tensors are unpickled.

        Args:
            path_or_id: A file, or `owner/name/path/in/the/repository.ckpt` on the Hub; `spaces/` in front denotes a
                Space.
            dtype: Data type of the models. `None` keeps float32, and the weights are read from disk on first use.
            architecture: Sizes of the models, if they differ from the published sizes.
            hub: Arguments of `huggingface_hub.hf_hub_download`: `revision`, `token`, `cache_dir`, `local_files_only`,
                ...

        Raises:
            ValueError: If the file does not exist, or is a checkpoint of another model.
        """
        models = read_checkpoint(find_checkpoint(path_or_id, **hub), architecture)
        prediction_type = (architecture or Architecture()).prediction_type
        pipe = cls(**models, scheduler=build_scheduler(prediction_type))
        return pipe if dtype is None else pipe.to(dtype)

    @property
    def ring(self) -> ViewRing:
        """Return the cameras of the views."""
        return self.volume.ring

    @property
    def embedded(self) -> bool:
        """Return whether the model is the embedded Toybox model."""
        return self.config.get("_name_or_path") == str(MULTIVIEW_WEIGHTS)

    @property
    def image_size(self) -> int:
        """Return the height and width of the views in pixels."""
        return self.volume.config.latent_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def interrupt(self) -> bool:
        """Return whether the call ends after the current step."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Return the number of steps of the current call."""
        return self._num_timesteps

    def check_inputs(
        self,
        elevation_deg: float,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        view_chunk: int = 4,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """Check the options of a call before any work; `prepare_image` checks the image.

        Raises:
            TypeError: If `generator` is not a `torch.Generator`.
            ValueError: If a value is out of its range.
        """
        last = self.scheduler.config.num_train_timesteps - 1
        _check_range("elevation_deg", elevation_deg, -90, 90)
        _check_range("num_inference_steps", self._given("num_inference_steps", num_inference_steps), 1, last, kind=int)
        _check_range("guidance_scale", self._given("guidance_scale", guidance_scale), 0)
        _check_range("eta", self._given("eta", eta), 0, 1)
        _check_range("view_chunk", view_chunk, 1, kind=int)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs or []) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs may be {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )

    def _given(self, name: str, value: T | None) -> T:
        """Return the value of an option of a call, or the default of the model for `None`."""
        return self.config[name] if value is None else value

    def predict_views(
        self,
        denoiser: VolumeDenoiser,
        latents: Tensor,
        timestep: Tensor,
        condition: Condition,
        guidance_scale: float,
        view_chunk: int,
    ) -> Tensor:
        """Return the guided output of the UNet for all views at one timestep.

        One volume is computed from all noisy views. The views are then processed in chunks of `view_chunk`. The chunk
        size limits the memory and does not change the result.

        Args:
            denoiser: Denoiser inside its `with` block.
            latents: `(views, C, h, w)` float32.
            timestep: 0-d tensor.
            condition: Condition from `encode_image`.
            guidance_scale: w in s_u + w (s - s_u).
            view_chunk: Number of views in a chunk.

        Returns:
            `(views, C, h, w)` float32.
        """
        dtype = self.volume.dtype
        t_embed = self.conditioner.embed_time(timestep.reshape(1).to(latents.device)).to(dtype)
        v_embed = condition.v_embed.to(dtype)
        volume = self.volume.spatial_volume(latents[None].to(dtype), t_embed, v_embed)
        outputs = []
        for views in torch.arange(len(latents), device=latents.device).split(view_chunk):
            frustums = self.volume.frustums(volume, t_embed, v_embed, views[None])
            context = self.conditioner.embed_context(condition.image_embeds, condition.v_embed[:, views])
            pictures = condition.picture.expand(len(views), -1, -1, -1)
            output = predict(denoiser, latents[views], pictures, timestep, context, frustums, guidance_scale)
            outputs.append(output.float())
        return torch.cat(outputs)

    def decode_views(self, latents: Tensor, view_chunk: int = 4) -> Tensor:
        """Decode latents `(views, C, h, w)` to images `(views, H, W, 3)` in [0, 1], float32."""
        config = self.vae.config
        scaled = (latents / config.scaling_factor + (config.shift_factor or 0.0)).to(self.vae.dtype)
        images = [self.vae.decode(part).sample.float() for part in scaled.split(view_chunk)]
        return (torch.cat(images) / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    @torch.no_grad()
    def __call__(
        self,
        image: PIL.Image.Image,
        elevation_deg: float,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        generator: torch.Generator | None = None,
        crop_size: int | None = None,
        alpha_threshold: int = 0,
        view_chunk: int = 4,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["SyncDreamerPipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006  diffusers' signature
    ) -> SyncDreamerPipelineOutput | tuple:
        """Generate all views of an object.

        `None` for `num_inference_steps`, `guidance_scale`, `eta` or `crop_size` selects the default of the model, see
        the class.

        Args:
            image: Image of the object with a transparent background.
            elevation_deg: Elevation of the image's camera above the horizon in degrees. SyncDreamer was trained on -10
                to 40 degrees. `selection.sweep_elevation` estimates an unknown elevation.
            num_inference_steps: Number of DDIM steps.
            guidance_scale: w in s_u + w (s - s_u); 1 disables guidance and halves the work.
            eta: DDIM's eta in [0, 1], the fraction of fresh noise in each step.
            generator: Generator for all random numbers; by default a CPU generator with seed 0.
            crop_size: Longer side of the object in pixels of the views, see `prepare_image`.
            alpha_threshold: See `prepare_image`.
            view_chunk: Number of views that are denoised and decoded together. A smaller chunk needs less memory and
                gives the same result.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict: If `False`, return the tuple (images,).
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after each step, from step 0. The
                latents in the returned dict replace the current latents. Setting `pipe._interrupt = True` ends the
                call early.
            callback_on_step_end_tensor_inputs: Names of the tensors for the callback: `latents`.

        Returns:
            `SyncDreamerPipelineOutput`, or the tuple (images,).

        Raises:
            TypeError, ValueError: See `check_inputs` and `prepare_image`.

        Examples:
            >>> pipe = SyncDreamerPipeline.from_single_file(dtype=torch.float16).to("cuda")
            >>> views = pipe(PIL.Image.open("teapot.png"), elevation_deg=20, crop_size=200).images
        """
        self.check_inputs(
            elevation_deg,
            num_inference_steps,
            guidance_scale,
            eta,
            view_chunk,
            generator,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        prepared = prepare_image(image, self.image_size, self._given("crop_size", crop_size), alpha_threshold)
        guidance_scale, eta = self._given("guidance_scale", guidance_scale), self._given("eta", eta)
        generator = generator or torch.Generator().manual_seed(0)
        self._interrupt = False
        condition = self.encode_image(prepared, elevation_deg, generator)
        latents = self.prepare_latents(generator)
        steps = self._given("num_inference_steps", num_inference_steps)
        self.scheduler.set_timesteps(steps, device=latents.device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        with VolumeDenoiser(self.unet, self.depth_attention) as denoiser, self.progress_bar(timesteps) as progress:  # pyright: ignore[reportCallIssue, reportGeneralTypeIssues]
            for step, timestep in enumerate(progress):
                output = self.predict_views(denoiser, latents, timestep, condition, guidance_scale, view_chunk)
                noise = _step_noise(latents, eta, step == len(timesteps) - 1, generator)
                latents = self.scheduler.step(output, timestep, latents, eta, variance_noise=noise).prev_sample
                if callback_on_step_end is not None:
                    tensors = {name: {"latents": latents}[name] for name in callback_on_step_end_tensor_inputs}
                    latents = (callback_on_step_end(self, step, int(timestep), tensors) or {}).get("latents", latents)
                if self.interrupt:
                    break
        images = latents if output_type == "latent" else self.decode_views(latents, view_chunk)
        images = _format(images, output_type)
        self.maybe_free_model_hooks()
        return SyncDreamerPipelineOutput(images=images) if return_dict else (images,)

    def encode_image(self, prepared: Tensor, elevation_deg: float, generator: torch.Generator) -> Condition:
        """Encode the input image as the condition of `predict_views`.

        Args:
            prepared: `(3, H, H)` in [-1, 1], from `prepare_image`.
            elevation_deg: Elevation of the image's camera in degrees.
            generator: Generator for the sample of the posterior.
        """
        device = self._execution_device
        pixels = prepared[None].to(device)
        # The noise of the posterior is drawn before that of the views, as upstream does. A CPU generator then gives
        # the same numbers as upstream.
        picture = image_latent(self.vae, pixels, generator)
        image_embeds = clip_embedding(self.image_encoder, pixels)
        return Condition(picture, image_embeds, view_embedding(elevation_deg, self.ring).to(device))

    def prepare_latents(self, generator: torch.Generator) -> Tensor:
        """Sample pure noise `(views, C, h, w)`, in float32 for models of any type."""
        config = self.volume.config
        shape = (config.num_views, config.latent_channels, config.latent_size, config.latent_size)
        return (
            randn_tensor(shape, generator=generator, device=self._execution_device) * self.scheduler.init_noise_sigma
        )


def _step_noise(latents: Tensor, eta: float, last: bool, generator: torch.Generator) -> Tensor:
    """Return the noise of a step.

    The last step has no noise, because diffusers would leave the noise in the images.
    """
    if eta == 0 or last:
        return torch.zeros_like(latents)
    return randn_tensor(latents.shape, generator=generator, device=latents.device)


def _check_range(name: str, value: Any, low: float, high: float = math.inf, kind: type = float) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (kind is float and isinstance(value, float))) or not low <= value <= high:
        bounds = f">= {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name} must be {'an integer ' if kind is int else ''}{bounds}, got {value!r}.")


def sheet(images: list[PIL.Image.Image]) -> PIL.Image.Image:
    """Concatenate all views side by side, in the format of SyncDreamer's published sheets."""
    return PIL.Image.fromarray(np.concatenate([np.asarray(image) for image in images], axis=1))


def _check_fit(
    vae: AutoencoderKL, unet: UNet2DConditionModel, volume: MultiViewVolume, depth_attention: DepthAttention
) -> None:
    of_unet, of_volume, of_attention = unet.config, volume.config, depth_attention.config
    pairs = [
        ("unet.sample_size", of_unet["sample_size"], "volume.latent_size", of_volume.latent_size),
        ("unet.in_channels", of_unet["in_channels"], "2 vae.latent_channels", 2 * vae.config["latent_channels"]),
        ("volume.volume_dims", tuple(of_volume.volume_dims), "depth_attention's", tuple(of_attention.volume_dims)),
        ("unet.block_out_channels", tuple(of_unet["block_out_channels"]), "depth_attention's",
         tuple(of_attention.block_out_channels)),
    ]  # fmt: skip
    for name, value, other, expected in pairs:
        if value != expected:
            raise ValueError(f"{name} is {value}, but {other} is {expected}. Use components of one model.")


def _format(images: Tensor, output_type: str) -> Any:
    if output_type in ("pt", "latent"):
        return images
    if output_type == "np":
        return images.cpu().numpy()
    return [PIL.Image.fromarray(image) for image in (images * 255).round().byte().cpu().numpy()]
