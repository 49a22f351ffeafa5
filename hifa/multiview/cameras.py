"""Fixed cameras of a multi-view model: a ring at constant elevation, in the axes of `hifa.cameras`."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Camera, camera_to_world


@dataclass(frozen=True)
class ViewRing:
    """Cameras at equal steps of azimuth, counterclockwise from the front, that look at the origin.

    The defaults are SyncDreamer's (`meta_info/camera-16.pkl`): a 35 mm lens on a 32 mm sensor. The object lies inside
    [-0.5, 0.5]^3, z up. Tensors are float32 for models of any data type, because half precision would shift pixels.

    Args:
        num_views: Number of cameras.
        elevation_deg: Elevation of all cameras in degrees.
        radius: Distance to the origin in world units.
        focal_length: Focal length in image widths.
    """

    num_views: int = 16
    elevation_deg: float = 30.0
    radius: float = 1.5
    focal_length: float = 35 / 32

    @property
    def fov_deg(self) -> float:
        """Return the field of view in degrees."""
        return math.degrees(2 * math.atan(0.5 / self.focal_length))

    @property
    def azimuths_deg(self) -> list[float]:
        """Return the azimuths of the cameras in degrees."""
        return [360.0 * view / self.num_views for view in range(self.num_views)]

    def cameras(self) -> list[Camera]:
        """Return the ring as `Camera` objects for rendering and reconstruction, with rays through pixel centers."""
        return [Camera(azimuth, self.elevation_deg, self.radius, self.fov_deg) for azimuth in self.azimuths_deg]

    def world_to_camera(self) -> Tensor:
        """Return the poses `(num_views, 3, 4)`, OpenCV axes: x right, y down, z forward."""
        return torch.stack([world_to_camera(camera) for camera in self.cameras()])

    def intrinsics(self, size: float) -> Tensor:
        """Return K `(3, 3)` in pixels of an image of `size` x `size`, with the principal point at the center."""
        focal, center = self.focal_length * size, size / 2
        return torch.tensor([[focal, 0.0, center], [0.0, focal, center], [0.0, 0.0, 1.0]])


def world_to_camera(camera: Camera) -> Tensor:
    """Return the pose `(3, 4)` that maps world points to the axes of a camera."""
    pose = camera_to_world(camera)
    rotation = pose[:, :3].T
    return torch.cat([rotation, -rotation @ pose[:, 3:]], dim=1)
