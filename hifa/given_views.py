"""Views of the object that were given or hallucinated: the pictures, their masks and their cameras (section 5.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from scipy.ndimage import binary_fill_holes
from torch import Tensor

from .cameras import Camera, Rays, camera_to_world, focal_length, pixel_rays
from .multiview.cameras import ViewRing


# World units of the ring that the field's bound stands for. SyncDreamer's objects lie in [-0.5, 0.5]^3; what it
# hallucinates reaches a little beyond, and its own reconstruction has a cube of this half side. With it the ring is
# 2.5 away from a field with bound 1, where the distillation cameras are too.
RING_EXTENT = 0.6
WHITE_LEVEL = 0.95  # of an opaque view: a pixel with a channel below this belongs to the object


@dataclass(frozen=True)
class PixelBatch:
    """Rays through pixels of given views and what is there.

    Args:
        rays: In the field's world units.
        colour: `(n, 3)` RGB in [0, 1] on white.
        mask: `(n,)` in [0, 1].
    """

    rays: Rays
    colour: Tensor
    mask: Tensor


@dataclass(frozen=True)
class GivenViews:
    """Square views on white with masks and cameras; 8 bits a channel, so that a saved run is small and exact.

    Args:
        colour: `(views, H, H, 3)` uint8, on white.
        mask: `(views, H, H)` uint8, 255 on the object.
        cameras: One for each view, in the field's world units.
    """

    colour: Tensor
    mask: Tensor
    cameras: tuple[Camera, ...]

    def __post_init__(self):
        count, size = self.mask.shape[:2]
        if self.colour.shape != (count, size, size, 3) or self.mask.shape != (count, size, size):
            raise ValueError(
                f"Views must be square, with a mask each; got {tuple(self.colour.shape)} and {tuple(self.mask.shape)}."
            )
        if len(self.cameras) != count:
            raise ValueError(f"There are {count} views but {len(self.cameras)} cameras; give each view one.")
        empty = [index for index, mask in enumerate(self.mask) if not mask.any()]
        if empty:
            raise ValueError(f"Given view {empty[0]} shows nothing but background; leave it out with its camera.")

    def __len__(self) -> int:
        return len(self.cameras)

    @property
    def size(self) -> int:
        """Height and width of the views, pixels."""
        return self.mask.shape[1]

    def to(self, device: torch.device | str) -> "GivenViews":
        return GivenViews(self.colour.to(device), self.mask.to(device), self.cameras)

    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors, cameras as rows of azimuth, elevation, radius and field of view in float64."""
        rows = [(c.azimuth_deg, c.elevation_deg, c.radius, c.fov_deg) for c in self.cameras]
        return {"colour": self.colour, "mask": self.mask, "cameras": torch.tensor(rows, dtype=torch.float64)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "GivenViews":
        """Back from `tensors`."""
        cameras = tuple(Camera(*row) for row in tensors["cameras"].tolist())
        return cls(tensors["colour"], tensors["mask"], cameras)

    def picture(self, view: int) -> tuple[Tensor, Tensor]:
        """Colour `(H, H, 3)` and mask `(H, H)` of a view in [0, 1]."""
        return self.colour[view].float() / 255, self.mask[view].float() / 255

    def sample(self, count: int, generator: torch.Generator) -> PixelBatch:
        """`count` pixels drawn uniformly over all views.

        Args:
            generator: On the CPU.
        """
        device, size = self.mask.device, self.size
        index = torch.randint(self.mask.numel(), (count,), generator=generator).to(device)
        view, row, column = index // size**2, index // size % size, index % size
        poses = torch.stack([camera_to_world(camera) for camera in self.cameras]).to(device)
        focal = torch.tensor([focal_length(camera.fov_deg, size) for camera in self.cameras], device=device)
        rays = pixel_rays(poses[view], focal[view], torch.stack([row, column], -1), size)
        colour = self.colour.view(-1, 3)[index].float() / 255
        return PixelBatch(rays, colour, self.mask.view(-1)[index].float() / 255)


def ring_cameras(bound: float, ring: ViewRing = ViewRing()) -> tuple[Camera, ...]:
    """The ring in the world of a field: its [-RING_EXTENT, RING_EXTENT]^3 is the field's [-bound, bound]^3."""
    scale = bound / RING_EXTENT
    return tuple(Camera(c.azimuth_deg, c.elevation_deg, c.radius * scale, c.fov_deg) for c in ring.cameras())


def read_views(views: Any, bound: float, max_size: int = 256, cameras: Sequence[Camera] | None = None) -> GivenViews:
    """Given views from what a user has.

    Args:
        views: A sheet of sixteen square views side by side, such as SyncDreamer's of 4096x256; or as many PIL images,
            or an array or tensor `(views, H, W, 3 or 4)` in [0, 1]. Alpha is the mask; without it, views are on white,
            and what is not white is the object.
        bound: Of the field.
        max_size: Larger views are reduced to this, pixels.
        cameras: One for each view, in the field's world units; SyncDreamer's ring without them.

    Raises:
        TypeError: If `views` is none of these.
        ValueError: If the number of views is not that of the cameras, or a view is not square or empty.
    """
    if isinstance(views, GivenViews):
        return views
    cameras = ring_cameras(bound) if cameras is None else tuple(cameras)
    images = _as_images(views, len(cameras))
    if len(images) != len(cameras):
        raise ValueError(f"views must be {len(cameras)}, one for each camera, or their sheet; got {len(images)}.")
    sizes = {image.size for image in images}
    if len(sizes) != 1 or images[0].width != images[0].height:
        raise ValueError(f"views must be square and of one size, got {', '.join(f'{w}x{h}' for w, h in sizes)}.")
    colour, mask = zip(*(_on_white(image, max_size) for image in images), strict=True)
    return GivenViews(torch.stack(colour), torch.stack(mask), cameras)


def _as_images(views: Any, count: int) -> list[PIL.Image.Image]:
    if isinstance(views, PIL.Image.Image):
        if views.width != count * views.height:
            raise ValueError(
                f"A sheet has {count} square views side by side, such as {count * 256}x256 pixels; "
                f"got {views.width}x{views.height}."
            )
        side = views.height
        return [views.crop((i * side, 0, (i + 1) * side, side)) for i in range(count)]
    if isinstance(views, list | tuple) and all(isinstance(view, PIL.Image.Image) for view in views):
        return list(views)
    if isinstance(views, torch.Tensor):
        views = views.detach().float().cpu().numpy()
    if isinstance(views, np.ndarray) and views.ndim == 4 and views.shape[-1] in (3, 4):
        bytes_ = views if views.dtype == np.uint8 else (views.clip(0, 1) * 255).round().astype(np.uint8)
        return [PIL.Image.fromarray(view) for view in bytes_]
    raise TypeError(
        "views must be a sheet (a PIL image), a list of PIL images, or an array (views, H, W, 3 or 4); "
        f"got {type(views).__name__}{list(getattr(views, 'shape', '')) or ''}."
    )


def _on_white(image: PIL.Image.Image, max_size: int) -> tuple[Tensor, Tensor]:
    """Colour on white `(H, H, 3)` and mask `(H, H)`, uint8."""
    rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
    colour, alpha = rgba[..., :3], rgba[..., 3]
    if alpha.min() == 1:  # opaque: on white; a highlight in the middle of the object is no hole
        alpha = binary_fill_holes(colour.min(-1) < WHITE_LEVEL).astype(np.float32)
    else:
        colour = colour * alpha[..., None] + 1 - alpha[..., None]
    # Reduced after compositing, so that the colour of transparent pixels has no part in it.
    layers = torch.from_numpy(np.concatenate([colour, alpha[..., None]], -1)).movedim(-1, 0)[None]
    if image.width > max_size:
        layers = torch.nn.functional.interpolate(layers, (max_size, max_size), mode="area")
    layers = (layers[0].movedim(0, -1) * 255).round().byte()
    return layers[..., :3].contiguous(), layers[..., 3].contiguous()
