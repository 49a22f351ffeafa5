"""Surfaces that a frozen model sees in a picture: normals, how certain they are, and disparity."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..losses import expected_angle
from .surface_unet import SurfaceUNet


EMBEDDED = Path(__file__).parents[1] / "toybox" / "surface_weights"
DOUBT = torch.pi / 4  # expected angular error at which a predicted normal counts for nothing


@dataclass(frozen=True)
class SurfaceEstimate:
    """What a model sees in one picture; a model that does not predict something leaves it `None`.

    Args:
        normals: `(n, n, 3)` unit normals in camera axes: x right, y down, z forward. They point towards the camera.
        confidence: `(n, n)` in [0, 1], of the normals; 0 where there is no surface.
        disparity: `(n, n)` up to scale and shift; larger is nearer.
    """

    normals: Tensor | None = None
    confidence: Tensor | None = None
    disparity: Tensor | None = None


class SurfacePrior(ABC):
    """A dense-prediction model that is shown pictures during a run and never trained."""

    @abstractmethod
    def estimate(self, picture: Tensor, size: int, timestep: int = 0) -> SurfaceEstimate:
        """Estimate the surface in a picture.

        Args:
            picture: `(1, 3, H, W)` RGB in [0, 1], of any size.
            size: n, height and width of the answer in pixels.
            timestep: Diffusion timestep that the picture is a one-step estimate from; 0 for a render or a photo.
        """


class EmbeddedSurfacePrior(SurfacePrior):
    """The small model that was trained on Toybox renders and on the prior's estimates of them.

    Args:
        model: In evaluation mode, without gradients.
    """

    def __init__(self, model: SurfaceUNet):
        self.model = model

    @torch.no_grad()
    def estimate(self, picture: Tensor, size: int, timestep: int = 0) -> SurfaceEstimate:
        if self.model.device != picture.device:
            self.model.to(picture.device)
        x = resized(picture.float(), self.model.config.sample_size)
        seen = read_surface(self.model, x, torch.full((1,), timestep, device=x.device))
        confidence = confidence_of(seen.kappa)
        normals = F.normalize(resized(seen.normals, size)[0].movedim(0, -1), dim=-1)
        return SurfaceEstimate(
            normals, resized(confidence[:, None], size)[0, 0], resized(seen.disparity[:, None], size)[0, 0]
        )


@dataclass(frozen=True)
class SurfaceReading:
    """What the embedded model answers for B pictures.

    Args:
        normals: `(B, 3, H, W)` unit normals in camera axes.
        kappa: `(B, H, W)` concentration of the angular error, see `losses.angular_von_mises_fisher_loss`.
        disparity: `(B, H, W)`.
    """

    normals: Tensor
    kappa: Tensor
    disparity: Tensor


def read_surface(model: SurfaceUNet, pictures: Tensor, timesteps: Tensor) -> SurfaceReading:
    """Run the embedded model, differentiably.

    Args:
        pictures: `(B, 3, H, W)` in [0, 1].
        timesteps: `(B,)`, see `SurfacePrior.estimate`.
    """
    outputs = model(pictures, timesteps)
    # elu + 1 is positive everywhere; the rest keeps its logarithm finite.
    return SurfaceReading(F.normalize(outputs[:, :3], dim=1), F.elu(outputs[:, 3]) + 1.01, outputs[:, 4])


def confidence_of(kappa: Tensor) -> Tensor:
    """Confidence in [0, 1] of normals: 1 without an expected error, 0 where it reaches `DOUBT`."""
    return (1 - expected_angle(kappa) / DOUBT).clamp_min(0)


def resized(images: Tensor, size: int) -> Tensor:
    """Images `(B, C, H, W)` at `size` x `size` pixels, smoothed where they get smaller."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=images.shape[-1] > size)


def load_embedded() -> EmbeddedSurfacePrior:
    """Load the model that is part of the package, in float32."""
    model = SurfaceUNet.from_pretrained(EMBEDDED, dtype=torch.float32).eval().requires_grad_(False)
    return EmbeddedSurfacePrior(model.to(memory_format=torch.channels_last))
