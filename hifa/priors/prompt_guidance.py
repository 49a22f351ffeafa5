"""Guidance: the prompts of a denoiser call, and the function that combines the outputs into one guided output."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cameras import VIEWS, Camera, pose_numbers
from .prompt_embeddings import PromptEmbeddings


FRONT, SIDE, BACK, OVERHEAD = (VIEWS.index(f"{view} view") for view in ("front", "side", "back", "overhead"))
FRONT_DECAY, SIDE_DECAY = 2.0, 10.0  # decay rates of the Perp-Neg weights, as in the public code


@dataclass(frozen=True)
class Guidance:
    """Inputs of one batched denoiser call, and the function that combines its outputs.

    Args:
        prompts: Embeddings of n prompts.
        combine: Function from the n outputs `(n, C, h, w)`, in the order of `prompts`, to the guided output
            `(1, C, h, w)`.
        concat_cond: `(1, C', h, w)` additional input channels of the UNet, see `DiffusionPrior.concat_cond`.
        poses: `(V, 16)` camera poses, see `cameras.pose_numbers`, for a prior that denoises V views jointly.
        sample_rescale: phi of `multiview_diffusion.rescaled_noise`, for a multi-view prior. 0 turns rescaling off.
    """

    prompts: PromptEmbeddings
    combine: Callable[[Tensor], Tensor]
    concat_cond: Tensor | None = None
    poses: Tensor | None = None
    sample_rescale: float = 0.0


def unguided(prompts: PromptEmbeddings, **conditions: Any) -> Guidance:
    """Build guidance by a single prompt, whose output is used unchanged.

    Args:
        prompts: Embeddings of the prompt.
        conditions: Other fields of `Guidance`.
    """
    return Guidance(prompts, lambda outputs: outputs, **conditions)


def classifier_free(
    embeddings: PromptEmbeddings, view: int, scale: float, view_scale: float, rescale: float
) -> Guidance:
    """Build classifier-free guidance for a view, with a separate weight for the view suffix of the prompt.

    Args:
        embeddings: Embeddings of a run.
        view: Index into `VIEWS`.
        scale: s, see `guided_output`. At 1 and below only the prompt with the view suffix is used, without guidance.
        view_scale: k, see `guided_output`.
        rescale: phi, see `rescale_guidance`. 0 turns rescaling off.
    """
    if scale <= 1:
        return unguided(embeddings.for_view(view))
    prompts = [embeddings.negative, embeddings.for_view(view)]
    if view_scale != 1:
        prompts.insert(1, embeddings.prompt)

    def combine(outputs: Tensor) -> Tensor:
        negative, without_view, positive = outputs[:1], outputs[-2:-1], outputs[-1:]
        return rescale_guidance(guided_output(negative, without_view, positive, scale, view_scale), positive, rescale)

    return Guidance(PromptEmbeddings.joined(prompts), combine)


def by_cameras(embeddings: PromptEmbeddings, cameras: Sequence[Camera], scale: float, rescale: float) -> Guidance:
    """Build classifier-free guidance for several views at once, with camera poses instead of view suffixes.

    Args:
        embeddings: Embeddings of a run. The rows with view suffixes are not used.
        cameras: Cameras of the views.
        scale: s, see `guided_output`. At 1 and below only the prompt is used, without guidance.
        rescale: phi, see `multiview_diffusion.rescaled_noise`.
    """
    poses = torch.stack([pose_numbers(camera) for camera in cameras])
    if scale <= 1:
        return unguided(embeddings.prompt, poses=poses)

    def combine(outputs: Tensor) -> Tensor:
        return guided_output(outputs[:1], outputs[:1], outputs[1:], scale, view=1)

    prompts = PromptEmbeddings.joined([embeddings.negative, embeddings.prompt])
    return Guidance(prompts, combine, poses=poses, sample_rescale=rescale)


def perp_neg(embeddings: PromptEmbeddings, camera: Camera, scale: float, strength: float) -> Guidance:
    """Build Perp-Neg guidance (Armandpour et al. 2023, "Re-imagine the Negative Prompt Algorithm", equation 6).

    Prompts of views that differ from the view of the camera act as negative prompts. Only the component of each
    negative direction that is perpendicular to the positive direction is used.

    The positive prompt embedding is interpolated between the two nearest of the front, side and back views. The
    overhead view has no neighboring views, so an overhead camera gets plain classifier-free guidance.

    Args:
        embeddings: Embeddings of a run.
        camera: Camera of the view.
        scale: Guidance scale s.
        strength: Largest magnitude w of the weights of the negative prompts; 2 in the public code.
    """
    if camera.view == OVERHEAD:
        return classifier_free(embeddings, OVERHEAD, scale, 1.0, 0.0)
    r, nearer, farther, opposite = _neighbors(camera.azimuth_deg)
    mixed = embeddings.for_view(nearer).mixed(embeddings.for_view(farther), r)
    negatives = (nearer, farther) if opposite is None else (nearer, opposite)
    weights = perp_neg_weights(camera.azimuth_deg, strength)

    def combine(outputs: Tensor) -> Tensor:
        unconditional, positive, *others = outputs.split(1)
        direction = positive - unconditional
        total = direction
        for other, weight in zip(others, weights, strict=True):
            total = total + weight * perpendicular(other - unconditional, direction)
        return unconditional + scale * total

    others = [embeddings.for_view(view) for view in negatives]
    return Guidance(PromptEmbeddings.joined([embeddings.negative, mixed, *others]), combine)


def perp_neg_weights(azimuth_deg: float, strength: float = 2.0) -> tuple[float, float]:
    """Return the weights, at most 0, of the two negative prompts of `perp_neg`, as in the public code.

    Between front and side, the weights belong to the front prompt and the side prompt. Between side and back, the
    weights belong to the side prompt and the front prompt. A weight is 0 if the camera is at or near the view of its
    negative prompt.
    """
    r, nearer, _, _ = _neighbors(azimuth_deg)
    if nearer == FRONT:
        front = 0.0 if r > 0.8 else -strength * math.exp(-FRONT_DECAY * r)
        side = 0.0 if r < 0.2 else -strength * math.exp(-SIDE_DECAY * (1 - r))
        return front, side
    side = 0.0 if r > 0.8 else -strength / 2 * math.exp(-SIDE_DECAY * r)
    return side, -strength


def _neighbors(azimuth_deg: float) -> tuple[float, int, int, int | None]:
    """Return the views on either side of an azimuth, and the interpolation weight of the first view.

    Returns:
        A tuple `(r, first, second, opposite)`. r in [0, 1] is the interpolation weight of the first view. `opposite`
        is the view that replaces the second view among the negative prompts, or `None`.
    """
    away = abs((azimuth_deg + 180) % 360 - 180)
    if away < 90:
        return 1 - away / 90, FRONT, SIDE, None
    return 2 - away / 90, SIDE, BACK, FRONT


def perpendicular(x: Tensor, direction: Tensor) -> Tensor:
    """Return the component of x perpendicular to `direction` for each batch element; both are `(B, C, h, w)`."""
    axes = (1, 2, 3)
    share = (x * direction).sum(axes, keepdim=True) / (direction**2).sum(axes, keepdim=True).clamp_min(1e-12)
    return x - share * direction


def guided_output(negative: Tensor, without_view: Tensor, positive: Tensor, scale: float, view: float) -> Tensor:
    """Combine model outputs by classifier-free guidance with a separate weight for the view suffix.

    The result is o_n + s [(o_0 - o_n) + k (o_v - o_0)], the nested form of Brooks et al. 2023, "InstructPix2Pix",
    equation 3. Up to a factor, o_v - o_0 is the gradient of log p(view | noisy image, prompt). A weight k > 1 sharpens
    this implicit classifier. The gradient fades where the image already shows the view. With k = 1, o_0 cancels.

    Args:
        negative: o_n `(B, C, h, w)`, the model output for the negative prompt.
        without_view: o_0 `(B, C, h, w)`, the model output for the prompt.
        positive: o_v `(B, C, h, w)`, the model output for the prompt with the view suffix.
        scale: Guidance scale s.
        view: Weight k of the view suffix; 1 is plain classifier-free guidance.
    """
    if view == 1:
        return negative + scale * (positive - negative)
    return negative + scale * (without_view - negative + view * (positive - without_view))


def rescale_guidance(guided: Tensor, positive: Tensor, rescale: float) -> Tensor:
    """Rescale the guided output toward the standard deviation of the conditional output.

    The result is a mixture of the guided output and of its rescaled copy (Lin et al. 2023, "Common Diffusion Noise
    Schedules", equations 15 and 16).

    Args:
        guided: `(B, C, h, w)` guided output.
        positive: `(B, C, h, w)` output for the prompt.
        rescale: Share phi of the rescaled copy, in [0, 1].
    """
    if rescale == 0:
        return guided
    axes = tuple(range(1, guided.ndim))
    factor = positive.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (rescale * factor + 1 - rescale)
