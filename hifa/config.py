"""Settings of a run, and the schedules that follow from the settings.

`python -m hifa --list-settings` and the reference table in hifa/optimization/README.md are generated from the
declarations of the fields.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from .presets import Presets
from .schedule import ANNEALINGS
from .settings import FIELD_LIMITS, check_resolutions, setting, settings_of


DISTILLATIONS = ("hifa", "sds", "sjc", "vsd")
OPTIMIZERS = ("adam", "adan")
DISPARITY_ANNEALINGS = ("constant", "sqrt")
LORA_PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True, kw_only=True)
class HiFAConfig(Presets):
    """Settings of a run.

    The defaults are those of the paper (appendix A.1). Where the paper gives no value, the default is that of the
    public code, except for the networks and the initial density of the field.

    Raises:
        ValueError: If a value is out of range. The message names the setting.
    """

    num_inference_steps: int = setting(
        10_000, 1, 1_000_000, "Number of optimization steps; total_iter in equation 5.", group="Optimization"
    )
    optimizer: str = setting("adam", choices=OPTIMIZERS, help="Optimizer of the field. The public code uses adan.")
    grid_lr: float = setting(1e-2, 0, 1, "Learning rate of the hash grid.")
    network_lr: float = setting(1e-3, 0, 1, "Learning rate of the networks of the field.")
    lr_warmup: float = setting(0.0, 0, 1, "Fraction of the run over which the learning rates rise linearly from 0.")
    lr_end: float = setting(
        1.0, 1e-6, 1, "Final factor on the learning rates, which decay exponentially; 1: no decay."
    )
    max_gradient_norm: float = setting(0.0, 0, 1e6, "Largest gradient norm over all parameters; 0: no clipping.")

    distillation: str = setting(
        "hifa",
        choices=DISTILLATIONS,
        help="Distillation method: HiFA, SDS (DreamFusion), SJC or VSD (ProlificDreamer).",
        group="Guidance",
    )
    prior_size: int = setting(
        0, 0, 4096, "Input size of a latent prior, pixels per side; 0: the size that the prior was trained on."
    )
    guidance_scale: float = setting(100.0, 0, 1000, "Scale of classifier-free guidance.")
    view_guidance: float = setting(1.0, 0, 100, "Weight k of the view suffix; 1: plain classifier-free guidance.")
    guidance_rescale: float = setting(
        0.0, 0, 1, "Share of the output rescaled to the standard deviation of the conditional output; 0: no rescale."
    )
    perp_neg: float = setting(
        0.0, 0, 100, "Largest Perp-Neg weight; 0: off. Above 0, view_guidance and guidance_rescale have no effect."
    )
    denoising_stride: float = setting(
        0.25,
        0.001,
        1,
        "Stride r of multi-step denoising, as a fraction of the timesteps; 1: a single step. Only for hifa. "
        "The other methods denoise in a single step.",
    )
    eta: float = setting(1.0, 0, 1, "Noise eta of multi-step denoising; 0: deterministic. Only for hifa.")
    t_max: float = setting(0.98, 0, 0.999, "Largest timestep, as a fraction of the timesteps of the prior.")
    t_min: float = setting(0.02, 0, 0.999, "Smallest timestep, as a fraction of the timesteps of the prior.")
    annealing: str = setting(
        "sqrt", choices=ANNEALINGS, help="Schedule of the timestep. narrowing is the schedule of MVDream."
    )

    lora_rank: int = setting(4, 1, 1024, "Rank of the LoRA layers.", group="Variational score (VSD only)")
    lora_lr: float = setting(1e-4, 0, 1, "Learning rate of the LoRA layers.")
    lora_prediction: str = setting(
        "epsilon", choices=LORA_PREDICTIONS, help="Target of the denoising loss of the LoRA layers."
    )

    sds_weight: float = setting(
        0.05, 0, 1e6, "Weight w(t) of hifa, for all t. For the other methods, a factor on w(t).", group="Losses"
    )
    lambda_latent: float = setting(1.0, 0, 1e6, "Weight of the residual in latent space.")
    lambda_rgb: float = setting(0.1, 0, 1e6, "Weight of the residual in image space.")
    lambda_zvar: float = setting(3.0, 0, 1e9, "Weight of the z-variance.")
    lambda_disparity: float = setting(
        0.0,
        0,
        1e6,
        "Weight of the disparity regression; needs a disparity model. "
        "The paper's lambda_d = 0.1 means 0.1 w(t) per ray.",
    )
    disparity_annealing: str = setting(
        "constant",
        choices=DISPARITY_ANNEALINGS,
        help="Schedule of lambda_disparity. sqrt: the factor 1 - sqrt(p) at the fraction p of the run.",
    )
    lambda_normal: float = setting(0.0, 0, 1e6, "Weight of the normal loss; needs a normal model. Not in the paper.")
    normal_period: int = setting(1, 1, 10_000, "Steps between two evaluations of the normal loss.")
    lambda_curvature: float = setting(
        0.0, 0, 1e6, "Weight of the curvature of the depth of whole views. Not in the paper."
    )
    curvature_tau: float = setting(
        0.5, 1e-3, 1e3, "Second difference of the depth that counts as an edge, in multiples of the pixel size."
    )
    lambda_monotonic: float = setting(
        0.0, 0, 1e6, "Weight of the monotonicity loss of the public code. Not in the paper."
    )
    lambda_zentropy: float = setting(0.0, 0, 1e6, "Weight of the entropy of z of the public code. Not in the paper.")
    lambda_distortion: float = setting(
        0.0, 0, 1e6, "Weight of the distortion loss of Mip-NeRF 360, which the paper compares with the z-variance."
    )
    lambda_opacity: float = setting(0.0, 0, 1e6, "Weight of the opacity loss of DreamFusion.")
    lambda_entropy: float = setting(0.0, 0, 1e6, "Weight of the binary entropy of the opacity, in nats.")
    regularizer_warmup: float = setting(
        0.0,
        0,
        1,
        "Fraction of the run over which the weights of the regularizers and of the normal losses rise from 0. "
        "Monotonicity and disparity have their full weight from the start.",
    )

    image_guidance_end: float = setting(
        1.0,
        1e-6,
        1,
        "Fraction of the run over which the losses on given views fade to 0; 1: constant weight.",
        group="Given views (section 5.4, appendix A.5)",
    )
    lambda_image: float = setting(100.0, 0, 1e6, "Weight of the color of the given views.")
    image_outside: float = setting(
        1.0, 0, 1, "Weight of the pixels outside of the object; 0: the background is masked out."
    )
    lambda_mask: float = setting(10.0, 0, 1e6, "Weight of the mask of the given views.")
    lambda_tv: float = setting(
        0.0, 0, 1e6, "Weight of the total variation of the color for 128x128 views; scales with the size of the views."
    )
    lambda_image_latent: float = setting(0.0, 0, 1e6, "Weight of the latents of a whole view; needs a prior.")
    lambda_image_normal: float = setting(
        0.0, 0, 1e6, "Weight of the normals predicted from the given views; needs a normal model."
    )
    given_rays: int = setting(2**12, 1, 2**24, "Random rays over all given views in a step.")
    given_size: int = setting(256, 8, 4096, "Pixels per side; larger given views are downscaled.")

    render_size: int = setting(512, 8, 4096, "Pixels per side of a render at the end of the run.", group="Rendering")
    start_render_size: int = setting(512, 8, 4096, "Pixels per side of a render at the start of the run.")
    growth_end: float = setting(0.0, 0, 1, "Fraction of the run at which render_size is reached; 0: from the start.")
    n_coarse: int = setting(128, 2, 4096, "Cells per ray of the coarse pass.")
    n_fine: int = setting(64, 2, 4096, "Samples per ray of the fine pass.")
    kernel: tuple[float, ...] = setting((1.0, 1.0, 1.0), help="Kernel K that smooths the weights of the coarse pass.")
    density_grid: int = setting(
        0, 0, 512, "Cells per axis of the density grid; 0: the coarse pass evaluates the field itself."
    )
    grid_period: int = setting(16, 1, 10_000, "Steps between two refreshes of the density grid.")
    min_opacity: float = setting(
        0.01, 0, 1, "Rays with a lower opacity in the density grid return the background only."
    )
    rays_per_chunk: int = setting(2**11, 1, 2**24, "Rays whose autograd graph is in memory at a time.")

    camera_radius: tuple[float, float] = setting(
        (3.0, 3.5), 0, 1e6, "Distance of the cameras from the origin, world units.", group="Cameras"
    )
    camera_framing: tuple[float, float] = setting(
        (0.0, 0.0),
        0,
        1e6,
        "Half the height of the camera's frustum at the origin, world units. Replaces camera_radius; 0,0: not used.",
    )
    camera_fov_deg: tuple[float, float] = setting((10.0, 30.0), 1, 170, "Field of view, degrees.")
    camera_elevation_deg: tuple[float, float] = setting((-15.0, 80.0), -90, 90, "Elevation, degrees; 0 is level.")
    num_views: int = setting(
        0, 0, 64, "Views per step, with cameras as input of a multi-view prior; 0: one view with a view suffix."
    )
    num_views_end: float = setting(
        1.0, 0, 1, "Fraction of the run after which each step has one view with a view suffix."
    )
    front_back_end: float = setting(
        0.0,
        0,
        1,
        "Fraction of the run, from the start, with front and back views only. The suffix of a side view does not say "
        "which side. With early side views, the object would take a random direction before the suffixes for front "
        "and back have an effect.",
    )

    random_background: float = setting(
        0.5,
        0,
        1,
        "Fraction of the steps with a flat, random, nearly gray background. "
        "All other steps have the background network.",
        group="Background",
    )
    background_range: tuple[float, float] = setting((0.0, 1.0), 0, 1, "Range of the grays of the random background.")

    bound: float = setting(
        1.0, *FIELD_LIMITS["bound"], "Half the side of the field's cube, world units.", group="Field"
    )
    levels: int = setting(16, *FIELD_LIMITS["levels"], "Levels of the hash grid.")
    base_resolution: int = setting(16, *FIELD_LIMITS["base_resolution"], "Cells per axis of the coarsest level.")
    max_resolution: int = setting(2048, *FIELD_LIMITS["max_resolution"], "Cells per axis of the finest level.")
    log2_hashmap_size: int = setting(
        19, *FIELD_LIMITS["log2_hashmap_size"], "Table size of a level, as an exponent of 2."
    )
    hidden_dim: int = setting(64, *FIELD_LIMITS["hidden_dim"], "Width of the hidden layers.")
    view_bands: int = setting(
        4, *FIELD_LIMITS["view_bands"], "Spherical harmonics bands of the view direction; 1: no view dependence."
    )
    blob_density: float = setting(
        5.0, *FIELD_LIMITS["blob_density"], "Height of the initial Gaussian blob of density, before the activation."
    )
    blob_radius: float = setting(
        0.3, *FIELD_LIMITS["blob_radius"], "Standard deviation of the initial blob, world units."
    )

    def __post_init__(self):
        for name, declared in settings_of(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, list):  # JSON has no tuples.
                object.__setattr__(self, name, value := tuple(value))
            declared.check(value)
        if self.t_min > self.t_max:
            raise ValueError(f"t_min must not exceed t_max, got t_min={self.t_min} and t_max={self.t_max}.")
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

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dictionary, for JSON."""
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

    def work(self, first: int, last: int) -> float:
        """Return the approximate work of the steps from `first` up to, but not including, `last`.

        The unit is the work of a step with a single view. With the embedded prior on a CPU, a step with four views
        takes 2.8 times as long.
        """
        switch = min(max(math.ceil(self.num_views_end * self.num_inference_steps), first), last)
        return (switch - first) * (0.4 + 0.6 * max(self.num_views, 1)) + last - switch

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


def check_views(config: HiFAConfig, multiview: bool) -> None:
    """Check that a prior supports the number of views of the settings.

    Args:
        config: Settings.
        multiview: Whether the prior is a multi-view prior.

    Raises:
        ValueError: If the settings have several views and the prior supports single views only.
    """
    if config.num_views and not multiview:
        raise ValueError(
            f"num_views={config.num_views} needs a multi-view prior such as MVDream, but this prior supports "
            "single views only. Load HiFAPipeline.from_single_file(), or set num_views=0."
        )


def check_without_prior(config: HiFAConfig, note: str) -> None:
    """Check the settings of a run without a prompt that the prior can encode.

    Args:
        config: Settings.
        note: Reason why the prior cannot encode the prompt; empty if there is no prompt.

    Raises:
        ValueError: If the settings need such a prompt.
    """
    if config.image_guidance_end < 1:
        raise ValueError(
            f"image_guidance_end={config.image_guidance_end} leaves the rest of the run to the prompt, but there is "
            f"no prompt that the prior can encode. {note or 'Add a prompt, or set image_guidance_end=1.'}"
        )
    for name in ("lambda_disparity", "lambda_image_latent"):
        if getattr(config, name):
            raise ValueError(
                f"{name}={getattr(config, name)} needs the prior, but there is no prompt that the prior can encode. "
                f"{note or f'Add a prompt, or set {name}=0.'}"
            )
