"""Surface normals of an image from a published diffusion model (Ke et al. 2025, "Marigold")."""

# diffusers declares neither the attributes of `config` nor the type of the output.
# pyright: reportAttributeAccessIssue=false

from pathlib import Path
from typing import Any

import torch
from diffusers import MarigoldNormalsPipeline
from torch import Tensor
from torch.nn import functional as F

from .surface import SurfaceEstimate, SurfacePrior, resized


DENOISING_STEPS = 1  # the published weights were fine-tuned for a single step
SEED = 0  # seed of the initial latent, so that the same picture always gets the same normals


class MarigoldNormalPrior(SurfacePrior):
    """Marigold normals model, such as `prs-eth/marigold-normals-v1-1`. The model predicts no disparity.

    Marigold's camera axes are x right, y up and z toward the observer. Estimates are converted to the camera axes of
    this package: x right, y down and z forward.

    Args:
        pipeline: Marigold pipeline in float32. The pipeline resizes pictures to the resolution in its configuration.
    """

    def __init__(self, pipeline: MarigoldNormalsPipeline):
        self.pipeline = pipeline
        self.pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **kwargs: Any) -> "MarigoldNormalPrior":
        """Load the pipeline from a Hub ID or a folder.

        Raises:
            ValueError: If the model is not a Marigold normals model.
            OSError: If the model does not exist.
        """
        refusal = f"{str(name_or_folder)!r} is not a Marigold normals model, such as prs-eth/marigold-normals-v1-1"
        try:
            pipeline = MarigoldNormalsPipeline.from_pretrained(str(name_or_folder), **kwargs)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{refusal}: {error}") from error
        if pipeline.config.prediction_type != "normals":
            raise ValueError(f"{refusal}: its prediction_type is {pipeline.config.prediction_type!r}.")
        return cls(pipeline)

    @torch.no_grad()
    def estimate(self, picture: Tensor, size: int, timestep: int = 0) -> SurfaceEstimate:
        """Estimate the normals in a picture. Their confidence is 1 everywhere."""
        if self.pipeline.device != picture.device:
            self.pipeline.to(picture.device)
        generator = torch.Generator(picture.device).manual_seed(SEED)
        output = self.pipeline(
            picture.to(self.pipeline.dtype),
            num_inference_steps=DENOISING_STEPS,
            output_type="pt",
            generator=generator,
        )
        axes = torch.tensor([1.0, -1.0, -1.0], device=picture.device)[:, None, None]
        normals = resized(output.prediction.float() * axes, size)[0].movedim(0, -1)
        # Marigold is trained on whole scenes and predicts a normal for every pixel, but no confidence.
        return SurfaceEstimate(F.normalize(normals, dim=-1), normals.new_ones(size, size))
