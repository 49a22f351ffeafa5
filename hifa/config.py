"""All settings of a run, checked, with the presets `paper`, `preview`, `fast` and `reconstruction`."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from .schedule import ANNEALINGS


@dataclass(frozen=True, kw_only=True)
class HiFAConfig:
    """Settings of a run; the defaults are the paper's (appendix A.1), and the public code's where it is silent.

    Raises:
        ValueError: If a value is out of range; the message names it.
    """

    # Optimisation
    num_inference_steps: int = 10_000  # total_iter
    grid_lr: float = 1e-2
    network_lr: float = 1e-3
    lr_end: float = 1.0  # share of the learning rates that is left at the end; they fall exponentially
    # Guidance
    guidance_scale: float = 100.0
    guidance_rescale: float = 0.0
    denoising_stride: float = 0.25  # r
    eta: float = 1.0
    t_max: float = 0.98  # share of the prior's timesteps
    t_min: float = 0.02
    annealing: str = "sqrt"  # sqrt, linear, cosine or random
    # Losses
    sds_weight: float = 0.05  # w(t)
    lambda_latent: float = 1.0
    lambda_rgb: float = 0.1
    lambda_zvar: float = 3.0
    lambda_opacity: float = 0.0
    lambda_entropy: float = 0.0
    regulariser_warmup: float = 0.0  # share of the run over which the last three rise from 0
    # Given views (section 5.4, appendix A.5); without any, nothing here has an effect
    image_guidance_end: float = 1.0  # share of the run over which their losses fade out; 1: they stay in force
    lambda_image: float = 100.0
    image_outside: float = 1.0  # weight of the pixels outside of the object; 0 masks them out
    lambda_mask: float = 10.0
    lambda_image_latent: float = 0.0  # of the prior's latents of a whole view; needs a prior
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
    rays_per_chunk: int = 2**12  # rays that are held with their graph at a time
    # Cameras
    camera_radius: tuple[float, float] = (3.0, 3.5)
    camera_fov_deg: tuple[float, float] = (10.0, 30.0)
    camera_elevation_deg: tuple[float, float] = (-15.0, 80.0)
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
        if self.annealing not in ANNEALINGS:
            raise ValueError(f"annealing must be one of {', '.join(ANNEALINGS)}, got {self.annealing!r}.")
        if len(self.kernel) % 2 == 0 or min(self.kernel) < 0 or sum(self.kernel) <= 0:
            raise ValueError(f"kernel needs an odd number of non-negative values, not all 0; got {self.kernel}.")
        # The camera has to stay outside of the object's cube, or rays start inside of it.
        if self.camera_radius[0] <= self.bound:
            raise ValueError(f"camera_radius must exceed bound={self.bound}, got {self.camera_radius}.")

    @classmethod
    def paper(cls, **changes: Any) -> "HiFAConfig":
        """Appendix A.1 to the letter: 512x512, 10,000 steps, guidance 100, r = 0.25, eta = 1."""
        return cls(**changes)

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
    def fast(cls, **changes: Any) -> "HiFAConfig":
        """The embedded default: 64x64 on a CPU, about a minute on two cores.

        Low guidance: the Toybox prior was trained on few pictures, and more oversaturates and roughens. The finest
        cells are as large as a pixel; smaller ones would only hold noise. Backgrounds reach a little beyond those of
        the training, so that gray parts cannot hide in them.
        """
        settings: dict[str, Any] = dict(
            num_inference_steps=500, grid_lr=1e-2, network_lr=5e-3,
            guidance_scale=4.0, guidance_rescale=0.0, denoising_stride=0.3, eta=0.0, t_min=0.2, lambda_rgb=0.4,
            sds_weight=2e-3, regulariser_warmup=0.4, render_size=64, start_render_size=32, growth_end=0.6,
            n_coarse=48, n_fine=16, density_grid=48, grid_period=16, rays_per_chunk=2**13,
            camera_radius=(2.4, 2.6), camera_fov_deg=(40.0, 40.0), camera_elevation_deg=(-10.0, 75.0),
            random_background=1.0, background_range=(0.2, 0.7), lambda_entropy=0.2, lambda_opacity=0.045,
            levels=8, base_resolution=8, finest_resolution=64, log2_entries=15, hidden_dim=32, view_bands=1,
            blob_density=3.0, blob_radius=0.35,
        )  # fmt: skip
        return cls(**(settings | changes))

    @classmethod
    def reconstruction(cls, **changes: Any) -> "HiFAConfig":
        """Given views at 128 to 256 pixels, on a CPU: the guidance of `fast`, a finer field and more samples."""
        settings: dict[str, Any] = dict(
            num_inference_steps=700, lr_end=0.05, lambda_zvar=20.0, lambda_entropy=0.0, lambda_opacity=0.0,
            n_coarse=64, n_fine=32, density_grid=64, grid_period=16, min_opacity=0.001,
            levels=10, base_resolution=16, finest_resolution=256, log2_entries=17, hidden_dim=64,
        )  # fmt: skip
        return cls.fast(**(settings | changes))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def learning_rate_share(self, step: int) -> float:
        """What a step takes of the learning rates: 1 at the start, exponentially falling to `lr_end`."""
        return self.lr_end ** (step / self.num_inference_steps)

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
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {value}.")
        if isinstance(number, bool) or not isinstance(number, int if expected is int else int | float):
            kind = "a whole number" if expected is int else "a number"
            raise ValueError(f"{name} must be {kind}, got {value!r}.")


_PAIRS: tuple[tuple[str, float, float], ...] = (
    ("camera_radius", 0, 1e6),
    ("camera_fov_deg", 1, 170),
    ("camera_elevation_deg", -90, 90),
    ("background_range", 0, 1),
)

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("num_inference_steps", 1, 1_000_000),
    ("grid_lr", 0, 1), ("network_lr", 0, 1), ("lr_end", 1e-6, 1),
    ("guidance_scale", 0, 1000), ("guidance_rescale", 0, 1), ("denoising_stride", 0.001, 1), ("eta", 0, 1),
    ("t_max", 0, 0.999), ("t_min", 0, 0.999),
    ("sds_weight", 0, 1e6), ("lambda_latent", 0, 1e6), ("lambda_rgb", 0, 1e6), ("lambda_zvar", 0, 1e6),
    ("lambda_opacity", 0, 1e6), ("lambda_entropy", 0, 1e6), ("regulariser_warmup", 0, 1),
    ("image_guidance_end", 1e-6, 1), ("lambda_image", 0, 1e6), ("image_outside", 0, 1), ("lambda_mask", 0, 1e6),
    ("lambda_image_latent", 0, 1e6), ("given_rays", 1, 2**24), ("given_size", 8, 4096),
    ("render_size", 8, 4096), ("start_render_size", 8, 4096), ("growth_end", 0, 1),
    ("n_coarse", 2, 4096), ("n_fine", 2, 4096), ("density_grid", 0, 512), ("grid_period", 1, 10_000),
    ("min_opacity", 0, 1), ("rays_per_chunk", 1, 2**24), ("random_background", 0, 1),
    ("bound", 0.01, 100), ("levels", 1, 32), ("base_resolution", 1, 4096), ("finest_resolution", 1, 2**16),
    ("log2_entries", 4, 24), ("hidden_dim", 1, 1024), ("view_bands", 1, 4), ("blob_density", 0, 1000),
    ("blob_radius", 0.01, 100),
)  # fmt: skip
