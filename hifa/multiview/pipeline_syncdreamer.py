"""SyncDreamerPipeline: one picture in, the same object from sixteen fixed cameras out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from .architecture import Architecture, build_scheduler
from .cameras import ViewRing
from .checkpoint import PUBLISHED, find_checkpoint, read_checkpoint
from .conditioning import Condition, ViewConditioner, clip_embedding, image_latent, view_embedding
from .denoiser import VolumeDenoiser, predict
from .depth_attention import DepthAttention
from .input_image import prepare_image
from .volume import MultiViewVolume


TOYBOX = Path(__file__).parents[1] / "toybox" / "multiview_weights"
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class SyncDreamerPipelineOutput(BaseOutput):
    """Result of `SyncDreamerPipeline`.

    Args:
        images: The views in the order of `pipe.ring`: PIL images, or an array or tensor `(views, H, W, 3)` in [0, 1],
            or the latents `(views, C, h, w)`.
    """

    images: Any


class SyncDreamerPipeline(DiffusionPipeline):
    """Views of an object from one picture, generated together (SyncDreamer, Liu et al. 2023, arXiv 2309.03453).

    The views are those of `pipe.ring`: elevation 30 degrees, azimuth 0, 22.5, ... 337.5 counter-clockwise from that of
    the picture. They cannot be changed: the weights know no others.

    Args:
        vae: Stable Diffusion's autoencoder.
        image_encoder: CLIP's vision model.
        unet: Takes the latent of the picture beside the noisy one.
        volume, depth_attention, conditioner: The parts that SyncDreamer adds.
        scheduler: Any diffusers scheduler with a noise schedule; a `DDIMScheduler` is made from it.
        num_inference_steps, guidance_scale, eta, crop_size: What a call takes if it is not told; saved with the model,
            since another size of model is at its best with others. These are SyncDreamer's.

    Raises:
        ValueError: If the parts do not fit together.
    """

    model_cpu_offload_seq = "vae->image_encoder->unet"
    # Called from within the UNet, or by other methods than `forward`; 0.2 GB in half precision.
    _exclude_from_cpu_offload = ["volume", "depth_attention", "conditioner"]
    _callback_tensor_inputs = ["latents"]

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
        cls, pretrained_model_name_or_path: str | Path = TOYBOX, **kwargs: Any
    ) -> "SyncDreamerPipeline":
        """Load what `save_pretrained` wrote: a folder or a hub id; the embedded Toybox model by default.

        Args:
            kwargs: As for `DiffusionPipeline.from_pretrained`: `dtype`, `variant`, `token`, `revision`, ...
        """
        if pretrained_model_name_or_path == TOYBOX:
            # Stored in half precision, in which transformers would leave the image encoder.
            kwargs = {"dtype": torch.float32} | kwargs
        elif not Path(pretrained_model_name_or_path).is_dir():
            # diffusers takes classes from outside of it from a local folder only.
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
        """Load a published checkpoint, by default the author's. Nothing but tensors is unpickled.

        Args:
            path_or_id: A file, or `owner/name/path/in/the/repository.ckpt` on the hub, with `spaces/` in front for
                the repository of a Space.
            dtype: Of the models; float32 without it, which is read from the disk as it is used.
            architecture: Sizes of the models, if they are not the published ones.
            hub: For `huggingface_hub.hf_hub_download`: `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Raises:
            ValueError: If there is no such file, or it is of another model.
        """
        models = read_checkpoint(find_checkpoint(path_or_id, **hub), architecture)
        prediction_type = (architecture or Architecture()).prediction_type
        pipe = cls(**models, scheduler=build_scheduler(prediction_type))
        return pipe if dtype is None else pipe.to(dtype)

    @property
    def ring(self) -> ViewRing:
        """The cameras of the views."""
        return self.volume.ring

    @property
    def embedded(self) -> bool:
        """Whether it is the embedded Toybox model."""
        return self.config.get("_name_or_path") == str(TOYBOX)

    @property
    def image_size(self) -> int:
        """Height and width of the views, pixels."""
        return self.volume.config.latent_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Steps of the call that is going on."""
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
        """Check the options of a call before any work starts; `prepare_image` checks the picture.

        Raises:
            TypeError: If the generator is not one.
            ValueError: For a value out of its range.
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
                f"callback_on_step_end_tensor_inputs knows {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )

    def _given(self, name: str, value: Any) -> Any:
        """The value of an option of a call: the model's own without one."""
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
        """Guided output of the UNet for all views at one timestep.

        One volume is made from all noisy views; then the views are taken `view_chunk` at a time, which bounds the
        memory and changes nothing else.

        Args:
            latents: `(views, C, h, w)` float32.
            timestep: 0-d.
            condition: From `encode_image`.
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
        """Images `(views, H, W, 3)` in [0, 1] float32 of latents `(views, C, h, w)`."""
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

        `None` for `num_inference_steps`, `guidance_scale`, `eta` or `crop_size` is the model's own, see the class.

        Args:
            image: The object with a transparent background.
            elevation_deg: Of the picture's camera above the horizon, degrees; SyncDreamer was trained on -10 to 40.
                `selection.sweep_elevation` finds one that is not known.
            num_inference_steps: DDIM steps.
            guidance_scale: w in s_u + w (s - s_u); 1 is no guidance and half the work.
            eta: Share of fresh noise in each step, 0 to 1.
            generator: Source of all randomness; without it a CPU generator with seed 0.
            crop_size, alpha_threshold: How the object is framed, see `prepare_image`; in pixels of the views.
            view_chunk: Views that are denoised and decoded together; less memory, same result.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict: `False` returns the tuple (images,).
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after each step, from step 0;
                the latents it returns replace the old ones. Setting `pipe._interrupt = True` ends the call early.
            callback_on_step_end_tensor_inputs: Names of the tensors it is given: `latents`.

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
        with VolumeDenoiser(self.unet, self.depth_attention) as denoiser, self.progress_bar(timesteps) as progress:
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
        """What `predict_views` is told of the picture.

        Args:
            prepared: `(3, H, H)` in [-1, 1], from `prepare_image`.
        """
        device = self._execution_device
        pixels = prepared[None].to(device)
        # The posterior's noise is drawn before that of the views: a seed on the CPU gives upstream's numbers.
        picture = image_latent(self.vae, pixels, generator)
        image_embeds = clip_embedding(self.image_encoder, pixels)
        return Condition(picture, image_embeds, view_embedding(elevation_deg, self.ring).to(device))

    def prepare_latents(self, generator: torch.Generator) -> Tensor:
        """Pure noise `(views, C, h, w)`, float32 whatever the models are."""
        config = self.volume.config
        shape = (config.num_views, config.latent_channels, config.latent_size, config.latent_size)
        return (
            randn_tensor(shape, generator=generator, device=self._execution_device) * self.scheduler.init_noise_sigma
        )


def _step_noise(latents: Tensor, eta: float, last: bool, generator: torch.Generator) -> Tensor:
    """Noise of a step. The last one gets none: diffusers would leave it in the images."""
    if eta == 0 or last:
        return torch.zeros_like(latents)
    return randn_tensor(latents.shape, generator=generator, device=latents.device)


def _check_range(name: str, value: Any, low: float, high: float = math.inf, kind: type = float) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (kind is float and isinstance(value, float))) or not low <= value <= high:
        bounds = f"{low} or more" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name} must be {'a whole number ' if kind is int else ''}{bounds}, got {value!r}.")


def sheet(images: list[PIL.Image.Image]) -> PIL.Image.Image:
    """All views side by side, the format of SyncDreamer's published sheets."""
    return PIL.Image.fromarray(np.concatenate([np.asarray(image) for image in images], axis=1))


def _check_fit(
    vae: AutoencoderKL, unet: UNet2DConditionModel, volume: MultiViewVolume, depth_attention: DepthAttention
) -> None:
    pairs = [
        ("unet.sample_size", unet.config.sample_size, "volume.latent_size", volume.config.latent_size),
        ("unet.in_channels", unet.config.in_channels, "2 vae.latent_channels", 2 * vae.config.latent_channels),
        ("volume.volume_dims", tuple(volume.config.volume_dims), "depth_attention's",
         tuple(depth_attention.config.volume_dims)),
        ("unet.block_out_channels", tuple(unet.config.block_out_channels), "depth_attention's",
         tuple(depth_attention.config.block_out_channels)),
    ]  # fmt: skip
    for name, value, other, expected in pairs:
        if value != expected:
            raise ValueError(f"{name} is {value}, but {other} is {expected}: the parts are of different models.")


def _format(images: Tensor, output_type: str) -> Any:
    if output_type in ("pt", "latent"):
        return images
    if output_type == "np":
        return images.cpu().numpy()
    return [PIL.Image.fromarray(image) for image in (images * 255).round().byte().cpu().numpy()]
