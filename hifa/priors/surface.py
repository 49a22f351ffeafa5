"""Frozen models that estimate the surface in a picture: normals, their confidence, and disparity."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..losses import expected_angle
from ..toybox import SURFACE_WEIGHTS
from .surface_unet import SurfaceUNet


DOUBT = torch.pi / 4  # expected angular error at which the confidence of a predicted normal is 0


@dataclass(frozen=True)
class SurfaceEstimate:
    """Estimated surface in one picture. Quantities that a model does not predict are `None`.

    Args:
        normals: `(n, n, 3)` unit normals in camera axes: x right, y down, z forward. Normals point toward the camera.
        confidence: `(n, n)` confidence of the normals, in [0, 1]; 0 where there is no surface.
        disparity: `(n, n)` up to scale and shift; larger is nearer.
    """

    normals: Tensor | None = None
    confidence: Tensor | None = None
    disparity: Tensor | None = None


class SurfacePrior(ABC):
    """Base class of frozen dense-prediction models that estimate surfaces in pictures during a run."""

    @abstractmethod
    def estimate(self, picture: Tensor, size: int, timestep: int = 0) -> SurfaceEstimate:
        """Estimate the surface in a picture.

        Args:
            picture: `(1, 3, H, W)` RGB in [0, 1], of any size.
            size: Height and width n of the estimate, in pixels.
            timestep: Diffusion timestep from which the picture was estimated in one step; 0 for a render or a photo.
        """


class EmbeddedSurfacePrior(SurfacePrior):
    """Small surface model in the package, trained on Toybox renders and on the Toybox prior's estimates of renders.

    Args:
        model: Model in evaluation mode, without gradients.
    """

    def __init__(self, model: SurfaceUNet):
        self.model = model

    @torch.no_grad()
    def estimate(self, picture: Tensor, size: int, timestep: int = 0) -> SurfaceEstimate:
        """Estimate normals, confidence and disparity in a picture."""
        if self.model.device != picture.device:
            self.model.to(picture.device)  # pyright: ignore[reportArgumentType]
        x = resized(picture.float(), self.model.config.sample_size)
        seen = read_surface(self.model, x, torch.full((1,), timestep, device=x.device))
        confidence = confidence_of(seen.kappa)
        normals = F.normalize(resized(seen.normals, size)[0].movedim(0, -1), dim=-1)
        return SurfaceEstimate(
            normals, resized(confidence[:, None], size)[0, 0], resized(seen.disparity[:, None], size)[0, 0]
        )


@dataclass(frozen=True)
class SurfaceReading:
    """Outputs of the embedded model for B pictures.

    Args:
        normals: `(B, 3, H, W)` unit normals in camera axes.
        kappa: `(B, H, W)` concentration of the angular error, see `losses.angular_von_mises_fisher_loss`.
        disparity: `(B, H, W)` up to scale and shift; larger is nearer.
    """

    normals: Tensor
    kappa: Tensor
    disparity: Tensor


def read_surface(model: SurfaceUNet, pictures: Tensor, timesteps: Tensor) -> SurfaceReading:
    """Run the embedded model. Differentiable.

    On a CPU with AMX the convolutions run in bfloat16, which takes a third of the time.

    Args:
        model: Embedded model.
        pictures: `(B, 3, H, W)` in [0, 1].
        timesteps: `(B,)`, see `SurfacePrior.estimate`.
    """
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=_multiplies_bfloat16(pictures.device)):
        outputs = model(pictures, timesteps)
    outputs = outputs.float()
    # elu + 1 is positive. The additional 0.01 keeps the logarithm of kappa finite.
    return SurfaceReading(F.normalize(outputs[:, :3], dim=1), F.elu(outputs[:, 3]) + 1.01, outputs[:, 4])


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device is a CPU that multiplies bfloat16 matrices in hardware."""
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def confidence_of(kappa: Tensor) -> Tensor:
    """Return the confidence of normals in [0, 1]: 1 for an expected error of 0, and 0 for `DOUBT` or more."""
    return (1 - expected_angle(kappa) / DOUBT).clamp_min(0)


def resized(images: Tensor, size: int) -> Tensor:
    """Resize images `(B, C, H, W)` to `size` x `size` pixels, with antialiasing when downsampling."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=images.shape[-1] > size)


def load_embedded() -> EmbeddedSurfacePrior:
    """Load the surface model that is part of the package, in float32."""
    model = SurfaceUNet.from_pretrained(SURFACE_WEIGHTS, dtype=torch.float32).eval().requires_grad_(False)
    return EmbeddedSurfacePrior(model.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]
