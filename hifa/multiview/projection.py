"""Projection and sampling between images, world space and volumes, in float32.

The multi-view networks sample images and volumes as SyncDreamer does: the first pixel is at 0 and the last at size - 1
(`align_corners=True`), without the half-pixel offset of `hifa.cameras`. The weights were trained with this convention.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


NEAREST_DEPTH = 1e-4  # lower bound of the divisor, so that points behind the camera are not mirrored


def volume_points(size: int, half_extent: float, device: torch.device | None = None) -> Tensor:
    """Return world points `(size, size, size, 3)` of a cubic grid over [-half_extent, half_extent]^3.

    The grid includes the corners of the cube. The axes of the grid are z, y, x, as `grid_sample` expects. The last
    axis holds x, y, z.
    """
    line = torch.linspace(-half_extent, half_extent, size, device=device)
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    return torch.stack([x, y, z], dim=-1)


def frustum_points(poses: Tensor, intrinsics: Tensor, size: int, depths: Tensor) -> Tensor:
    """Return world points on the rays through all pixels of cameras, at given depths.

    Args:
        poses: `(V, 3, 4)` world-to-camera.
        intrinsics: `(3, 3)` in pixels.
        size: Height and width in pixels.
        depths: `(D,)` along the optical axis in world units.

    Returns:
        `(V, D, size, size, 3)`.
    """
    line = torch.arange(size, dtype=torch.float32, device=poses.device)
    v, u = torch.meshgrid(line, line, indexing="ij")
    directions = torch.stack([u, v, torch.ones_like(u)], dim=-1) @ torch.linalg.inv(intrinsics).T
    points = depths[:, None, None, None] * directions  # (D, size, size, 3), camera axes
    rotations, translations = poses[:, :, :3], poses[:, :, 3]
    centered = points[None] - translations[:, None, None, None]
    return torch.einsum("vdhwi,vij->vdhwj", centered, rotations)  # inverse rotation = transpose


def project(points: Tensor, poses: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Project world points into images.

    Args:
        points: `(P, 3)`.
        poses: `(V, 3, 4)` world-to-camera.
        intrinsics: `(3, 3)` in pixels.

    Returns:
        Pixels (u, v) `(V, P, 2)` and depths along the optical axis `(V, P)`.
    """
    in_camera = torch.einsum("vij,pj->vpi", poses[:, :, :3], points) + poses[:, None, :, 3]
    depths = in_camera[..., 2]
    pixels = in_camera @ intrinsics.T
    return pixels[..., :2] / depths.clamp(min=NEAREST_DEPTH)[..., None], depths


def sample_images(images: Tensor, pixels: Tensor) -> Tensor:
    """Sample `images` `(B, C, H, H)` bilinearly at `pixels` `(B, P, 2)` -> `(B, C, P)`; zero outside."""
    grid = pixels / ((images.shape[-1] - 1) / 2) - 1
    samples = F.grid_sample(images.float(), grid[:, None], padding_mode="zeros", align_corners=True)
    return samples[:, :, 0].to(images.dtype)


def sample_volumes(volumes: Tensor, points: Tensor, half_extent: float) -> Tensor:
    """Sample volumes over [-half_extent, half_extent]^3 trilinearly; zero outside.

    Args:
        volumes: `(B, C, V, V, V)`, axes z, y, x.
        points: `(B, D, H, W, 3)` world points.
        half_extent: Half side of the volumes in world units.

    Returns:
        `(B, C, D, H, W)`.
    """
    samples = F.grid_sample(volumes.float(), points / half_extent, padding_mode="zeros", align_corners=True)
    return samples.to(volumes.dtype)
