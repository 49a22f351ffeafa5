"""Disparity estimation by a dense-prediction model, for the regression of HiFA appendix A.1."""

from typing import cast

import torch
from torch import Tensor
from transformers import DPTForDepthEstimation

from .surface import SurfaceEstimate, SurfacePrior, resized


class DisparityPrior(SurfacePrior):
    """Frozen DPT (Ranftl et al. 2021, "Vision Transformers for Dense Prediction") that predicts disparity.

    The model predicts no normals.

    Args:
        model: A `DPTForDepthEstimation` of transformers, such as Intel's `dpt-large` or `dpt-hybrid-midas`. The model
            must take images in [-1, 1] and predict disparity, where larger is nearer.
    """

    def __init__(self, model: DPTForDepthEstimation):
        self.model = model

    @torch.no_grad()
    def estimate(self, picture: Tensor, size: int, timestep: int = 0) -> SurfaceEstimate:
        """Estimate the disparity in a picture."""
        x = resized(picture, cast(int, self.model.config.image_size))
        predicted = self.model((2 * x - 1).to(self.model.dtype)).predicted_depth.float()
        return SurfaceEstimate(disparity=resized(predicted[:, None], size)[0, 0])
