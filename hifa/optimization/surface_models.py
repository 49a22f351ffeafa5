"""Models of surfaces that a pipeline has loaded, and the selection of the models that a run needs."""

from pathlib import Path
from typing import Any

from transformers import DPTForDepthEstimation

from ..config import HiFAConfig
from ..multiview.given_views import GivenViews
from ..priors.disparity import DisparityPrior
from ..priors.normals import MarigoldNormalPrior
from ..priors.surface import EmbeddedSurfacePrior, SurfacePrior, load_embedded
from .surface_guidance import SurfaceModels, ViewNormals


class LoadedSurfaceModels:
    """Models of disparity and normals.

    The embedded prior has a single model for both, which is loaded on first use. A published normal model replaces the
    embedded model.
    """

    def __init__(self):
        self.published: SurfacePrior | None = None
        self._embedded: EmbeddedSurfacePrior | None = None

    def load_published(self, name_or_folder: str | Path, **kwargs: Any) -> None:
        """Load a `MarigoldNormalsPipeline`, see `HiFAPipeline.load_normal_model`."""
        self.published = MarigoldNormalPrior.from_pretrained(name_or_folder, **kwargs)

    def for_run(
        self,
        config: HiFAConfig,
        views: GivenViews | None,
        disparity_estimator: DPTForDepthEstimation | None,
        embedded: bool,
    ) -> SurfaceModels:
        """Return the models for the surface losses of a run.

        If the settings have `lambda_image_normal`, the call also predicts the normals of the given views.

        Args:
            config: Settings of the run.
            views: Given views of the run, or `None`.
            disparity_estimator: Published disparity model, or `None`.
            embedded: Whether the prior is the embedded prior.

        Raises:
            ValueError: If the settings need a model that is not loaded.
        """
        needed = [name for name in ("lambda_normal", "lambda_image_normal") if getattr(config, name)]
        normals = self._normal_prior(needed[0], embedded) if needed else None
        return SurfaceModels(
            disparity=self._disparity_prior(disparity_estimator, embedded) if config.lambda_disparity else None,
            normals=normals,
            views=ViewNormals.read(views, normals) if views and normals and config.lambda_image_normal else None,
        )

    def _disparity_prior(self, estimator: DPTForDepthEstimation | None, embedded: bool) -> SurfacePrior:
        if estimator is not None:
            return DisparityPrior(estimator)
        if not embedded:
            raise ValueError(
                "lambda_disparity needs a disparity_estimator. Pass a model to HiFAPipeline.from_pretrained, such as "
                "transformers' DPTForDepthEstimation.from_pretrained('Intel/dpt-hybrid-midas'), or set "
                "lambda_disparity=0."
            )
        return self._embedded_model()

    def _normal_prior(self, setting: str, embedded: bool) -> SurfacePrior:
        if self.published is not None:
            return self.published
        if not embedded:
            raise ValueError(
                f"{setting} needs a normal model. Use --normal-model prs-eth/marigold-normals-v1-1, call "
                f"pipe.load_normal_model('prs-eth/marigold-normals-v1-1') in Python, or set {setting}=0."
            )
        return self._embedded_model()

    def _embedded_model(self) -> EmbeddedSurfacePrior:
        if self._embedded is None:
            self._embedded = load_embedded()
        return self._embedded
