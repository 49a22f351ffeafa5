"""Pinhole cameras around the object: sampling, orbits and rays.

World axes: z is up, and the front of the object is along +x (azimuth 0). Azimuth is counterclockwise in a view from
above. Camera axes are those of OpenCV: x right, y down, z forward. The center of pixel (row i, column j) is at
(j + 0.5, i + 0.5). Ray directions have unit length, so that z along a ray is the distance from the camera.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .view_words import VIEWS, view_of


POSE_DIM = 16


@dataclass(frozen=True)
class Camera:
    """A square pinhole camera that looks at the origin.

    Args:
        azimuth_deg, elevation_deg: Direction from the origin to the camera, degrees.
        radius: Distance from the origin, world units.
        fov_deg: Horizontal and vertical field of view, degrees.
    """

    azimuth_deg: float
    elevation_deg: float
    radius: float = 2.5
    fov_deg: float = 40.0

    @property
    def view(self) -> int:
        """Return the index of the view suffix in `VIEWS`."""
        return VIEWS.index(view_of(self.azimuth_deg, self.elevation_deg))


@dataclass(frozen=True)
class Rays:
    """Rays with unit directions.

    Args:
        origins: `(n_rays, 3)`, world units.
        directions: `(n_rays, 3)` unit vectors.
    """

    origins: Tensor
    directions: Tensor

    def __len__(self) -> int:
        return self.origins.shape[0]

    def __getitem__(self, index) -> "Rays":
        return Rays(self.origins[index], self.directions[index])

    @classmethod
    def joined(cls, parts: Sequence["Rays"]) -> "Rays":
        """Concatenate the rays of several images."""
        return cls(torch.cat([part.origins for part in parts]), torch.cat([part.directions for part in parts]))


def camera_to_world(camera: Camera) -> Tensor:
    """Return the pose `(3, 4)` float32, whose columns are the right, down and forward axes and the position."""
    azimuth, elevation = torch.deg2rad(torch.tensor([camera.azimuth_deg, camera.elevation_deg], dtype=torch.float64))
    ca, sa, ce, se = azimuth.cos(), azimuth.sin(), elevation.cos(), elevation.sin()
    outward = torch.stack([ce * ca, ce * sa, se])
    # Computed from the azimuth instead of a cross product with z, which is undefined for an overhead camera.
    right = torch.stack([-sa, ca, torch.zeros_like(sa)])
    down = torch.linalg.cross(-outward, right)
    return torch.stack([right, down, -outward, camera.radius * outward], dim=1).float()


def pose_numbers(camera: Camera) -> Tensor:
    """Return the pose as input of MVDream (Shi et al. 2024, section 3.1): `(16,)` float32.

    The numbers are the rows of a camera-to-world matrix with the camera axes of OpenGL (right, up, backward). The
    position is normalized to length 1, so that the condition contains the direction, but neither the distance nor the
    field of view.
    """
    right, down, forward, position = camera_to_world(camera).unbind(1)
    pose = torch.stack([right, -down, -forward, position / position.norm()], dim=1)
    return torch.cat([pose.flatten(), torch.tensor([0.0, 0.0, 0.0, 1.0])])


def ring(camera: Camera, num_views: int) -> tuple[Camera, ...]:
    """Return cameras at equal steps of azimuth around the object, starting with `camera`.

    Elevation, radius and field of view are those of `camera`.
    """
    step = 360 / num_views
    return tuple(replace(camera, azimuth_deg=camera.azimuth_deg + index * step) for index in range(num_views))


def image_rays(pose: Tensor, fov_deg: float, size: int) -> Rays:
    """Return the rays through all pixel centers of a `size` x `size` image, row by row.

    Args:
        pose: `(3, 4)` camera-to-world matrix.
        fov_deg: Field of view in degrees.
        size: Height and width in pixels.

    Returns:
        `size * size` rays on the device of `pose`.
    """
    centers = (torch.arange(size, device=pose.device, dtype=pose.dtype) + 0.5 - size / 2) / focal_length(fov_deg, size)
    v, u = torch.meshgrid(centers, centers, indexing="ij")
    directions = torch.stack([u, v, torch.ones_like(u)], -1).reshape(-1, 3) @ pose[:, :3].T
    directions = torch.nn.functional.normalize(directions, dim=-1)
    return Rays(pose[:, 3].expand_as(directions).contiguous(), directions)


def pixel_rays(poses: Tensor, focal: Tensor, pixels: Tensor, size: int) -> Rays:
    """Return rays through pixel centers, each with its own camera.

    Args:
        poses: `(n, 3, 4)` camera-to-world matrices.
        focal: `(n,)` focal lengths in pixels.
        pixels: `(n, 2)` row and column of each ray.
        size: Height and width of the images in pixels.
    """
    v, u = ((pixels + 0.5 - size / 2) / focal[:, None]).unbind(-1)
    directions = (poses[:, :, :3] @ torch.stack([u, v, torch.ones_like(u)], -1)[..., None])[..., 0]
    return Rays(poses[:, :, 3].contiguous(), torch.nn.functional.normalize(directions, dim=-1))


def focal_length(fov_deg: float, size: int) -> float:
    """Return the focal length in pixels of a `size` x `size` image with a field of view in degrees."""
    return 0.5 * size / torch.tan(torch.deg2rad(torch.tensor(fov_deg, dtype=torch.float32)) / 2).item()


def sample_camera(
    generator: torch.Generator,
    *,
    radius: tuple[float, float],
    fov_deg: tuple[float, float],
    elevation_deg: tuple[float, float],
) -> Camera:
    """Draw a camera.

    The direction is uniform over the band of the sphere between two elevations. The radius and the field of view are
    uniform in their ranges.

    Args:
        generator: Random generator.
        radius: Range of the distance from the origin, world units.
        fov_deg: Range of the field of view, degrees.
        elevation_deg: Range of the elevation, degrees.
    """
    a, e, r, f = torch.rand(4, generator=generator, device=generator.device, dtype=torch.float64).tolist()
    low, high = torch.sin(torch.deg2rad(torch.tensor(elevation_deg, dtype=torch.float64))).tolist()
    return Camera(
        azimuth_deg=360.0 * a,
        elevation_deg=torch.rad2deg(torch.asin(torch.tensor(low + (high - low) * e, dtype=torch.float64))).item(),
        radius=radius[0] + (radius[1] - radius[0]) * r,
        fov_deg=fov_deg[0] + (fov_deg[1] - fov_deg[0]) * f,
    )


def front_or_back(azimuth_deg: float) -> float:
    """Map an azimuth in degrees to the front or the back side.

    Azimuths in [0, 180) are mapped linearly to the front [-45, 45), and azimuths in [180, 360) to the back [135, 225).
    A uniformly distributed azimuth stays uniform over both sides.
    """
    azimuth_deg %= 360
    return azimuth_deg / 2 - 45 if azimuth_deg < 180 else azimuth_deg / 2 + 45
