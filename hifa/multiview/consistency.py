"""How well the views of a sheet agree with one solid object, without knowing the object.

    score = silhouette x colour, each in [0, 1]

Silhouette: the visual hull is the largest solid that no view contradicts; at a point x it is min_v mask_v(x), the mask
of every view looked up where the view sees x. Its outline in a view can never reach beyond the mask. Where one view
leaves something out that the others show, the hull loses it, and its outline falls short in those. `silhouette` is the
mean over the views of the intersection over union of outline and mask.

Colour: the hull gives each foreground pixel a depth. The surface point there is looked for in the next views to either
side; where they see it too (their own depth is that of the point), the colours should be equal. With d the mean
absolute difference of those, `colour` is exp(-d / 0.1): a tenth of the full range costs a factor of e.

Hollows are not in a hull, so that even perfect views score below 1. Compare scores of the same input only. Measured
on SyncDreamer's chicken: its true renders 0.81, the published sheet 0.71, that with one view mirrored 0.69 or in wrong
colours 0.62, the input sixteen times 0.53, views in reversed order 0.46, shuffled 0.39.
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


COLOUR_SCALE = 0.1  # mean difference that costs a factor of e
HULL_SIZE, IMAGE_SIZE, DEPTH_PLANES = 64, 64, 96
SAME_DEPTH = 0.04  # world units, between two and three cells of the hull


@dataclass(frozen=True)
class Consistency:
    """Agreement of the views of a sheet; every number in [0, 1].

    Args:
        score: silhouette x colour.
        silhouette, colour: Means over the views.
        views: For each view its own silhouette x colour, which shows where a sheet fails.
    """

    score: float
    silhouette: float
    colour: float
    views: tuple[float, ...]


@dataclass(frozen=True)
class Hull:
    """The visual hull of a sheet.

    Args:
        occupancy: `(1, 1, G, G, G)` in [0, 1], axes z, y, x, over [-half_extent, half_extent]^3.
        half_extent: World units.
        ring: Cameras of the sheet.
        colours: `(V, 3, S, S)` the views in [0, 1].
        masks: `(V, S, S)` in [0, 1].
    """

    occupancy: Tensor
    half_extent: float
    ring: ViewRing
    colours: Tensor
    masks: Tensor


def foregrounds(images: Tensor) -> Tensor:
    """Masks `(V, H, W)` in {0, 1} of the object in `(V, H, W, 3)`, see `foreground`."""
    masks = [foreground(image) for image in images.float().cpu().numpy()]
    return torch.from_numpy(np.stack(masks).astype(np.float32))


def _lookup(images: Tensor, pixels: Tensor) -> Tensor:
    """`(V, C, S, S)` at `(V, P, 2)`, pixel centres at i + 0.5 -> `(V, C, P)`. Beyond the frame the edge goes on."""
    grid = pixels / images.shape[-1] * 2 - 1
    return F.grid_sample(images, grid[:, None], padding_mode="border", align_corners=False)[:, :, 0]


def visual_hull(images: Tensor, ring: ViewRing, half_extent: float = 0.5) -> Hull:
    """The hull of `(V, H, W, 3)` views in [0, 1] on white."""
    masks = F.interpolate(foregrounds(images)[:, None], (IMAGE_SIZE, IMAGE_SIZE), mode="area")
    colours = F.interpolate(images.float().cpu().movedim(-1, 1), (IMAGE_SIZE, IMAGE_SIZE), mode="area")
    points = volume_points(HULL_SIZE, half_extent).reshape(-1, 3)
    pixels, _ = project(points, ring.world_to_camera(), ring.intrinsics(IMAGE_SIZE))
    occupancy = _lookup(masks, pixels).amin(0).reshape(1, 1, HULL_SIZE, HULL_SIZE, HULL_SIZE)
    return Hull(occupancy, half_extent, ring, colours, masks[:, 0])


def hull_depth(hull: Hull, poses: Tensor) -> tuple[Tensor, Tensor]:
    """How the hull looks from some cameras of the ring's lens and radius.

    Args:
        poses: `(V, 3, 4)` world-to-camera.

    Returns:
        Outline `(V, S, S)` in [0, 1] and the surface points `(V, S, S, 3)`, meaningless outside of it.
    """
    reach = 3**0.5 * hull.half_extent
    depths = torch.linspace(hull.ring.radius - reach, hull.ring.radius + reach, DEPTH_PLANES)
    intrinsics = hull.ring.intrinsics(IMAGE_SIZE)
    intrinsics[:2, 2] -= 0.5  # rays through pixel centres
    outlines, surfaces = [], []
    for pose in poses:  # one camera at a time bounds the memory
        points = frustum_points(pose[None], intrinsics, IMAGE_SIZE, depths)  # (1, D, S, S, 3)
        inside = sample_volumes(hull.occupancy, points, hull.half_extent)[0, 0]
        first = (inside > 0.5).float().argmax(0)
        outlines.append(inside.amax(0))
        surfaces.append(points[0].gather(0, first[None, ..., None].expand(1, -1, -1, 3))[0])
    return torch.stack(outlines), torch.stack(surfaces)


def _overlap(outline: Tensor, mask: Tensor) -> float:
    """Intersection over union of two soft masks; 0 for two empty ones, which are no object."""
    union = torch.maximum(outline, mask).sum().item()
    return torch.minimum(outline, mask).sum().item() / union if union > 0 else 0.0


def _colour_difference(hull: Hull, surface: Tensor, colour: Tensor, seen: Tensor, others: list[int], depth: Tensor):
    """Mean absolute difference between a picture and the views, where they see the same surface.

    Args:
        surface: `(S, S, 3)` world points of the picture's pixels.
        colour: `(3, S, S)` of the picture.
        seen: `(S, S)` bool, pixels to compare.
        others: Views to compare with.
        depth: `(V, S, S)` of the hull in all views.

    Returns:
        A float, or None where they share no surface.
    """
    points, expected = surface[seen], colour[:, seen]
    pixels, distance = project(points, hull.ring.world_to_camera()[others], hull.ring.intrinsics(IMAGE_SIZE))
    found = _lookup(torch.cat([hull.colours[others], depth[others, None]], 1), pixels)  # (n, 4, P)
    visible = (found[:, 3] - distance).abs() < SAME_DEPTH
    difference = (found[:, :3] - expected).abs().mean(1)[visible]
    return difference.mean().item() if len(difference) else None


def _colour_score(difference: float | None) -> float:
    return 0.0 if difference is None else float(np.exp(-difference / COLOUR_SCALE))


def _depth(surfaces: Tensor, poses: Tensor) -> Tensor:
    """Depth along the optical axis `(V, S, S)` of points `(V, S, S, 3)`."""
    return torch.einsum("vhwj,vj->vhw", surfaces, poses[:, 2, :3]) + poses[:, 2, 3, None, None]


def consistency(images: Tensor, ring: ViewRing | None = None, half_extent: float = 0.5) -> Consistency:
    """Score a sheet; see the head of this file.

    Args:
        images: `(V, H, W, 3)` in [0, 1] on white, in the order of the ring.
        ring: The cameras; SyncDreamer's without it.
        half_extent: The object lies in [-half_extent, half_extent]^3, world units.

    Raises:
        ValueError: If there is not one image for each camera.
    """
    ring = ring or ViewRing()
    _check_sheet(images, ring)
    hull = visual_hull(images, ring, half_extent)
    poses = ring.world_to_camera()
    outlines, surfaces = hull_depth(hull, poses)
    depth = _depth(surfaces, poses)
    silhouettes = [_overlap(outline, mask) for outline, mask in zip(outlines, hull.masks, strict=True)]
    colours = []
    for view in range(ring.num_views):
        seen = (outlines[view] > 0.5) & (hull.masks[view] > 0.5)
        neighbours = [(view - 1) % ring.num_views, (view + 1) % ring.num_views]
        difference = _colour_difference(hull, surfaces[view], hull.colours[view], seen, neighbours, depth)
        colours.append(_colour_score(difference))
    silhouette, colour = float(np.mean(silhouettes)), float(np.mean(colours))
    views = tuple(s * c for s, c in zip(silhouettes, colours, strict=True))
    return Consistency(silhouette * colour, silhouette, colour, views)


def input_agreement(
    images: Tensor, image: Tensor, elevation_deg: float, ring: ViewRing | None = None, half_extent: float = 0.5
) -> float:
    """How well a sheet explains the picture that it was made from, taken from a given elevation.

    The hull is looked at from the azimuth of view 0 and that elevation. Outline and colours (of views 0 and its
    neighbours) are compared with the picture as in `consistency`, after both are scaled to the same bounding box: how
    large the object is in the picture does not matter.

    Args:
        images: `(V, H, W, 3)` in [0, 1], the sheet.
        image: `(H, W, 3)` in [0, 1] on white, the picture.
        elevation_deg: Of the picture's camera, degrees.

    Returns:
        Agreement in [0, 1].
    """
    ring = ring or ViewRing()
    _check_sheet(images, ring)
    hull = visual_hull(images, ring, half_extent)
    camera = Camera(0.0, elevation_deg, ring.radius, ring.fov_deg)
    outlines, surfaces = hull_depth(hull, world_to_camera(camera)[None])
    mask = foregrounds(image[None])
    picture = _fitted(torch.cat([mask, image.float().cpu().movedim(-1, 0)]), mask[0], oversampling=4)
    # Not smoothed: a mean of points on both sides of an edge lies on no surface.
    seen = _fitted(torch.cat([outlines, surfaces[0].movedim(-1, 0)]), outlines[0], oversampling=1)
    if picture is None or seen is None:
        return 0.0
    poses = ring.world_to_camera()
    depth = _depth(hull_depth(hull, poses)[1], poses)
    both = (picture[0] > 0.5) & (seen[0] > 0.5)
    others = [0, 1, ring.num_views - 1]
    difference = _colour_difference(hull, seen[1:].movedim(0, -1), picture[1:], both, others, depth)
    return _overlap(seen[0], picture[0]) * _colour_score(difference)


def _fitted(layers: Tensor, mask: Tensor, oversampling: int) -> Tensor | None:
    """`(C, H, H)` cut to a centred square around a mask and scaled to IMAGE_SIZE; None for an empty mask."""
    rows, columns = torch.nonzero(mask > 0.5, as_tuple=True)
    if not len(rows):
        return None
    low = torch.stack([columns.amin(), rows.amin()]).float()
    high = torch.stack([columns.amax(), rows.amax()]).float() + 1
    side, centre, samples = (high - low).max() * 1.1, (low + high) / 2, oversampling * IMAGE_SIZE
    line = (torch.arange(samples) + 0.5) / samples - 0.5
    v, u = torch.meshgrid(line, line, indexing="ij")
    pixels = torch.stack([u, v], -1).reshape(1, -1, 2) * side + centre
    return F.avg_pool2d(_lookup(layers[None], pixels).reshape(1, -1, samples, samples), oversampling)[0]


def _check_sheet(images: Tensor, ring: ViewRing) -> None:
    if images.ndim != 4 or images.shape[0] != ring.num_views or images.shape[-1] != 3:
        raise ValueError(f"A sheet is ({ring.num_views}, H, W, 3), one image a camera; got {tuple(images.shape)}.")
