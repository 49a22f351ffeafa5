"""Settings of a run, their validation, and the presets."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, get_origin

from .field.ranges import FIELD_RANGES, check_resolutions
from .schedule import ANNEALINGS


DISTILLATIONS = ("hifa", "sds", "sjc", "vsd")
OPTIMIZERS = ("adam", "adan")
DISPARITY_ANNEALINGS = ("constant", "sqrt")
LORA_PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True, kw_only=True)
class HiFAConfig:
    """Settings of a run.

    The defaults are those of the paper (appendix A.1). Where the paper gives no value, the default is that of the
    public code, except for the networks and the initial density of the field.

    Raises:
        ValueError: If a value is out of range. The message names the setting.
    """

    # Optimization
    num_inference_steps: int = 10_000  # total_iter in equation 5
    optimizer: str = "adam"  # adam, or adan as in the public code
    grid_lr: float = 1e-2
    network_lr: float = 1e-3
    lr_warmup: float = 0.0  # fraction of the run over which the learning rates rise linearly from 0
    lr_end: float = 1.0  # final factor on the learning rates; the decay is exponential
    max_gradient_norm: float = 0.0  # gradient clipping by the norm over all parameters; 0 disables clipping
    # Guidance
    distillation: str = "hifa"  # hifa, sds (DreamFusion), sjc or vsd (ProlificDreamer)
    prior_size: int = 0  # input size of a latent prior, pixels per side; 0: the size that the prior was trained on
    guidance_scale: float = 100.0
    view_guidance: float = 1.0  # weight k of the view suffix; 1 is plain classifier-free guidance
    guidance_rescale: float = 0.0
    perp_neg: float = 0.0  # largest Perp-Neg weight; above 0, view_guidance and guidance_rescale have no effect
    denoising_stride: float = 0.25  # r; r and eta apply to "hifa" only, the other methods denoise in a single step
    eta: float = 1.0
    t_max: float = 0.98  # fraction of the prior's timesteps
    t_min: float = 0.02  # fraction of the prior's timesteps
    annealing: str = "sqrt"  # sqrt, linear, cosine, random, or narrowing as in MVDream
    # Variational score of "vsd"
    lora_rank: int = 4
    lora_lr: float = 1e-4
    lora_prediction: str = "epsilon"  # epsilon or v_prediction: target of the denoising loss
    # Losses
    sds_weight: float = 0.05  # w(t) of "hifa"; for the other methods a factor on w(t)
    lambda_latent: float = 1.0
    lambda_rgb: float = 0.1
    lambda_zvar: float = 3.0
    lambda_disparity: float = 0.0  # needs a disparity model; the paper's lambda_d = 0.1 means 0.1 w(t) per ray
    disparity_annealing: str = "constant"  # constant, or sqrt: factor 1 - sqrt(p) at the fraction p of the run
    lambda_normal: float = 0.0  # needs a normal model; not in the paper
    normal_period: int = 1  # steps between two evaluations of the normal loss
    lambda_curvature: float = 0.0  # curvature of the depth of whole views; not in the paper
    curvature_tau: float = 0.5  # second difference of the depth that counts as an edge, in multiples of the pixel size
    lambda_monotonic: float = 0.0  # from the public code, not in the paper
    lambda_zentropy: float = 0.0  # from the public code, not in the paper
    lambda_distortion: float = 0.0  # of Mip-NeRF 360; the paper compares z-variance with this loss
    lambda_opacity: float = 0.0
    lambda_entropy: float = 0.0
    # Fraction of the run over which the weights of the regularizers and of the normal losses rise from 0. Monotonicity
    # and disparity are at full weight from the start.
    regularizer_warmup: float = 0.0
    # Given views (section 5.4, appendix A.5); no effect in a run without given views
    image_guidance_end: float = 1.0  # fraction of the run over which these losses fade to 0; 1: constant weight
    lambda_image: float = 100.0
    image_outside: float = 1.0  # weight of the pixels outside of the object; 0 masks the background out
    lambda_mask: float = 10.0
    lambda_tv: float = 0.0  # total variation of the color; the weight is for 128x128 views and scales with their size
    lambda_image_latent: float = 0.0  # latents of a whole view; needs a prior
    lambda_image_normal: float = 0.0  # normals predicted from the given views; needs a normal model
    given_rays: int = 2**12  # random rays over all given views in a step
    given_size: int = 256  # pixels per side; larger given views are downscaled to this size
    # Rendering
    render_size: int = 512  # pixels per side at the end of the run
    start_render_size: int = 512  # pixels per side at the start of the run
    growth_end: float = 0.0  # fraction of the run at which render_size is reached
    n_coarse: int = 128
    n_fine: int = 64
    kernel: tuple[float, ...] = (1.0, 1.0, 1.0)  # K
    density_grid: int = 0  # cells per axis; 0 runs the coarse pass on the field itself
    grid_period: int = 16  # steps between refreshes of the density grid
    min_opacity: float = 0.01  # rays with a lower opacity in the density grid return the background only
    rays_per_chunk: int = 2**11  # rays whose autograd graph is in memory at a time
    # Cameras
    camera_radius: tuple[float, float] = (3.0, 3.5)  # world units
    # Half the height of the camera's frustum at the origin, world units. Replaces camera_radius; (0, 0): not used.
    camera_framing: tuple[float, float] = (0.0, 0.0)
    camera_fov_deg: tuple[float, float] = (10.0, 30.0)
    camera_elevation_deg: tuple[float, float] = (-15.0, 80.0)
    num_views: int = 0  # views per step, with cameras as input of a multi-view prior; 0: one view with a view suffix
    num_views_end: float = 1.0  # fraction of the run after which each step has one view with a view suffix
    # Fraction of the run, from the start, with front and back views only. The suffix "side view" does not say which
    # side. With early side views, the object would take a random direction before the suffixes for front and back have
    # an effect.
    front_back_end: float = 0.0
    # Background: this fraction of the steps has a flat, random, nearly gray color. All other steps have the background
    # network.
    random_background: float = 0.5
    background_range: tuple[float, float] = (0.0, 1.0)
    # Field
    bound: float = 1.0
    levels: int = 16
    base_resolution: int = 16
    max_resolution: int = 2048
    log2_hashmap_size: int = 19
    hidden_dim: int = 64
    view_bands: int = 4
    blob_density: float = 5.0
    blob_radius: float = 0.3

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # JSON has no tuples.
                object.__setattr__(self, field.name, value := tuple(value))
            _check_type(field.name, field.type, value)
        for name, low, high in _RANGES:
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be between {low} and {high}, got {getattr(self, name)}.")
        for name, low, high in _PAIRS:
            pair = getattr(self, name)
            if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high:
                raise ValueError(f"{name} must be a pair (a, b) with {low} <= a <= b <= {high}, got {pair}.")
        if self.t_min > self.t_max:
            raise ValueError(f"t_min must not exceed t_max, got t_min={self.t_min} and t_max={self.t_max}.")
        for name, known in _CHOICES:
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if len(self.kernel) % 2 == 0 or min(self.kernel) < 0 or sum(self.kernel) <= 0:
            raise ValueError(f"kernel needs an odd number of non-negative values, not all 0, got {self.kernel}.")
        check_resolutions(self.base_resolution, self.max_resolution)
        # The rays of a camera inside the field's cube could start inside the object.
        if self.camera_radius[0] <= self.bound:
            raise ValueError(f"camera_radius must exceed bound={self.bound}, got {self.camera_radius}.")
        nearest = self.camera_framing[0] / math.tan(math.radians(self.camera_fov_deg[1] / 2))
        if self.framed and nearest <= self.bound:
            raise ValueError(
                f"camera_framing={self.camera_framing} puts cameras {nearest:.2f} from the origin, but the distance "
                f"must exceed bound={self.bound}. Use a larger camera_framing or a smaller camera_fov_deg."
            )
        if self.num_views and self.distillation == "vsd":
            raise ValueError(
                f"num_views={self.num_views} and distillation='vsd' cannot be combined. Set num_views=0 or choose "
                "another distillation."
            )

    @classmethod
    def paper(cls, **changes: Any) -> "HiFAConfig":
        """Return the settings of appendix A.1: 512x512, 10,000 steps, guidance 100, r = 0.25, eta = 1.

        The paper's weight lambda_d = 0.1 of the disparity is not used, because equation 9 has no disparity term.
        """
        return cls(**changes)

    @classmethod
    def official(cls, **changes: Any) -> "HiFAConfig":
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
    def preview(cls, **changes: Any) -> "HiFAConfig":
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
    def mvdream(cls, **changes: Any) -> "HiFAConfig":
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
    def multiview_preview(cls, **changes: Any) -> "HiFAConfig":
        """Return `preview` for a multi-view prior.

        Each step has four views from MVDream's cameras, with HiFA's annealing, losses and multi-step denoising.
        """
        settings: dict[str, Any] = dict(
            num_views=4, guidance_rescale=0.5, camera_framing=(0.8, 1.0), camera_fov_deg=(15.0, 60.0),
            camera_elevation_deg=(0.0, 30.0), rays_per_chunk=2**14,
        )  # fmt: skip
        return cls.preview(**(settings | changes))

    @classmethod
    def fast(cls, **changes: Any) -> "HiFAConfig":
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
        - View suffix: the suffixes for front and back decide which way an object faces within the first sixth of the
          run. Side views are left out until then, and the suffix has twice the weight.
        - Surface: the normal loss shapes the surface, and a small curvature loss smooths the remaining noise. Both
          weights were selected with `benchmarks.geometry --tuning`.
        - Denoising: one denoising step per estimate. For the same number of UNet evaluations, results were no worse,
          and perhaps better, than with fewer optimization steps of several denoising steps each
          (benchmarks/RESULTS.md).
        """
        settings: dict[str, Any] = dict(
            num_inference_steps=480, grid_lr=0.2, network_lr=1e-2, front_back_end=0.15,
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
    def reconstruction(cls, **changes: Any) -> "HiFAConfig":
        """Return settings for a reconstruction from given views only, on a CPU.

        The field is finer than that of `fast`, and rays have more samples. The finest cells are as large as a pixel of
        a view of `given_size`. The learning rate is far above the paper's. At a high rate, the hash table
        converges to smooth features. At a low rate, grain remains between the given views. Distillation is not stable
        at the high rate. Predicted normals of the given views smooth the surface (`benchmarks.geometry --floor`).
        """
        settings: dict[str, Any] = dict(
            num_inference_steps=500, grid_lr=0.3, network_lr=1e-2, lr_end=0.05,
            lambda_zvar=100.0, lambda_entropy=0.0, lambda_opacity=0.0, lambda_normal=0.0, lambda_curvature=0.0,
            lambda_image_normal=5.0, blob_density=3.0,
            n_coarse=64, n_fine=32, density_grid=64, grid_period=32, min_opacity=0.001,
            levels=8, base_resolution=16, max_resolution=max(16, changes.get("given_size", cls.given_size)),
            log2_hashmap_size=17, hidden_dim=64,
        )  # fmt: skip
        return cls.fast(**(settings | changes))

    @classmethod
    def hallucinated(cls, **changes: Any) -> "HiFAConfig":
        """Return `reconstruction` for hallucinated views.

        Hallucinated views disagree in detail, and total variation smooths out the differences. For real views, total
        variation only lowers the quality.
        """
        return cls.reconstruction(**({"lambda_tv": 10.0} | changes))

    @classmethod
    def guided(cls, **changes: Any) -> "HiFAConfig":
        """Return `fast` for a prompt with given views.

        The given views are as large as the renders of `fast` and weigh as much as the prior. View suffixes have no
        extra weight, because the given views determine the direction that the object faces. Azimuth 0 is the camera of
        the picture, which is not always the front of the object.
        """
        settings: dict[str, Any] = dict(given_size=64, given_rays=2**11, view_guidance=1.0, front_back_end=0.0)
        return cls.fast(**(settings | changes))

    @classmethod
    def guided_preview(cls, **changes: Any) -> "HiFAConfig":
        """Return `preview` for a prompt with given views and a prior larger than Toybox.

        The cameras show the object at the same size as the given views. The cameras of the given views are 2.5 world
        units away, with a field of view of 49 degrees.
        """
        settings: dict[str, Any] = dict(
            camera_radius=(2.4, 2.6), camera_fov_deg=(40.0, 50.0), camera_elevation_deg=(-10.0, 75.0)
        )
        return cls.preview(**(settings | changes))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def learning_rate_share(self, step: int) -> float:
        """Return the factor on the learning rates at a step.

        The factor decays exponentially from 1 to `lr_end` over the run. During `lr_warmup`, a linear ramp from 0 to 1
        multiplies the factor.
        """
        share = self.lr_end ** (step / self.num_inference_steps)
        warmup = self.lr_warmup * self.num_inference_steps
        return share * (step + 1) / warmup if step + 1 < warmup else share

    @property
    def framed(self) -> bool:
        """Return whether `camera_framing` and the field of view determine the distance of a camera."""
        return self.camera_framing[1] > 0

    def num_views_at(self, step: int) -> int:
        """Return the number of views at a step that are conditioned on cameras; 0 for one view with a view suffix."""
        return self.num_views if step < self.num_views_end * self.num_inference_steps else 0

    def warmup(self, step: int) -> float:
        """Return the factor on the regularizers at a step: a linear rise from 0 to 1 over `regularizer_warmup`."""
        progress = step / self.num_inference_steps
        return min(1.0, progress / self.regularizer_warmup) if self.regularizer_warmup else 1.0

    def disparity_weight(self, step: int) -> float:
        """Return the weight of the disparity regression at a step."""
        if self.disparity_annealing == "constant":
            return self.lambda_disparity
        return self.lambda_disparity * (1 - math.sqrt(step / self.num_inference_steps))

    def given_views_weight(self, step: int) -> float:
        """Return the weight of the losses on given views at a step (appendix A.5).

        The weight falls linearly from 1 to 0 over the fraction `image_guidance_end` of the run and stays 0 afterward.
        With `image_guidance_end=1` the weight is always 1.
        """
        if self.image_guidance_end == 1:
            return 1.0
        return max(0.0, 1 - step / (self.image_guidance_end * self.num_inference_steps))

    def render_size_at(self, step: int) -> int:
        """Return the size of a render at a step in pixels per side.

        The size grows in eight equal stages, so that tensor shapes repeat.
        """
        if self.growth_end == 0 or self.start_render_size == self.render_size:
            return self.render_size
        share = min(1.0, step / (self.growth_end * self.num_inference_steps))
        share = math.floor(share * 8) / 8
        return round(self.start_render_size + share * (self.render_size - self.start_render_size))


def _check_type(name: str, expected: type, value: Any) -> None:
    """Check that a setting has its type and is finite.

    Raises:
        ValueError: If a number is given as text, a count is not an integer, or a value is NaN or infinite.
    """
    if expected is str:
        return
    several = get_origin(expected) is tuple
    if several and not isinstance(value, tuple):
        raise ValueError(f"{name} must be a tuple of numbers, such as (1.0, 2.0), got {value!r}.")
    numbers = value if several else (value,)
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {value}.")
        if isinstance(number, bool) or not isinstance(number, int if expected is int else int | float):
            kind = "a whole number" if expected is int else "a number"
            raise ValueError(f"{name} must be {kind}, got {value!r}.")


_CHOICES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("annealing", ANNEALINGS),
    ("distillation", DISTILLATIONS),
    ("optimizer", OPTIMIZERS),
    ("disparity_annealing", DISPARITY_ANNEALINGS),
    ("lora_prediction", LORA_PREDICTIONS),
)

_PAIRS: tuple[tuple[str, float, float], ...] = (
    ("camera_radius", 0, 1e6),
    ("camera_framing", 0, 1e6),
    ("camera_fov_deg", 1, 170),
    ("camera_elevation_deg", -90, 90),
    ("background_range", 0, 1),
)

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("num_inference_steps", 1, 1_000_000),
    ("grid_lr", 0, 1), ("network_lr", 0, 1), ("lr_warmup", 0, 1), ("lr_end", 1e-6, 1),
    ("max_gradient_norm", 0, 1e6),
    ("prior_size", 0, 4096),
    ("guidance_scale", 0, 1000), ("view_guidance", 0, 100), ("guidance_rescale", 0, 1), ("perp_neg", 0, 100),
    ("denoising_stride", 0.001, 1), ("eta", 0, 1),
    ("lora_rank", 1, 1024), ("lora_lr", 0, 1),
    ("t_max", 0, 0.999), ("t_min", 0, 0.999),
    ("sds_weight", 0, 1e6), ("lambda_latent", 0, 1e6), ("lambda_rgb", 0, 1e6), ("lambda_zvar", 0, 1e9),
    ("lambda_disparity", 0, 1e6), ("lambda_normal", 0, 1e6), ("normal_period", 1, 10_000),
    ("lambda_curvature", 0, 1e6), ("curvature_tau", 1e-3, 1e3),
    ("lambda_monotonic", 0, 1e6), ("lambda_zentropy", 0, 1e6),
    ("lambda_distortion", 0, 1e6),
    ("lambda_opacity", 0, 1e6), ("lambda_entropy", 0, 1e6), ("regularizer_warmup", 0, 1),
    ("image_guidance_end", 1e-6, 1), ("lambda_image", 0, 1e6), ("image_outside", 0, 1), ("lambda_mask", 0, 1e6),
    ("lambda_tv", 0, 1e6), ("lambda_image_latent", 0, 1e6), ("lambda_image_normal", 0, 1e6),
    ("given_rays", 1, 2**24), ("given_size", 8, 4096),
    ("num_views", 0, 64), ("num_views_end", 0, 1), ("front_back_end", 0, 1),
    ("render_size", 8, 4096), ("start_render_size", 8, 4096), ("growth_end", 0, 1),
    ("n_coarse", 2, 4096), ("n_fine", 2, 4096), ("density_grid", 0, 512), ("grid_period", 1, 10_000),
    ("min_opacity", 0, 1), ("rays_per_chunk", 1, 2**24), ("random_background", 0, 1),
    *FIELD_RANGES,
)  # fmt: skip
