"""Scores for a sheet of views: how well the views agree with one solid object. No ground truth is needed.

    score = silhouette x color, each in [0, 1]

Silhouette: The visual hull is the largest solid that agrees with all views. The hull at a point x is min_v mask_v(x),
where each mask is sampled at the projection of x into the view. The outline of the hull in a view never extends beyond
the mask. If a part is missing in one view, the hull loses the part, and its outline is too small in the other views.
`silhouette` is the mean over the views of the intersection over union of outline and mask.

Color: The hull gives each foreground pixel a depth. The surface point at that depth is projected into the two
neighboring views. The point is visible in a view if the depth of the hull in the view equals the depth of the point.
The colors of a visible point should be equal. With the mean absolute difference d of these colors, `color` is
exp(-d / 0.1): a difference of a tenth of the full range divides the score by e.

The visual hull fills concavities, so that even perfect views score below 1. Compare only scores of the same input.
Measured on SyncDreamer's chicken:

    true renders                                   0.81
    published sheet                                0.71
    published sheet, one view mirrored             0.69
    published sheet, one view in wrong colors      0.62
    input image, sixteen times                     0.53
    views in reversed order                        0.46
    views shuffled                                 0.39
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..cameras import Camera
from .cameras import ViewRing, world_to_camera
from .foreground import foreground
from .projection import frustum_points, project, sample_volumes, volume_points


COLOR_SCALE = 0.1  # mean difference that divides the score by e
HULL_SIZE, IMAGE_SIZE, DEPTH_PLANES = 64, 64, 96
SAME_DEPTH = 0.04  # world units, between two and three cells of the hull


@dataclass(frozen=True)
class Consistency:
    """Agreement of the views of a sheet; all values are in [0, 1].

    Args:
        score: silhouette x color.
        silhouette, color: Means over the views.
        views: silhouette x color of each view, to locate errors in a sheet.
    """

    score: float
    silhouette: float
    color: float
    views: tuple[float, ...]


@dataclass(frozen=True)
class Hull:
    """Visual hull of a sheet.

    Args:
        occupancy: `(1, 1, G, G, G)` in [0, 1], axes z, y, x, over [-half_extent, half_extent]^3.
        half_extent: World units.
        ring: Cameras of the sheet.
        colors: `(V, 3, S, S)`, views in [0, 1].
        masks: `(V, S, S)` in [0, 1].
    """

    occupancy: Tensor
    half_extent: float
    ring: ViewRing
    colors: Tensor
    masks: Tensor


def foregrounds(images: Tensor) -> Tensor:
    """Return masks `(V, H, W)` in {0, 1} of the object in `(V, H, W, 3)`, see `foreground`."""
    masks = [foreground(image) for image in images.float().cpu().numpy()]
    return torch.from_numpy(np.stack(masks).astype(np.float32))


def _lookup(images: Tensor, pixels: Tensor) -> Tensor:
    """Sample `(V, C, S, S)` at pixels `(V, P, 2)` with centers at i + 0.5 -> `(V, C, P)`.

    Outside the image, the value of the nearest edge pixel is used.
    """
    grid = pixels / images.shape[-1] * 2 - 1
    return F.grid_sample(images, grid[:, None], padding_mode="border", align_corners=False)[:, :, 0]


def visual_hull(images: Tensor, ring: ViewRing, half_extent: float = 0.5) -> Hull:
    """Compute the visual hull of a sheet.

    Args:
        images: `(V, H, W, 3)`, views in [0, 1] on white.
        ring: Cameras of the views.
        half_extent: Half side of the volume in world units.
    """
    masks = F.interpolate(foregrounds(images)[:, None], (IMAGE_SIZE, IMAGE_SIZE), mode="area")
    colors = F.interpolate(images.float().cpu().movedim(-1, 1), (IMAGE_SIZE, IMAGE_SIZE), mode="area")
    points = volume_points(HULL_SIZE, half_extent).reshape(-1, 3)
    pixels, _ = project(points, ring.world_to_camera(), ring.intrinsics(IMAGE_SIZE))
    occupancy = _lookup(masks, pixels).amin(0).reshape(1, 1, HULL_SIZE, HULL_SIZE, HULL_SIZE)
    return Hull(occupancy, half_extent, ring, colors, masks[:, 0])


def hull_depth(hull: Hull, poses: Tensor) -> tuple[Tensor, Tensor]:
    """Render the outline and surface of the hull from cameras with the focal length and radius of the ring.

    Args:
        hull: Visual hull.
        poses: `(V, 3, 4)` world-to-camera.

    Returns:
        Outlines `(V, S, S)` in [0, 1], and surface points `(V, S, S, 3)`, which are undefined outside the outline.
    """
    reach = 3**0.5 * hull.half_extent
    depths = torch.linspace(hull.ring.radius - reach, hull.ring.radius + reach, DEPTH_PLANES)
    intrinsics = hull.ring.intrinsics(IMAGE_SIZE)
    intrinsics[:2, 2] -= 0.5  # rays through pixel centers
    outlines, surfaces = [], []
    for pose in poses:  # one camera at a time bounds the memory
        points = frustum_points(pose[None], intrinsics, IMAGE_SIZE, depths)  # (1, D, S, S, 3)
        inside = sample_volumes(hull.occupancy, points, hull.half_extent)[0, 0]
        first = (inside > 0.5).float().argmax(0)
        outlines.append(inside.amax(0))
        surfaces.append(points[0].gather(0, first[None, ..., None].expand(1, -1, -1, 3))[0])
    return torch.stack(outlines), torch.stack(surfaces)


def _overlap(outline: Tensor, mask: Tensor) -> float:
    """Return the intersection over union of two soft masks; 0 if both are empty, since there is no object."""
    union = torch.maximum(outline, mask).sum().item()
    return torch.minimum(outline, mask).sum().item() / union if union > 0 else 0.0


def _color_difference(hull: Hull, surface: Tensor, color: Tensor, seen: Tensor, others: list[int], depth: Tensor):
    """Return the mean absolute color difference between an image and views at the visible surface points.

    Args:
        hull: Visual hull of the views.
        surface: `(S, S, 3)` world points at the pixels of the image.
        color: `(3, S, S)` of the image.
        seen: `(S, S)` bool, pixels to compare.
        others: Indices of the views to compare with.
        depth: `(V, S, S)` of the hull in all views.

    Returns:
        A float, or `None` if no surface point of the image is visible in any of the views.
    """
    points, expected = surface[seen], color[:, seen]
    pixels, distance = project(points, hull.ring.world_to_camera()[others], hull.ring.intrinsics(IMAGE_SIZE))
    found = _lookup(torch.cat([hull.colors[others], depth[others, None]], 1), pixels)  # (n, 4, P)
    visible = (found[:, 3] - distance).abs() < SAME_DEPTH
    difference = (found[:, :3] - expected).abs().mean(1)[visible]
    return difference.mean().item() if len(difference) else None


def _color_score(difference: float | None) -> float:
    return 0.0 if difference is None else float(np.exp(-difference / COLOR_SCALE))


def _depth(surfaces: Tensor, poses: Tensor) -> Tensor:
    """Return the depth along the optical axis `(V, S, S)` of points `(V, S, S, 3)`."""
    return torch.einsum("vhwj,vj->vhw", surfaces, poses[:, 2, :3]) + poses[:, 2, 3, None, None]


def consistency(images: Tensor, ring: ViewRing | None = None, half_extent: float = 0.5) -> Consistency:
    """Score a sheet as described in the module docstring.

    Args:
        images: `(V, H, W, 3)` in [0, 1] on white, in the order of the ring.
        ring: Cameras; by default SyncDreamer's.
        half_extent: The object lies in [-half_extent, half_extent]^3, in world units.

    Raises:
        ValueError: If the number of images is not the number of cameras.
    """
    ring = ring or ViewRing()
    _check_sheet(images, ring)
    hull = visual_hull(images, ring, half_extent)
    poses = ring.world_to_camera()
    outlines, surfaces = hull_depth(hull, poses)
    depth = _depth(surfaces, poses)
    silhouettes = [_overlap(outline, mask) for outline, mask in zip(outlines, hull.masks, strict=True)]
    colors = []
    for view in range(ring.num_views):
        seen = (outlines[view] > 0.5) & (hull.masks[view] > 0.5)
        neighbors = [(view - 1) % ring.num_views, (view + 1) % ring.num_views]
        difference = _color_difference(hull, surfaces[view], hull.colors[view], seen, neighbors, depth)
        colors.append(_color_score(difference))
    silhouette, color = float(np.mean(silhouettes)), float(np.mean(colors))
    views = tuple(s * c for s, c in zip(silhouettes, colors, strict=True))
    return Consistency(silhouette * color, silhouette, color, views)


def input_agreement(
    images: Tensor, image: Tensor, elevation_deg: float, ring: ViewRing | None = None, half_extent: float = 0.5
) -> float:
    """Score how well a sheet agrees with its input image at a given elevation.

    The hull is rendered from the azimuth of view 0 and the given elevation. The outline of the hull, and the colors of
    view 0 and its two neighbors, are compared with the input image as in `consistency`. The render and the input image
    are first scaled to the same bounding box, so that the size of the object in the input image has no effect.

    Args:
        images: `(V, H, W, 3)` in [0, 1], the sheet.
        image: `(H, W, 3)` in [0, 1] on white, the input image.
        elevation_deg: Elevation of the camera of the input image in degrees.
        ring: Cameras; by default SyncDreamer's.
        half_extent: The object lies in [-half_extent, half_extent]^3, in world units.

    Returns:
        Agreement in [0, 1].

    Raises:
        ValueError: If the number of images is not the number of cameras.
    """
    ring = ring or ViewRing()
    _check_sheet(images, ring)
    hull = visual_hull(images, ring, half_extent)
    camera = Camera(0.0, elevation_deg, ring.radius, ring.fov_deg)
    outlines, surfaces = hull_depth(hull, world_to_camera(camera)[None])
    mask = foregrounds(image[None])
    picture = _fitted(torch.cat([mask, image.float().cpu().movedim(-1, 0)]), mask[0], oversampling=4)
    # Without oversampling: the mean of points on both sides of an edge is not on the surface.
    seen = _fitted(torch.cat([outlines, surfaces[0].movedim(-1, 0)]), outlines[0], oversampling=1)
    if picture is None or seen is None:
        return 0.0
    poses = ring.world_to_camera()
    depth = _depth(hull_depth(hull, poses)[1], poses)
    both = (picture[0] > 0.5) & (seen[0] > 0.5)
    others = [0, 1, ring.num_views - 1]
    difference = _color_difference(hull, seen[1:].movedim(0, -1), picture[1:], both, others, depth)
    return _overlap(seen[0], picture[0]) * _color_score(difference)


def _fitted(layers: Tensor, mask: Tensor, oversampling: int) -> Tensor | None:
    """Crop `(C, H, H)` to a square centered on a mask, and scale the crop to IMAGE_SIZE.

    Returns:
        `(C, IMAGE_SIZE, IMAGE_SIZE)`, or `None` for an empty mask.
    """
    rows, columns = torch.nonzero(mask > 0.5, as_tuple=True)
    if not len(rows):
        return None
    low = torch.stack([columns.amin(), rows.amin()]).float()
    high = torch.stack([columns.amax(), rows.amax()]).float() + 1
    side, center, samples = (high - low).max() * 1.1, (low + high) / 2, oversampling * IMAGE_SIZE
    line = (torch.arange(samples) + 0.5) / samples - 0.5
    v, u = torch.meshgrid(line, line, indexing="ij")
    pixels = torch.stack([u, v], -1).reshape(1, -1, 2) * side + center
    return F.avg_pool2d(_lookup(layers[None], pixels).reshape(1, -1, samples, samples), oversampling)[0]


def _check_sheet(images: Tensor, ring: ViewRing) -> None:
    if images.ndim != 4 or images.shape[0] != ring.num_views or images.shape[-1] != 3:
        raise ValueError(f"images must be ({ring.num_views}, H, W, 3), one per camera, got {tuple(images.shape)}.")
