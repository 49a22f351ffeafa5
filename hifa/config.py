"""All settings of a run, checked, with its presets."""

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
    """Settings of a run; the defaults are the paper's (appendix A.1). Where it is silent they are the public code's,
    but for the field's networks and the density that it begins with.

    Raises:
        ValueError: If a value is out of range; the message names it.
    """

    # Optimisation
    num_inference_steps: int = 10_000  # total_iter
    optimizer: str = "adam"  # adam or adan, which the public code has
    grid_lr: float = 1e-2
    network_lr: float = 1e-3
    lr_warmup: float = 0.0  # share of the run over which the learning rates rise from 0
    lr_end: float = 1.0  # share of the learning rates that is left at the end; they fall exponentially
    max_gradient_norm: float = 0.0  # over all parameters; larger gradients are scaled down, with 0 never
    # Guidance
    distillation: str = "hifa"  # hifa, sds (DreamFusion), sjc or vsd (ProlificDreamer)
    prior_size: int = 0  # pixels per side that a latent prior is shown; 0: as it was trained
    guidance_scale: float = 100.0
    view_guidance: float = 1.0  # how much harder the words of the view pull than the rest of the prompt; k
    guidance_rescale: float = 0.0
    perp_neg: float = 0.0  # largest weight of Perp-Neg's negative prompts; above 0 in place of the last two
    denoising_stride: float = 0.25  # r; with eta for "hifa" alone: the others denoise in a single step
    eta: float = 1.0
    t_max: float = 0.98  # share of the prior's timesteps
    t_min: float = 0.02
    annealing: str = "sqrt"  # sqrt, linear, cosine, random or narrowing, which is MVDream's
    # The variational score of "vsd"
    lora_rank: int = 4
    lora_lr: float = 1e-4
    lora_prediction: str = "epsilon"  # or v_prediction: what its error is measured in
    # Losses
    sds_weight: float = 0.05  # w(t), for all distillations but "hifa" a factor of it
    lambda_latent: float = 1.0
    lambda_rgb: float = 0.1
    lambda_zvar: float = 3.0
    lambda_disparity: float = 0.0  # needs a disparity model; the paper's lambda_d = 0.1 is 0.1 w(t) per ray
    disparity_annealing: str = "constant"  # or sqrt: its weight falls as 1 - sqrt(p), with p the share of the run
    lambda_normal: float = 0.0  # needs a model of normals; not in the paper
    normal_period: int = 1  # steps from one look at the normals to the next
    lambda_curvature: float = 0.0  # of the depth of whole views; not in the paper
    curvature_tau: float = 0.5  # bend of the depth above which it counts as an edge, world units per pixel squared
    lambda_monotonic: float = 0.0  # of the public code, not of the paper
    lambda_zentropy: float = 0.0  # likewise
    lambda_distortion: float = 0.0  # of Mip-NeRF 360, with which the paper compares z-variance
    lambda_opacity: float = 0.0
    lambda_entropy: float = 0.0
    regulariser_warmup: float = 0.0  # share of the run over which these but monotonicity and disparity rise from 0
    # Given views (section 5.4, appendix A.5); without any, nothing here has an effect
    image_guidance_end: float = 1.0  # share of the run over which their losses fade out; 1: they stay in force
    lambda_image: float = 100.0
    image_outside: float = 1.0  # weight of the pixels outside of the object; 0 masks them out
    lambda_mask: float = 10.0
    lambda_tv: float = 0.0  # total variation of their colour, over 1/128 of their side whatever their size is
    lambda_image_latent: float = 0.0  # of the prior's latents of a whole view; needs a prior
    lambda_image_normal: float = 0.0  # of the normals that a model sees in the given views
    given_rays: int = 2**12  # random rays over all given views in a step
    given_size: int = 256  # pixels; larger given views are reduced to this
    # Rendering
    render_size: int = 512  # pixels, at the end of the run
    start_render_size: int = 512  # pixels, at the start
    growth_end: float = 0.0  # share of the run at which render_size is reached
    n_coarse: int = 128
    n_fine: int = 64
    kernel: tuple[float, ...] = (1.0, 1.0, 1.0)  # K
    density_grid: int = 0  # cells per axis; 0 runs the coarse pass on the field itself
    grid_period: int = 16  # steps between refreshes of the density grid
    min_opacity: float = 0.01  # rays below this in the density grid see the background only
    rays_per_chunk: int = 2**11  # rays that are held with their graph at a time
    # Cameras
    camera_radius: tuple[float, float] = (3.0, 3.5)
    # Half the height that a camera sees at the origin, world units, in place of camera_radius; (0, 0): not used.
    camera_framing: tuple[float, float] = (0.0, 0.0)
    camera_fov_deg: tuple[float, float] = (10.0, 30.0)
    camera_elevation_deg: tuple[float, float] = (-15.0, 80.0)
    num_views: int = 0  # around the object, that a multi-view prior sees at once; 0: single views, told by words
    num_views_end: float = 1.0  # share of the run after which single views by words follow
    # Share of the run, from its start, that sees front and back alone. "side view" names no direction, so that sides
    # seen early let chance decide which way the object faces, and the words for front and back come too late.
    front_back_end: float = 0.0
    # Background: this share of the steps sees a flat random gray-ish colour, the others the background network
    random_background: float = 0.5
    background_range: tuple[float, float] = (0.0, 1.0)
    # Field
    bound: float = 1.0
    levels: int = 16
    base_resolution: int = 16
    finest_resolution: int = 2048
    log2_entries: int = 19
    hidden_dim: int = 64
    view_bands: int = 4
    blob_density: float = 5.0
    blob_radius: float = 0.3

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # JSON has no tuples
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
            raise ValueError(f"kernel needs an odd number of non-negative values, not all 0; got {self.kernel}.")
        check_resolutions(self.base_resolution, self.finest_resolution)
        # The camera has to stay outside of the object's cube, or rays start inside of it.
        if self.camera_radius[0] <= self.bound:
            raise ValueError(f"camera_radius must exceed bound={self.bound}, got {self.camera_radius}.")
        nearest = self.camera_framing[0] / math.tan(math.radians(self.camera_fov_deg[1] / 2))
        if self.framed and nearest <= self.bound:
            raise ValueError(
                f"camera_framing={self.camera_framing} puts cameras {nearest:.2f} from the origin; they must stay "
                f"outside of bound={self.bound}. Choose a larger framing or a smaller camera_fov_deg."
            )
        if self.num_views and self.distillation == "vsd":
            raise ValueError(
                f"num_views={self.num_views} and distillation='vsd' cannot be combined: give one of them."
            )

    @classmethod
    def paper(cls, **changes: Any) -> "HiFAConfig":
        """Appendix A.1: 512x512, 10,000 steps, guidance 100, r = 0.25, eta = 1.

        Of its weights one is not used: lambda_d = 0.1, of the disparity, of which equation 9 has no term.
        """
        return cls(**changes)

    @classmethod
    def official(cls, **changes: Any) -> "HiFAConfig":
        """Defaults of the public code in place of the paper's where they differ and are not mistakes.

        Its z-variance is summed over rays, here over those of a `render_size` view; its entropies are in bits. The one
        of opacity rises here with z-variance, and is at its full weight from the start there. The weight of the
        disparity regression is 0.1 w(t) 256^2; ours has no scale that may turn negative. The clipping of gradients
        within Adan, to a norm of 5, has nothing left to do after the other one. Not taken over: half of the cameras
        drawn from the whole upper hemisphere, no words for views from overhead, the view direction withheld half of
        the time, what is left of the noise in its estimate, its density at the start (a cone of 5 in 0.2, here a
        Gaussian of 5 in 0.3), its density network without a hidden layer and its smooth interpolation in the grid's
        cells. Its model is Realistic Vision 5.1; for DeepFloyd IF it distils by plain SDS: `distillation="sds"`.
        """
        rays = changes.get("render_size", cls.render_size) ** 2
        settings: dict[str, Any] = dict(
            optimizer="adan", grid_lr=5e-2, network_lr=5e-3, lr_warmup=0.05, max_gradient_norm=1.0,
            perp_neg=2.0, t_min=0.3, lambda_zvar=3.0 * rays, lambda_monotonic=1.0, lambda_zentropy=1e-2,
            lambda_entropy=1e-4 / math.log(2), regulariser_warmup=0.5,
            lambda_disparity=0.1 * cls.sds_weight * 256**2, disparity_annealing="sqrt",
        )  # fmt: skip
        return cls(**(settings | changes))

    @classmethod
    def preview(cls, **changes: Any) -> "HiFAConfig":
        """Minutes on a GPU with Stable Diffusion: small renders, upsampled for the prior, that grow during the run."""
        settings: dict[str, Any] = dict(
            num_inference_steps=1_500, render_size=192, start_render_size=64, growth_end=0.6,
            n_coarse=64, n_fine=48, density_grid=96, finest_resolution=512, levels=12, log2_entries=17,
            guidance_scale=50.0, denoising_stride=0.5, eta=0.0, network_lr=5e-3, regulariser_warmup=0.5,
        )  # fmt: skip
        return cls(**(settings | changes))

    @classmethod
    def mvdream(cls, **changes: Any) -> "HiFAConfig":
        """Settings of MVDream (Shi et al. 2024) as its public code has them, without soft shading: four views a step,
        guidance 50 with a rescale of 0.5, timesteps from narrowing bounds, the residual in latent space alone, and
        no regularizers.

        Its first half has twice as many views, 512 samples a ray and a background that is drawn from all colors.
        """
        settings: dict[str, Any] = dict(
            num_views=4, guidance_scale=50.0, guidance_rescale=0.5, annealing="narrowing", denoising_stride=1.0,
            eta=0.0, sds_weight=1.0, lambda_rgb=0.0, lambda_zvar=0.0, lambda_opacity=0.0, lambda_entropy=0.0,
            render_size=256, start_render_size=64, growth_end=0.5, n_coarse=64, n_fine=64, density_grid=96,
            camera_framing=(0.8, 1.0), camera_fov_deg=(15.0, 60.0), camera_elevation_deg=(0.0, 30.0),
            finest_resolution=4096, log2_entries=19, blob_density=10.0, blob_radius=0.5, rays_per_chunk=2**14,
        )  # fmt: skip
        return cls(**(settings | changes))

    @classmethod
    def multiview_preview(cls, **changes: Any) -> "HiFAConfig":
        """`preview` with a multi-view prior: HiFA's annealing, losses and several denoising steps on four views a step
        of MVDream's cameras."""
        settings: dict[str, Any] = dict(
            num_views=4, guidance_rescale=0.5, camera_framing=(0.8, 1.0), camera_fov_deg=(15.0, 60.0),
            camera_elevation_deg=(0.0, 30.0), rays_per_chunk=2**14,
        )  # fmt: skip
        return cls.preview(**(settings | changes))

    @classmethod
    def fast(cls, **changes: Any) -> "HiFAConfig":
        """The embedded default: 64x64 on a CPU, about a minute on two cores.

        The grid learns 20 times as fast as the paper's: in so few steps a slower one leaves haze and missing parts. A
        strong density blob keeps the surroundings empty at first; with a weaker one some runs filled the whole space,
        which no loss clears away again.
        Low guidance: the Toybox prior was trained on few pictures, and more oversaturates and roughens. The finest
        cells are as large as a pixel; smaller ones would only hold noise. Backgrounds reach a little beyond those of
        the training, so that gray parts cannot hide in them. Which way an object faces is decided within the first
        sixth of the run, by the words for front and back: they get twice the weight, and no side is seen until then.
        Normals of the estimates shape the surface, and a little of the curvature term smooths what they leave (weights
        chosen by `benchmarks.geometry --tuning`). Estimates are made in one step: for the same evaluations more steps
        of optimisation did no worse than several denoising steps in each, and perhaps better (benchmarks/RESULTS.md).
        """
        settings: dict[str, Any] = dict(
            num_inference_steps=480, grid_lr=0.2, network_lr=1e-2, front_back_end=0.15,
            guidance_scale=4.0, view_guidance=2.0, guidance_rescale=0.0, denoising_stride=1.0, eta=0.0, t_min=0.2,
            lambda_rgb=0.4, sds_weight=2e-3, regulariser_warmup=0.4, render_size=64, start_render_size=32,
            growth_end=0.6, n_coarse=48, n_fine=16, density_grid=48, grid_period=16, rays_per_chunk=2**13,
            camera_radius=(2.4, 2.6), camera_fov_deg=(40.0, 40.0), camera_elevation_deg=(-10.0, 75.0),
            random_background=1.0, background_range=(0.2, 0.7), lambda_entropy=0.5, lambda_opacity=0.045,
            lambda_normal=2.0, lambda_curvature=0.15,
            levels=8, base_resolution=8, finest_resolution=64, log2_entries=15, hidden_dim=32, view_bands=1,
            blob_density=5.0, blob_radius=0.35,
        )  # fmt: skip
        return cls(**(settings | changes))

    @classmethod
    def reconstruction(cls, **changes: Any) -> "HiFAConfig":
        """Given views alone, on a CPU: a finer field, more samples and a learning rate far above the paper's.

        The finest cells are as large as a pixel of a view of `given_size`. A table that learns fast settles on smooth
        features that the network reads, while one that learns slowly leaves a grain between the given views;
        distillation would not bear it.
        """
        settings: dict[str, Any] = dict(
            num_inference_steps=500, grid_lr=0.3, network_lr=1e-2, lr_end=0.05,
            lambda_zvar=100.0, lambda_entropy=0.0, lambda_opacity=0.0, lambda_normal=0.0, lambda_curvature=0.0,
            blob_density=3.0,
            n_coarse=64, n_fine=32, density_grid=64, grid_period=32, min_opacity=0.001,
            levels=8, base_resolution=16, finest_resolution=max(16, changes.get("given_size", cls.given_size)),
            log2_entries=17, hidden_dim=64,
        )  # fmt: skip
        return cls.fast(**(settings | changes))

    @classmethod
    def hallucinated(cls, **changes: Any) -> "HiFAConfig":
        """`reconstruction` of views that a model made: they disagree in detail, which total variation evens out. True
        views only lose by it."""
        return cls.reconstruction(**({"lambda_tv": 10.0} | changes))

    @classmethod
    def guided(cls, **changes: Any) -> "HiFAConfig":
        """A prompt beside given views: `fast` with views of its size, which weigh as much as the prior does. They tell
        which way the object faces, and azimuth 0, where the picture was taken, need not be its front."""
        settings: dict[str, Any] = dict(given_size=64, given_rays=2**11, view_guidance=1.0, front_back_end=0.0)
        return cls.fast(**(settings | changes))

    @classmethod
    def guided_preview(cls, **changes: Any) -> "HiFAConfig":
        """A prompt beside given views with a prior larger than Toybox: `preview` with cameras that see the object as
        large as the given views do, 2.5 away with a field of view of 49 degrees."""
        settings: dict[str, Any] = dict(
            camera_radius=(2.4, 2.6), camera_fov_deg=(40.0, 50.0), camera_elevation_deg=(-10.0, 75.0)
        )
        return cls.preview(**(settings | changes))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def learning_rate_share(self, step: int) -> float:
        """What a step takes of the learning rates: falling exponentially from 1 to `lr_end`, after a linear rise."""
        share = self.lr_end ** (step / self.num_inference_steps)
        warmup = self.lr_warmup * self.num_inference_steps
        return share * (step + 1) / warmup if step + 1 < warmup else share

    @property
    def framed(self) -> bool:
        """Whether the distance of the cameras follows from their field of view."""
        return self.camera_framing[1] > 0

    def num_views_at(self, step: int) -> int:
        """Views that the prior is told by their cameras at a step; 0 for a single one that it is told by words."""
        return self.num_views if step < self.num_views_end * self.num_inference_steps else 0

    def warmup(self, step: int) -> float:
        """Share of their weight that the regularizers have at a step: rising linearly over `regulariser_warmup`."""
        progress = step / self.num_inference_steps
        return min(1.0, progress / self.regulariser_warmup) if self.regulariser_warmup else 1.0

    def disparity_weight(self, step: int) -> float:
        """Weight of the disparity regression at a step."""
        if self.disparity_annealing == "constant":
            return self.lambda_disparity
        return self.lambda_disparity * (1 - math.sqrt(step / self.num_inference_steps))

    def given_views_weight(self, step: int) -> float:
        """Weight of the losses on given views at a step (appendix A.5): from 1 linearly to 0 at `image_guidance_end`
        of the run and 0 from there on; always 1 where that is the end of the run."""
        if self.image_guidance_end == 1:
            return 1.0
        return max(0.0, 1 - step / (self.image_guidance_end * self.num_inference_steps))

    def render_size_at(self, step: int) -> int:
        """Pixels per side at a step: linear growth in eight stages, so that shapes repeat."""
        if self.growth_end == 0 or self.start_render_size == self.render_size:
            return self.render_size
        share = min(1.0, step / (self.growth_end * self.num_inference_steps))
        share = math.floor(share * 8) / 8
        return round(self.start_render_size + share * (self.render_size - self.start_render_size))


def _check_type(name: str, expected: type, value: Any) -> None:
    """Refuse text for numbers, fractions for counts, and what is not finite."""
    if expected is str:
        return
    several = get_origin(expected) is tuple
    if several and not isinstance(value, tuple):
        raise ValueError(f"{name} must be several numbers in brackets, such as (1.0, 2.0), got {value!r}.")
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
    ("lambda_opacity", 0, 1e6), ("lambda_entropy", 0, 1e6), ("regulariser_warmup", 0, 1),
    ("image_guidance_end", 1e-6, 1), ("lambda_image", 0, 1e6), ("image_outside", 0, 1), ("lambda_mask", 0, 1e6),
    ("lambda_tv", 0, 1e6), ("lambda_image_latent", 0, 1e6), ("lambda_image_normal", 0, 1e6),
    ("given_rays", 1, 2**24), ("given_size", 8, 4096),
    ("num_views", 0, 64), ("num_views_end", 0, 1), ("front_back_end", 0, 1),
    ("render_size", 8, 4096), ("start_render_size", 8, 4096), ("growth_end", 0, 1),
    ("n_coarse", 2, 4096), ("n_fine", 2, 4096), ("density_grid", 0, 512), ("grid_period", 1, 10_000),
    ("min_opacity", 0, 1), ("rays_per_chunk", 1, 2**24), ("random_background", 0, 1),
    *FIELD_RANGES,
)  # fmt: skip
