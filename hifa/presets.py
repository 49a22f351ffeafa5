"""Presets: the settings of the paper, of public codes, and of this project for each kind of prior and input."""

import math
from typing import TYPE_CHECKING, Any, Self


# Settings that a loaded normal model adds to the preset of a published prior. The weight is 400 times the weight for
# Toybox, because the distillation gradient is larger by the same factor: w(t) and the latents are larger. The weight
# was never tuned on a GPU.
PUBLISHED_NORMALS = {"lambda_normal": 800.0, "normal_period": 4}


class Presets:
    """Presets of `HiFAConfig`. Each preset is a class method that accepts changes of its settings."""

    if TYPE_CHECKING:  # settings of `HiFAConfig` that the presets use
        given_size: int
        render_size: int
        sds_weight: float

        def __init__(self, **settings: Any): ...

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        """Return the settings of appendix A.1: 512x512, 10,000 steps, guidance 100, r = 0.25, eta = 1.

        The paper's weight lambda_d = 0.1 of the disparity is not used, because equation 9 has no disparity term.
        """
        return cls(**changes)

    @classmethod
    def official(cls, **changes: Any) -> Self:
        """Return the settings of the public code, except for its mistakes.

        The settings that the public code shares with the paper are unchanged. The weights are converted as follows:

        - The public code sums z-variance over rays. Here `lambda_zvar` is multiplied by the number of rays of a
          `render_size` view.
        - The entropies of the public code are in bits, and here in nats.
        - The weight of the opacity entropy is constant in the public code. Here the weight warms up, as the weight of
          z-variance does.
        - The weight of the disparity regression is 0.1 w(t) 256^2. Unlike in the public code, the regression has no
          scale that can turn negative.
        - The gradient clipping inside of Adan to a norm of 5 is left out, because it has no effect after the clipping
          to `max_gradient_norm`.

        The following parts of the public code are not reproduced:

        - half of the cameras drawn from the whole upper hemisphere
        - no view suffix for overhead views
        - the view direction withheld half of the time
        - the residual noise in the clean estimate
        - the initial density: a cone of height 5 and radius 0.2 (here a Gaussian of height 5 and radius 0.3)
        - a density network without a hidden layer
        - smooth interpolation within the cells of the hash grid

        The model of the public code is Realistic Vision 5.1. With DeepFloyd IF the public code uses plain SDS:
        `distillation="sds"`.
        """
        rays = changes.get("render_size", cls.render_size) ** 2
        settings: dict[str, Any] = dict(
            optimizer="adan", grid_lr=5e-2, network_lr=5e-3, lr_warmup=0.05, max_gradient_norm=1.0,
            perp_neg=2.0, t_min=0.3, lambda_zvar=3.0 * rays, lambda_monotonic=1.0, lambda_zentropy=1e-2,
            lambda_entropy=1e-4 / math.log(2), regularizer_warmup=0.5,
            lambda_disparity=0.1 * cls.sds_weight * 256**2, disparity_annealing="sqrt",
        )  # fmt: skip
        return cls(**(settings | changes))

    @classmethod
    def preview(cls, **changes: Any) -> Self:
        """Return settings for Stable Diffusion on a GPU, for a run that takes minutes.

        Renders are small and grow during the run. The prior gets upsampled renders.
        """
        settings: dict[str, Any] = dict(
            num_inference_steps=1_500, render_size=192, start_render_size=64, growth_end=0.6,
            n_coarse=64, n_fine=48, density_grid=96, max_resolution=512, levels=12, log2_hashmap_size=17,
            guidance_scale=50.0, denoising_stride=0.5, eta=0.0, network_lr=5e-3, regularizer_warmup=0.5,
        )  # fmt: skip
        return cls(**(settings | changes))

    @classmethod
    def mvdream(cls, **changes: Any) -> Self:
        """Return the settings of MVDream's public code (Shi et al. 2024), without soft shading.

        The settings have four views per step, guidance 50 with a rescale of 0.5, timesteps from narrowing bounds, a
        residual in latent space only, and no regularizers.

        The first half of a run is different in the public code: 8 views per step, 512 samples per ray, and backgrounds
        of any color.
        """
        settings: dict[str, Any] = dict(
            num_views=4, guidance_scale=50.0, guidance_rescale=0.5, annealing="narrowing", denoising_stride=1.0,
            eta=0.0, sds_weight=1.0, lambda_rgb=0.0, lambda_zvar=0.0, lambda_opacity=0.0, lambda_entropy=0.0,
            render_size=256, start_render_size=64, growth_end=0.5, n_coarse=64, n_fine=64, density_grid=96,
            camera_framing=(0.8, 1.0), camera_fov_deg=(15.0, 60.0), camera_elevation_deg=(0.0, 30.0),
            max_resolution=4096, log2_hashmap_size=19, blob_density=10.0, blob_radius=0.5, rays_per_chunk=2**14,
        )  # fmt: skip
        return cls(**(settings | changes))

    @classmethod
    def multiview_preview(cls, **changes: Any) -> Self:
        """Return `preview` for a multi-view prior.

        Each step has four views from MVDream's cameras, with HiFA's annealing, losses and multi-step denoising.
        """
        settings: dict[str, Any] = dict(
            num_views=4, guidance_rescale=0.5, camera_framing=(0.8, 1.0), camera_fov_deg=(15.0, 60.0),
            camera_elevation_deg=(0.0, 30.0), rays_per_chunk=2**14,
        )  # fmt: skip
        return cls.preview(**(settings | changes))

    @classmethod
    def fast(cls, **changes: Any) -> Self:
        """Return the default settings of the embedded prior: 64x64 on a CPU, about a minute on two cores.

        Reasons for the values:

        - Learning rate: 20 times the paper's for the hash grid. In so few steps, a lower rate leaves haze and missing
          parts.
        - Density blob: a strong blob keeps the surroundings empty at first. With a weaker blob, some runs filled the
          whole space, and no loss removes this density again.
        - Guidance: low, because the Toybox prior was trained on few pictures. Higher guidance oversaturates the colors
          and roughens the surface.
        - Grid cells: the finest cells are as large as a pixel. Smaller cells would only fit noise.
        - Background: the range of grays is slightly larger than in the training of the prior, so that gray parts of
          the object do not blend into the background.
        - Cameras: in the first third of the run, each step has four views whose cameras are inputs of the prior. These
          steps decide the shape and the direction that the object faces. The single views with a view suffix in the
          rest of the run sharpen details and colors. VSD supports single views only.
        - View suffix: the suffix has twice the weight. In a run without cameras, the first sixth has front and back
          views only, because these suffixes decide which way the object faces.
        - Surface: the normal loss shapes the surface, and a small curvature loss smooths the remaining noise. Both
          weights were selected with `benchmarks.geometry --tuning`.
        - Denoising: one denoising step per estimate. A run with several denoising steps per estimate and the same
          number of UNet evaluations has fewer optimization steps. Its results were no better, and perhaps worse
          (benchmarks/RESULTS.md).
        """
        by_cameras = 0 if changes.get("distillation") == "vsd" else 4
        settings: dict[str, Any] = dict(
            num_inference_steps=360, grid_lr=0.2, network_lr=1e-2,
            num_views=by_cameras, num_views_end=0.3, front_back_end=0.15,
            guidance_scale=4.0, view_guidance=2.0, guidance_rescale=0.0, denoising_stride=1.0, eta=0.0, t_min=0.2,
            lambda_rgb=0.4, sds_weight=2e-3, regularizer_warmup=0.4, render_size=64, start_render_size=32,
            growth_end=0.6, n_coarse=48, n_fine=16, density_grid=48, grid_period=16, rays_per_chunk=2**13,
            camera_radius=(2.4, 2.6), camera_fov_deg=(40.0, 40.0), camera_elevation_deg=(-10.0, 75.0),
            random_background=1.0, background_range=(0.2, 0.7), lambda_entropy=0.5, lambda_opacity=0.045,
            lambda_normal=2.0, lambda_curvature=0.15,
            levels=8, base_resolution=8, max_resolution=64, log2_hashmap_size=15, hidden_dim=32, view_bands=1,
            blob_density=5.0, blob_radius=0.35,
        )  # fmt: skip
        return cls(**(settings | changes))

    @classmethod
    def reconstruction(cls, **changes: Any) -> Self:
        """Return settings for a reconstruction from given views only, on a CPU.

        The field is finer than that of `fast`, and rays have more samples. The finest cells are as large as a pixel of
        a view of `given_size`. The learning rate is far above the paper's. At a high rate, the hash table
        converges to smooth features. At a low rate, grain remains between the given views. Distillation is not stable
        at the high rate. Predicted normals of the given views smooth the surface (`benchmarks.geometry --floor`).
        """
        settings: dict[str, Any] = dict(
            num_inference_steps=500, num_views=0, grid_lr=0.3, network_lr=1e-2, lr_end=0.05,
            lambda_zvar=100.0, lambda_entropy=0.0, lambda_opacity=0.0, lambda_normal=0.0, lambda_curvature=0.0,
            lambda_image_normal=5.0, blob_density=3.0,
            n_coarse=64, n_fine=32, density_grid=64, grid_period=32, min_opacity=0.001,
            levels=8, base_resolution=16, max_resolution=max(16, changes.get("given_size", cls.given_size)),
            log2_hashmap_size=17, hidden_dim=64,
        )  # fmt: skip
        return cls.fast(**(settings | changes))

    @classmethod
    def hallucinated(cls, **changes: Any) -> Self:
        """Return `reconstruction` for hallucinated views.

        Hallucinated views disagree in detail, and total variation smooths out the differences. For real views, total
        variation only lowers the quality.
        """
        return cls.reconstruction(**({"lambda_tv": 10.0} | changes))

    @classmethod
    def guided(cls, **changes: Any) -> Self:
        """Return `fast` for a prompt with given views.

        The given views are as large as the renders of `fast` and weigh as much as the prior. View suffixes have no
        extra weight, because the given views determine the direction that the object faces. Azimuth 0 is the camera of
        the picture, which is not always the front of the object.
        """
        settings: dict[str, Any] = dict(
            num_inference_steps=480,
            num_views=0,
            given_size=64,
            given_rays=2**11,
            view_guidance=1.0,
            front_back_end=0.0,
        )
        return cls.fast(**(settings | changes))

    @classmethod
    def guided_preview(cls, **changes: Any) -> Self:
        """Return `preview` for a prompt with given views and a prior larger than Toybox.

        The cameras show the object at the same size as the given views. The cameras of the given views are 2.5 world
        units away, with a field of view of 49 degrees.
        """
        settings: dict[str, Any] = dict(
            camera_radius=(2.4, 2.6), camera_fov_deg=(40.0, 50.0), camera_elevation_deg=(-10.0, 75.0)
        )
        return cls.preview(**(settings | changes))
