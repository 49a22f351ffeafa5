"""Disparity of an image by a dense-prediction model, for the regression of HiFA's appendix A.1."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DPTForDepthEstimation

from ..losses import disparity_loss
from ..rendering.rays import RayOutput
from ..rendering.volume import disparity
from .prior import to_prior_size


EMBEDDED = Path(__file__).parents[1] / "toybox" / "disparity_weights"


class DisparityPrior:
    """A DPT (Ranftl et al. 2021, "Vision Transformers for Dense Prediction"), frozen.

    Args:
        model: Any of transformers' `DPTForDepthEstimation` that predicts disparity, larger being nearer, from images
            in [-1, 1], as Intel's `dpt-large` and `dpt-hybrid-midas` and the embedded one do.
    """

    def __init__(self, model: DPTForDepthEstimation):
        self.model = model

    @torch.no_grad()
    def estimate(self, colour: Tensor, size: int) -> Tensor:
        """Disparity `(size * size,)` of rays, up to scale and shift, from their colours `(size * size, 3)`."""
        x = to_prior_size(colour, size, self.model.config.image_size)
        predicted = self.model((2 * x - 1).to(self.model.dtype)).predicted_depth.float()
        resized = F.interpolate(predicted[:, None], (size, size), mode="bilinear", align_corners=False, antialias=True)
        return resized.flatten()

    def loss(self, seen: RayOutput, size: int) -> Tensor:
        """`losses.disparity_loss` of a rendered view against what the model sees in its colours; only the depth of
        rays that hit the object gets a gradient."""
        predicted = self.estimate(seen.colour.detach(), size)
        return disparity_loss(disparity(seen.depth), predicted, seen.opacity > 0.5)


def load_embedded() -> DPTForDepthEstimation:
    """The small model trained on Toybox renders."""
    return DPTForDepthEstimation.from_pretrained(EMBEDDED).eval()
