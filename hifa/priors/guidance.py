"""Which prompts a diffusion model is asked with, and how its answers make one guided output."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import VIEWS, Camera, pose_numbers


FRONT, SIDE, BACK, OVERHEAD = (VIEWS.index(f"{view} view") for view in ("front", "side", "back", "overhead"))
FRONT_DECAY, SIDE_DECAY = 2.0, 10.0  # of Perp-Neg, as in the public code


@dataclass(frozen=True)
class Guidance:
    """What the denoiser is asked, all at once, and what is made of its answers.

    Args:
        embeds: `(n, tokens, dim)` prompts.
        combine: From the n outputs `(n, C, h, w)`, in their order, to the guided one `(1, C, h, w)`.
        pooled: `(n, pooled)` pooled embeddings of the same prompts, for a prior that reads them (SDXL).
        beside: `(1, C', h, w)` for a prior that is shown more than the noisy image, see `DiffusionPrior.beside`.
        poses: `(V, 16)` of the views, see `cameras.pose_numbers`, for a prior that sees V views at once.
        sample_rescale: phi of `multiview_diffusion.rescaled_noise`, for such a prior; 0 is off.
    """

    embeds: Tensor
    combine: Callable[[Tensor], Tensor]
    pooled: Tensor | None = None
    beside: Tensor | None = None
    poses: Tensor | None = None
    sample_rescale: float = 0.0


def classifier_free(embeds: Tensor, view: int, scale: float, view_scale: float, rescale: float) -> Guidance:
    """Classifier-free guidance for a view, with a strength of its own for the view's words.

    Args:
        embeds: `(2 + len(VIEWS), tokens, dim)`: the negative prompt, the prompt, the prompt from each view.
        view: Index into `VIEWS`.
        scale: s, see `guided_output`; 1 and below ask the prompt with its view alone.
        view_scale: k, see `guided_output`.
        rescale: phi, see `rescale_guidance`; 0 is off.
    """
    if scale <= 1:
        return Guidance(embeds[[2 + view]], lambda outputs: outputs)
    asked = [0, 2 + view] if view_scale == 1 else [0, 1, 2 + view]

    def combine(outputs: Tensor) -> Tensor:
        negative, without_view, positive = outputs[:1], outputs[-2:-1], outputs[-1:]
        return rescale_guidance(guided_output(negative, without_view, positive, scale, view_scale), positive, rescale)

    return Guidance(embeds[asked], combine)


def by_cameras(embeds: Tensor, cameras: Sequence[Camera], scale: float, rescale: float) -> Guidance:
    """Classifier-free guidance for several views at once, which are told by their cameras and not by words.

    Args:
        embeds: As for `classifier_free`; the words of the views are not used.
        cameras: Of the views.
        scale: s; 1 and below ask the prompt alone.
        rescale: phi, see `multiview_diffusion.rescaled_noise`.
    """
    poses = torch.stack([pose_numbers(camera) for camera in cameras])
    if scale <= 1:
        return Guidance(embeds[[1]], lambda outputs: outputs, poses=poses)

    def combine(outputs: Tensor) -> Tensor:
        return guided_output(outputs[:1], outputs[:1], outputs[1:], scale, view=1)

    return Guidance(embeds[[0, 1]], combine, poses=poses, sample_rescale=rescale)


def perp_neg(embeds: Tensor, camera: Camera, scale: float, strength: float) -> Guidance:
    """Perp-Neg (Armandpour et al. 2023, "Re-imagine the Negative Prompt Algorithm", equation 6): away from the views
    that a camera does not have, but only across the direction of the one that it has.

    The prompt is mixed of those of the two nearest of front, side and back. Overhead, which has no neighbours, has
    classifier-free guidance.

    Args:
        embeds: As for `classifier_free`.
        camera: Of the view.
        scale: s.
        strength: w of the negative prompts at its largest, 2 in the public code.
    """
    if camera.view == OVERHEAD:
        return classifier_free(embeds, OVERHEAD, scale, 1.0, 0.0)
    r, nearer, farther, opposite = _neighbours(camera.azimuth_deg)
    mixed = r * embeds[2 + nearer] + (1 - r) * embeds[2 + farther]
    negatives = (nearer, farther) if opposite is None else (nearer, opposite)
    weights = perp_neg_weights(camera.azimuth_deg, strength)

    def combine(outputs: Tensor) -> Tensor:
        unconditional, positive, *others = outputs.split(1)
        direction = positive - unconditional
        total = direction
        for other, weight in zip(others, weights, strict=True):
            total = total + weight * perpendicular(other - unconditional, direction)
        return unconditional + scale * total

    return Guidance(torch.stack([embeds[0], mixed, *(embeds[2 + view] for view in negatives)]), combine)


def perp_neg_weights(azimuth_deg: float, strength: float = 2.0) -> tuple[float, float]:
    """Weights, not positive, of the two negative prompts of `perp_neg` in the public code.

    From front to side they are those of the front and of the side, from side to back of the side and of the front. A
    negative prompt whose view the camera has, or nearly has, does not count.
    """
    r, nearer, _, _ = _neighbours(azimuth_deg)
    if nearer == FRONT:
        front = 0.0 if r > 0.8 else -strength * math.exp(-FRONT_DECAY * r)
        side = 0.0 if r < 0.2 else -strength * math.exp(-SIDE_DECAY * (1 - r))
        return front, side
    side = 0.0 if r > 0.8 else -strength / 2 * math.exp(-SIDE_DECAY * r)
    return side, -strength


def _neighbours(azimuth_deg: float) -> tuple[float, int, int, int | None]:
    """Share r of the first of two views that an azimuth lies between, the two, and the third if it is a negative."""
    away = abs((azimuth_deg + 180) % 360 - 180)
    if away < 90:
        return 1 - away / 90, FRONT, SIDE, None
    return 2 - away / 90, SIDE, BACK, FRONT


def perpendicular(x: Tensor, direction: Tensor) -> Tensor:
    """The part of each `(C, h, w)` of x across that of `direction`; both `(B, C, h, w)`."""
    axes = (1, 2, 3)
    share = (x * direction).sum(axes, keepdim=True) / (direction**2).sum(axes, keepdim=True).clamp_min(1e-12)
    return x - share * direction


def guided_output(negative: Tensor, without_view: Tensor, positive: Tensor, scale: float, view: float) -> Tensor:
    """Classifier-free guidance with a strength of its own for the words of the view.

    o_n + s [(o_0 - o_n) + k (o_v - o_0)]: the nested form of Brooks et al. 2023, "InstructPix2Pix", equation 3.
    o_v - o_0 is the gradient of log p(view | noisy image, prompt) up to a factor, so k > 1 sharpens that classifier
    and fades where the image shows the view already. With k = 1 the middle term, o_0, cancels.

    Args:
        negative, without_view, positive: o_n, o_0 and o_v `(B, C, h, w)`, outputs of the model for the negative
            prompt, the prompt and the prompt with its view.
        scale: s.
        view: k.
    """
    if view == 1:
        return negative + scale * (positive - negative)
    return negative + scale * (without_view - negative + view * (positive - without_view))


def rescale_guidance(guided: Tensor, positive: Tensor, rescale: float) -> Tensor:
    """Mix the guided output with itself at the conditional one's standard deviation (Lin et al. 2023, eq. 15, 16)."""
    if rescale == 0:
        return guided
    axes = tuple(range(1, guided.ndim))
    factor = positive.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (rescale * factor + 1 - rescale)
