"""Compute the memory of a 512x512 step of the `paper` preset with Stable Diffusion 1.5 in float16, without a GPU.

    python -m benchmarks.memory_arithmetic

The full-size models run on the meta device, where tensors have shapes but no values. The benchmark sums the bytes of
all live tensors after each operation. The shapes of a chunk of rays depend on values, so a chunk runs on the CPU and
is counted in the same way. `python -m benchmarks.memory --model ID --half` measures the same memory on a CUDA machine.

Attention without a gradient counts as in the fused CUDA kernels, which store no matrix of attention weights. Memory
outside of tensors does not count: the CUDA context, workspaces of convolutions, and gaps between blocks of the
allocator. The last line printed is one JSON object, in units of 10^9 bytes:

    weights               UNet, autoencoder and text encoder in float16; the text encoder can be released
    field                 parameters, gradients and moments of Adam in float32
    encoder_graph         tensors that the encoder stores for its backward pass while the UNet runs
    guidance              peak of the guidance, from the encoder to the gradient of the image. The peak occurs in the
                          UNet, the decoder or the backward pass, and includes encoder_graph
    image                 rays of the whole image, their outputs and the gradients of the outputs
    chunk                 peak of one chunk of rays, forward and backward
    total                 weights + field + image + max(guidance, chunk). Guidance and chunks run one after the other
    without_chunks        the total without chunks: the graph of all rays is held during the guidance
"""

import argparse
import json

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hifa import HiFAConfig
from hifa.cameras import VIEWS, Camera, camera_to_world, image_rays
from hifa.field import RadianceField
from hifa.losses import sds_plus_loss
from hifa.priors.prior import DiffusionPrior
from hifa.priors.prompt_embeddings import PromptEmbeddings
from hifa.priors.prompt_guidance import classifier_free
from hifa.rendering.rays import RayOutput, RaySampling, render_rays

from .published_models import build_pipeline


TOKENS = 77


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that were created in the context. `peak` is the maximum so far."""

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def now(self) -> int:
        self._storages = {key: value for key, value in self._storages.items() if not value[0].expired()}
        return sum(size for _, size in self._storages.values())

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        given = {StorageWeakRef(storage).cdata for storage in _storages_of((arguments, named))}
        for storage in _storages_of(result):
            reference = StorageWeakRef(storage)
            if reference.cdata not in given:  # skip views and in-place results, which may be weights
                self._storages[reference.cdata] = (reference, storage.nbytes())
        self.peak = max(self.peak, self.now())
        return result


def _storages_of(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class FusedAttention(TorchFunctionMode):
    """Makes attention without a gradient allocate only its output, on the meta device."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = named or {}
        if function is torch.nn.functional.scaled_dot_product_attention and not torch.is_grad_enabled():
            query, value = arguments[0], arguments[2] if len(arguments) > 2 else named["value"]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return function(*arguments, **named)


def guidance_bytes(prior: DiffusionPrior, config: HiFAConfig, text_dim: int, device: str = "meta") -> tuple[int, int]:
    """Return two numbers of bytes: the graph of the encoder, and the peak of the guidance.

    The guidance is the loss of equation 4 and its gradient with respect to the image.

    Args:
        prior: Prior on `device`.
        config: Settings of the run.
        text_dim: Width of the text encoder.
        device: Device of the inputs.
    """
    size = prior.image_size
    embeds = PromptEmbeddings(torch.zeros(2 + len(VIEWS), TOKENS, text_dim, device=device))
    guidance = classifier_free(embeds, 0, config.guidance_scale, config.view_guidance, config.guidance_rescale)
    x = torch.zeros(1, 3, size, size, device=device, requires_grad=True)
    t = int(config.t_max * len(prior.alphas_cumprod))
    with LiveBytes() as live, FusedAttention():
        z = prior.encode(x)
        graph = live.now()
        z_hat = prior.estimate(z, t, guidance, config.denoising_stride, config.eta, torch.Generator())
        weights = dict(weight=config.sds_weight, lambda_latent=config.lambda_latent, lambda_rgb=config.lambda_rgb)
        sds_plus_loss(z, z_hat, x, prior.decode(z_hat), **weights).backward()
    return graph, live.peak


def field_bytes(field: RadianceField) -> int:
    """Return the bytes of the parameters, the gradients and the two moments of Adam."""
    return 4 * sum(p.numel() * p.element_size() for p in field.parameters())


def chunk_bytes(field: RadianceField, config: HiFAConfig) -> int:
    """Return the peak of the forward and backward pass of one chunk of rays, without `field_bytes`.

    The rays are from the middle of an image, so that all rays hit the object.
    """
    camera = Camera(0.0, 15.0, sum(config.camera_radius) / 2, sum(config.camera_fov_deg) / 2)
    rays = image_rays(camera_to_world(camera), camera.fov_deg, config.render_size)
    start = (len(rays) - config.rays_per_chunk) // 2
    part = rays[start : start + config.rays_per_chunk]
    for parameter in field.parameters():  # in a run, these gradients exist for all chunks except the first
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live:
        seen = render_rays(field, part, RaySampling(config.n_coarse, config.n_fine, config.kernel))
        (seen.color.sum() + seen.z_variance.sum()).backward()
    return live.peak


def image_bytes(config: HiFAConfig) -> int:
    """Return the bytes of all rays of an image: origins, directions, offsets, outputs and gradients of the outputs."""
    seen = sum({"color": 3}.get(name, 1) for name in RayOutput.__dataclass_fields__ if name != "density")
    return 4 * config.render_size**2 * (3 + 3 + 2 + 2 * seen)


def arithmetic(name: str, config: HiFAConfig) -> dict:
    """Return all results, in 10^9 bytes. `name` is a model in `published_models.NAMES` that has an autoencoder."""
    pipe = build_pipeline(name)
    models = {key: getattr(pipe, key).half() for key in ("unet", "vae", "text_encoder")}
    weights = {key: sum(p.numel() * 2 for p in model.parameters()) for key, model in models.items()}
    field = RadianceField(
        levels=config.levels, base_resolution=config.base_resolution, max_resolution=config.max_resolution,
        log2_hashmap_size=config.log2_hashmap_size, hidden_dim=config.hidden_dim, view_bands=config.view_bands,
    )  # fmt: skip
    graph, guidance = guidance_bytes(pipe.make_prior(), config, pipe.text_encoder.config.hidden_size)
    chunk, image, kept = chunk_bytes(field, config), image_bytes(config), field_bytes(field)
    resting = sum(weights.values()) + kept + image
    all_rays = chunk * config.render_size**2 / config.rays_per_chunk
    parts = {
        "field": kept,
        "encoder_graph": graph,
        "guidance": guidance,
        "image": image,
        "chunk": chunk,
        "total": resting + max(guidance, chunk),
        "without_chunks": resting + guidance + all_rays,
    }
    return {
        "model": name,
        "render_size": config.render_size,
        "samples_a_ray": config.n_coarse + config.n_fine,
        "rays_per_chunk": config.rays_per_chunk,
        "weights": {key: round(value / 1e9, 3) for key, value in weights.items()},
        **{key: round(value / 1e9, 3) for key, value in parts.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("sd15", "sd21"), default="sd15", help="model in benchmarks/published")
    parser.add_argument("--rays-per-chunk", type=int, default=HiFAConfig.rays_per_chunk)
    arguments = parser.parse_args()
    print(json.dumps(arithmetic(arguments.model, HiFAConfig.paper(rays_per_chunk=arguments.rays_per_chunk))))


if __name__ == "__main__":
    main()
