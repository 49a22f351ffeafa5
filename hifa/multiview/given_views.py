"""Given or hallucinated views of the object: images, masks and cameras (HiFA section 5.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from ..cameras import Camera, Rays, camera_to_world, focal_length, pixel_rays
from ..storage.layout import Layout, Spec
from .cameras import ViewRing
from .foreground import foreground


# The field's bound in the world units of the ring. SyncDreamer's objects are in [-0.5, 0.5]^3. Hallucinated objects
# are slightly larger, and SyncDreamer's own reconstruction uses a cube of this half side. For a field with bound 1,
# the ring then has a radius of 2.5, like the distillation cameras of the guided presets.
RING_EXTENT = 0.6
TOLERANCE = 0.01  # largest distance of a float value from the range [0, 1]


@dataclass(frozen=True)
class PixelBatch:
    """Rays through pixels of given views, with the colors and masks of the pixels.

    Args:
        rays: Rays in the field's world units.
        color: `(n, 3)` RGB in [0, 1] on white.
        mask: `(n,)` in [0, 1].
        index: `(n,)` index of each pixel in the flattened masks of all views.
    """

    rays: Rays
    color: Tensor
    mask: Tensor
    index: Tensor

    def joined(self, other: "PixelBatch") -> "PixelBatch":
        """Concatenate the pixels of two batches."""
        rays = Rays(
            *(torch.cat(pair) for pair in zip(vars(self.rays).values(), vars(other.rays).values(), strict=True))
        )
        pairs = ((self.color, other.color), (self.mask, other.mask), (self.index, other.index))
        return PixelBatch(rays, *(torch.cat(pair) for pair in pairs))


@dataclass(frozen=True)
class GivenViews:
    """Square views on white with masks and cameras.

    Views have 8 bits per channel, so that a saved run is small and restores the exact values.

    Args:
        color: `(views, H, H, 3)` uint8, on white.
        mask: `(views, H, H)` uint8, 255 on the object.
        cameras: One camera for each view, in the field's world units.

    Raises:
        ValueError: If the shapes or the numbers of views, masks and cameras do not match, or if a view is empty.
    """

    color: Tensor
    mask: Tensor
    cameras: tuple[Camera, ...]

    def __post_init__(self):
        count, size = self.mask.shape[:2]
        if self.color.shape != (count, size, size, 3) or self.mask.shape != (count, size, size):
            raise ValueError(
                f"Views must be square, each with a mask of the same size, got shapes {tuple(self.color.shape)} and "
                f"{tuple(self.mask.shape)}."
            )
        if len(self.cameras) != count:
            raise ValueError(f"There are {count} views but {len(self.cameras)} cameras. Pass one camera per view.")
        empty = [index for index, mask in enumerate(self.mask) if not mask.any()]
        if empty:
            raise ValueError(f"Given view {empty[0]} shows only background. Remove the view and its camera.")

    def __len__(self) -> int:
        return len(self.cameras)

    @property
    def size(self) -> int:
        """Return the height and width of the views, pixels."""
        return self.mask.shape[1]

    def to(self, device: torch.device | str) -> "GivenViews":
        """Return the views on a device."""
        return GivenViews(self.color.to(device), self.mask.to(device), self.cameras)

    def tensors(self) -> dict[str, Tensor]:
        """Convert to tensors. The cameras become rows of azimuth, elevation, radius and field of view in float64."""
        rows = [(c.azimuth_deg, c.elevation_deg, c.radius, c.fov_deg) for c in self.cameras]
        return {"color": self.color, "mask": self.mask, "cameras": torch.tensor(rows, dtype=torch.float64)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "GivenViews":
        """Convert the result of `tensors` back to views."""
        cameras = tuple(Camera(*row) for row in tensors["cameras"].tolist())
        return cls(tensors["color"], tensors["mask"], cameras)

    @staticmethod
    def layout() -> Layout:
        """Return the layout of `tensors`.

        The layout does not fix the numbers of views and pixels. The constructor checks that these numbers match.
        """
        return {
            "color": Spec((None, None, None, 3), torch.uint8),
            "mask": Spec((None, None, None), torch.uint8),
            "cameras": Spec((None, 4), torch.float64),
        }

    def picture(self, view: int) -> tuple[Tensor, Tensor]:
        """Return the color `(H, H, 3)` and the mask `(H, H)` of a view in [0, 1]."""
        return self.color[view].float() / 255, self.mask[view].float() / 255

    def sheet(self) -> PIL.Image.Image:
        """Return an image of all views side by side on white, a valid input of `read_views`."""
        return PIL.Image.fromarray(np.concatenate(list(self.color.cpu().numpy()), 1))

    def sample(self, count: int, generator: torch.Generator) -> PixelBatch:
        """Draw `count` pixels uniformly over all views.

        Args:
            count: Number of pixels.
            generator: Random generator on the CPU.
        """
        return self._pixels(torch.randint(self.mask.numel(), (count,), generator=generator))

    def sample_pairs(self, count: int, generator: torch.Generator) -> PixelBatch:
        """Draw `count` pixels uniformly over all views, each with one random neighbor, to the right or below.

        Args:
            count: Number of pairs.
            generator: Random generator on the CPU.

        Returns:
            `2 count` pixels: first all drawn pixels, then their neighbors.
        """
        index = torch.randint(self.mask.numel(), (count,), generator=generator)
        below, size = torch.rand(count, generator=generator) < 0.5, self.size
        stride, place = torch.where(below, size, 1), torch.where(below, index // size % size, index % size)
        # In the last row or column, the neighbor is the previous row or column.
        return self._pixels(torch.cat([index, index + torch.where(place < size - 1, stride, -stride)]))

    def sample_corners(self, count: int, stride: int, generator: torch.Generator) -> PixelBatch:
        """Draw `count` pixels uniformly over all views, each with the pixels `stride` to the right and `stride` below.

        The last `stride` rows and columns are left out.

        Args:
            count: Number of corners.
            stride: Distance in pixels.
            generator: Random generator on the CPU.

        Returns:
            `3 count` pixels: first all drawn pixels, then the pixels to the right, then the pixels below.
        """
        size, inner = self.size, self.size - stride
        place = torch.randint(len(self) * inner**2, (count,), generator=generator)
        index = place // inner**2 * size**2 + place // inner % inner * size + place % inner
        return self._pixels(torch.cat([index, index + stride, index + stride * size]))

    @cached_property
    def _lenses(self) -> tuple[Tensor, Tensor]:
        """Return the poses `(views, 3, 4)` and focal lengths `(views,)`, cached because every step needs them."""
        poses = torch.stack([camera_to_world(camera) for camera in self.cameras])
        focal = torch.tensor([focal_length(camera.fov_deg, self.size) for camera in self.cameras])
        return poses.to(self.mask.device), focal.to(self.mask.device)

    def _pixels(self, index: Tensor) -> PixelBatch:
        """Return the pixels at indices `(n,)` of the flattened masks."""
        size, index, (poses, focal) = self.size, index.to(self.mask.device), self._lenses
        view, row, column = index // size**2, index // size % size, index % size
        rays = pixel_rays(poses[view], focal[view], torch.stack([row, column], -1), size)
        color = self.color.view(-1, 3)[index].float() / 255
        return PixelBatch(rays, color, self.mask.view(-1)[index].float() / 255, index)


def ring_cameras(bound: float, ring: ViewRing | None = None, half_extent: float = 0.5) -> tuple[Camera, ...]:
    """Return the cameras of a ring in the world units of a field.

    The cube [-RING_EXTENT, RING_EXTENT]^3 of the ring is scaled to the field's cube [-bound, bound]^3.

    Args:
        bound: Bound of the field.
        ring: Ring of cameras; by default SyncDreamer's.
        half_extent: Half side of the cube that contains the objects of the ring. `RING_EXTENT` is defined for 0.5,
            and is scaled for other values.
    """
    scale, ring = bound / (RING_EXTENT / 0.5 * half_extent), ring or ViewRing()
    return tuple(Camera(c.azimuth_deg, c.elevation_deg, c.radius * scale, c.fov_deg) for c in ring.cameras())


def read_views(views: Any, bound: float, max_size: int = 256, cameras: Sequence[Camera] | None = None) -> GivenViews:
    """Convert images of an object from the user to given views.

    Args:
        views: A sheet of sixteen square views side by side, such as SyncDreamer's with 4096x256 pixels; a list of PIL
            images; or an array or tensor `(views, H, W, 3 or 4)` of floats in [0, 1] or integers in [0, 255]. The
            alpha channel is the mask. Views without an alpha channel must have a white background. The mask is then
            computed from the colors, see `multiview.foreground`.
        bound: Bound of the field.
        max_size: Larger views are downscaled to this size, pixels per side.
        cameras: One camera for each view, in the field's world units. Defaults to SyncDreamer's ring.

    Raises:
        TypeError: If `views` is of another type.
        ValueError: If the numbers of views and cameras differ, a view is not square or is empty, or a value is out of
            range.
    """
    if isinstance(views, GivenViews):
        return views
    cameras = ring_cameras(bound) if cameras is None else tuple(cameras)
    images = _as_images(views, len(cameras))
    if len(images) != len(cameras):
        raise ValueError(
            f"views must be {len(cameras)}, one for each camera, or a sheet of all views, got {len(images)}."
        )
    sizes = {image.size for image in images}
    if len(sizes) != 1 or images[0].width != images[0].height:
        raise ValueError(
            f"views must be square and all of the same size, got {', '.join(f'{w}x{h}' for w, h in sizes)}."
        )
    color, mask = zip(*(_on_white(image, max_size) for image in images), strict=True)
    return GivenViews(torch.stack(color), torch.stack(mask), cameras)


def _as_images(views: Any, count: int) -> list[PIL.Image.Image]:
    if isinstance(views, PIL.Image.Image):
        if views.width != count * views.height:
            raise ValueError(
                f"A sheet must have {count} square views side by side, such as {count * 256}x256 pixels, "
                f"got {views.width}x{views.height}."
            )
        side = views.height
        return [views.crop((i * side, 0, (i + 1) * side, side)) for i in range(count)]
    if isinstance(views, list | tuple) and all(isinstance(view, PIL.Image.Image) for view in views):
        return list(views)
    if isinstance(views, torch.Tensor):
        views = views.detach().cpu()
        views = (views.float() if views.is_floating_point() else views).numpy()
    if isinstance(views, np.ndarray) and views.ndim == 4 and views.shape[-1] in (3, 4):
        return [PIL.Image.fromarray(view) for view in _eight_bits(views)]
    raise TypeError(
        "views must be a sheet (a PIL image), a list of PIL images, or an array (views, H, W, 3 or 4), "
        f"got {type(views).__name__}{list(getattr(views, 'shape', '')) or ''}."
    )


def _eight_bits(views: np.ndarray) -> np.ndarray:
    """Convert an array to uint8: integers in [0, 255], or floats in [0, 1] with a tolerance for renderers."""
    whole = np.issubdtype(views.dtype, np.integer)
    if not whole and not np.issubdtype(views.dtype, np.floating):
        raise TypeError(
            f"An array of views must have floats in [0, 1] or whole numbers in [0, 255], got {views.dtype}."
        )
    low, high = views.min(initial=0), views.max(initial=0)  # NaN if a value is NaN.
    if not (0 <= low and high <= 255 if whole else -TOLERANCE <= low and high <= 1 + TOLERANCE):
        kind = "whole numbers in [0, 255]" if whole else "in [0, 1]"
        raise ValueError(f"views of {views.dtype} must be {kind}, got values from {low:g} to {high:g}.")
    return views.astype(np.uint8) if whole else (views.clip(0, 1) * 255).round().astype(np.uint8)


def _on_white(image: PIL.Image.Image, max_size: int) -> tuple[Tensor, Tensor]:
    """Return the color on white `(H, H, 3)` and the mask `(H, H)` of an image, uint8."""
    rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
    color, alpha = rgba[..., :3], rgba[..., 3]
    if alpha.min() == 1:
        alpha = foreground(color).astype(np.float32)
    else:
        color = color * alpha[..., None] + 1 - alpha[..., None]
    # Downscaled after compositing, so that the color of transparent pixels has no effect.
    layers = torch.from_numpy(np.concatenate([color, alpha[..., None]], -1)).movedim(-1, 0)[None]
    if image.width > max_size:
        layers = torch.nn.functional.interpolate(layers, (max_size, max_size), mode="area")
    layers = (layers[0].movedim(0, -1) * 255).round().byte()
    return layers[..., :3].contiguous(), layers[..., 3].contiguous()
