"""Losses on rendered surfaces: agreement with predicted normals and disparity, and smoothness."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Camera, Rays, camera_to_world
from ..losses import curvature_loss, disparity_loss, normal_loss
from ..multiview.given_views import GivenViews, PixelBatch
from ..priors.surface import SurfaceEstimate, SurfacePrior
from ..rendering.normals import depth_normals
from ..rendering.rays import RayOutput
from ..rendering.volume import disparity


MODEL_SIZE = 64  # pixels per side of a model's input image; sets the stride of `ViewNormals`
MAX_STEP = 0.6  # world units; a larger central difference of the depth is an occlusion edge


@dataclass(frozen=True)
class WholeView:
    """A completely rendered view.

    Args:
        camera: Camera of the view.
        rays: Rays of the pixels, row by row.
        rendered: Rendered output of the rays.
        size: Height and width n of the view, pixels.
    """

    camera: Camera
    rays: Rays
    rendered: RayOutput
    size: int

    @property
    def picture(self) -> Tensor:
        """Return the colors of the view `(1, 3, n, n)`, detached."""
        return self.square(self.rendered.color.detach()).movedim(-1, 0)[None]

    def square(self, values: Tensor) -> Tensor:
        """Arrange values of the rays `(n * n, ...)` as an image `(n, n, ...)`."""
        return values.view(self.size, self.size, *values.shape[1:])


def whole_views(cameras: Sequence[Camera], rays: Sequence[Rays], rendered: RayOutput, size: int) -> list[WholeView]:
    """Split the rendered rays of a step into one view for each camera."""
    views, pixels = [], size * size
    for index, (camera, own) in enumerate(zip(cameras, rays, strict=True)):
        part = slice(index * pixels, (index + 1) * pixels)
        views.append(WholeView(camera, own, rendered.map(lambda value, part=part: value[part]), size))
    return views


def disparity_guidance(view: WholeView, estimate: SurfaceEstimate) -> Tensor:
    """Compute `losses.disparity_loss` between the disparity of a view and the disparity predicted from its colors.

    Only the depth of rays with an opacity above 1/2 gets a gradient.
    """
    assert estimate.disparity is not None
    mask = view.rendered.opacity > 0.5
    return disparity_loss(disparity(view.rendered.depth), estimate.disparity.flatten(), mask)


def normal_guidance(view: WholeView, estimate: SurfaceEstimate) -> Tensor:
    """Compute `losses.normal_loss` between a view's depth normals and the normals predicted from the prior's estimate.

    The opacity of the view only selects pixels and gets no gradient, so that this loss does not change the silhouette.
    """
    assert estimate.normals is not None and estimate.confidence is not None
    depth, opacity = view.square(view.rendered.depth), view.square(view.rendered.opacity.detach())
    normals, valid = depth_normals(depth, opacity, view.square(view.rays.directions), MAX_STEP)
    rotation = camera_to_world(view.camera)[:, :3].to(depth.device)
    return normal_loss(normals, estimate.normals @ rotation.T, estimate.confidence * valid)


def curvature(view: WholeView, tau: float) -> Tensor:
    """Compute `losses.curvature_loss` of a view."""
    pixel = 2 * view.camera.radius * torch.tan(torch.deg2rad(torch.tensor(view.camera.fov_deg / 2))).item() / view.size
    return curvature_loss(view.square(view.rendered.depth), view.square(view.rendered.opacity > 0.5), pixel, tau)


@dataclass(frozen=True)
class ViewNormals:
    """Predicted normals of given views.

    Args:
        normals: `(views * H * H, 3)` unit normals in world axes.
        confidence: `(views * H * H,)` in [0, 1].
        stride: Distance in pixels between the rays whose depths are compared: one pixel of the model's input image.
            At a smaller distance, most of a depth difference would be noise.
    """

    normals: Tensor
    confidence: Tensor
    stride: int

    @classmethod
    def read(cls, views: GivenViews, prior: SurfacePrior) -> "ViewNormals":
        """Predict the normals of every view with a normal model."""
        normals, confidence = [], []
        for number, camera in enumerate(views.cameras):
            color, _ = views.picture(number)
            estimate = prior.estimate(color.movedim(-1, 0)[None], views.size)
            assert estimate.normals is not None and estimate.confidence is not None
            rotation = camera_to_world(camera)[:, :3].to(color.device)
            normals.append((estimate.normals @ rotation.T).view(-1, 3))
            confidence.append(estimate.confidence.flatten())
        stride = min(max(1, views.size // MODEL_SIZE), views.size - 1)
        return cls(torch.cat(normals), torch.cat(confidence), stride)

    def loss(self, batch: PixelBatch, rendered: RayOutput) -> Tensor:
        """Compute `losses.normal_loss` at the corners of `GivenViews.sample_corners`.

        A corner consists of a pixel, the pixel `stride` to the right, and the pixel `stride` below.

        Args:
            batch: Pixels of the corners.
            rendered: Rendered output of the rays of `batch`.
        """
        (here, right, below), (first, second, third) = (
            values.chunk(3) for values in (batch.rays.directions * rendered.depth[:, None], rendered.opacity.detach())
        )
        edges = torch.linalg.cross(below - here, right - here)
        normals = torch.nn.functional.normalize(edges, dim=-1)
        depths = rendered.depth.detach().chunk(3)
        smooth = ((depths[1] - depths[0]).abs() < MAX_STEP / 2) & ((depths[2] - depths[0]).abs() < MAX_STEP / 2)
        opaque = (first > 0.5) & (second > 0.5) & (third > 0.5)
        index = batch.index.chunk(3)[0]
        return normal_loss(normals, self.normals[index], self.confidence[index] * (opaque & smooth))


@dataclass(frozen=True)
class SurfaceModels:
    """Models for the surface losses of a run; `None` where the settings need no model.

    Args:
        disparity: Disparity model for `lambda_disparity`.
        normals: Normal model for `lambda_normal`.
        views: Predicted normals of the given views for `lambda_image_normal`.
    """

    disparity: SurfacePrior | None = None
    normals: SurfacePrior | None = None
    views: ViewNormals | None = None
