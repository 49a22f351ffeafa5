"""The compared variants: HiFA's settings, and each variant's changes to them."""

from dataclasses import dataclass, field, replace
from typing import Any

from diffusers import DDIMScheduler

from hifa import HiFAConfig
from hifa.priors.denoising import denoising_timesteps
from hifa.priors.distillation import residual_weight
from hifa.schedule import annealed_timestep

from ..text_to_3d import Prompt, choose_prompts


STEPS, PROMPTS, SEEDS = 128, 12, 2
SEVERAL = {"denoising_stride": 0.25}  # the paper's r
VSD_GUIDANCE = 7.5  # as in ProlificDreamer
VSD_SHARE = 0.75  # of HiFA's steps; the share for equal evaluations, less than half, is too short for VSD
# Weights of the losses that replace the z-variance loss. Monotonicity and z-entropy have the public code's weights.
# The distortion loss has no published weight for this use. The weight here leaves a z-variance near HiFA's (see
# `strength`).
DISTORTION, MONOTONIC, ZENTROPY = 1.0, 1.0, 1e-2
# Weight of the image term alone. With the weight that the image term has next to the latent term, its mean gradient at
# the image over a run is 1/71 of the latent term's (see `strength`), and the regularizers dominate.
IMAGE_ALONE = 71 * HiFAConfig.fast().lambda_rgb


@dataclass(frozen=True)
class Variant:
    """One row of the tables.

    Args:
        name: Name of its folders.
        label: Label in tables and figures.
        changes: Fields of `HiFAConfig` that differ from HiFA's.
    """

    name: str
    label: str
    changes: dict[str, Any] = field(default_factory=dict)


HIFA = "hifa"
# Turns off the preset's other losses against haze, to measure the z-variance loss alone.
UNHELPED = {"lambda_entropy": 0.0, "lambda_opacity": 0.0}
# With all timesteps, the annealing should matter most. The preset ends at t = 200.
DEEP = {"t_min": 0.02}


def hifa_config(steps: int = STEPS) -> HiFAConfig:
    """Return the method of the paper, with the embedded prior's other defaults and fewer steps.

    The paper has no terms for normals and curvature, so these terms are off.
    """
    return HiFAConfig.fast(num_inference_steps=steps, lambda_normal=0.0, lambda_curvature=0.0)


def variants(scheduler: DDIMScheduler, steps: int = STEPS) -> list[Variant]:
    """Return all variants, HiFA first. Variants called equal have as many UNet evaluations as HiFA, not as many steps.

    Args:
        scheduler: Scheduler of the prior.
        steps: Steps of HiFA.
    """
    base = hifa_config(steps)
    # DreamFusion, SJC and ProlificDreamer have no image space, annealing, z-variance loss or kernel smoothing.
    plain = {"lambda_rgb": 0.0, "annealing": "random", "lambda_zvar": 0.0, "kernel": (1.0,)}
    # Figure 20 adds image space, annealing and z-variance to VSD. Figure 19 adds z-variance only. Both have no kernel.
    vsd_hifa = {"distillation": "vsd", "guidance_scale": VSD_GUIDANCE, "kernel": (1.0,)}
    vsd_zvar = vsd_hifa | {"lambda_rgb": 0.0, "annealing": "random"}
    vsd = vsd_zvar | {"lambda_zvar": 0.0}

    def weighted(name: str, label: str, changes: dict[str, Any]) -> Variant:
        weight = equal_weight(base, replace(base, **changes), scheduler)
        return Variant(name, label, changes | {"sds_weight": weight})

    def equal(variant: Variant) -> Variant:
        fewer = equal_steps(base, replace(base, **variant.changes))
        return replace(variant, changes=variant.changes | {"num_inference_steps": fewer})

    def longer(variant: Variant) -> Variant:
        return replace(variant, changes=variant.changes | {"num_inference_steps": round(VSD_SHARE * steps)})

    return [
        Variant(HIFA, "HiFA"),
        Variant("latent", "latent space only", {"lambda_rgb": 0.0}),
        Variant("image", "image space only", {"lambda_latent": 0.0}),
        Variant("no-zvar", "no z-variance loss", {"lambda_zvar": 0.0}),
        Variant("monotonic", "monotonicity loss instead", {"lambda_zvar": 0.0, "lambda_monotonic": MONOTONIC}),
        Variant("z-entropy", "z-entropy loss instead", {"lambda_zvar": 0.0, "lambda_zentropy": ZENTROPY}),
        Variant("bare", "z-variance, no opacity losses", UNHELPED),
        Variant("bare-no-zvar", "no z-variance, no opacity losses", {"lambda_zvar": 0.0, **UNHELPED}),
        Variant("linear", "linear annealing", {"annealing": "linear"}),
        Variant("cosine", "cosine annealing", {"annealing": "cosine"}),
        Variant("random", "random timesteps", {"annealing": "random"}),
        Variant("deep-sqrt", "square root, to t = 20", DEEP),
        Variant("deep-linear", "linear, to t = 20", {"annealing": "linear", **DEEP}),
        Variant("deep-cosine", "cosine, to t = 20", {"annealing": "cosine", **DEEP}),
        Variant("deep-random", "random, to t = 20", {"annealing": "random", **DEEP}),
        Variant("no-kernel", "no kernel smoothing", {"kernel": (1.0,)}),
        equal(Variant("several-equal", "r = 0.25, equal evaluations", SEVERAL)),
        equal(Variant("paper-r", "r = 0.25 and eta = 1, equal evaluations", SEVERAL | {"eta": 1.0})),
        weighted("sds", "SDS (DreamFusion)", {"distillation": "sds", **plain}),
        weighted("sjc", "SJC", {"distillation": "sjc", **plain}),
        equal(weighted("vsd-equal", "VSD, equal evaluations", vsd)),
        longer(weighted("vsd", "VSD, longer", vsd)),
        longer(weighted("vsd-zvar", "the same with z-variance", vsd_zvar)),
        longer(weighted("vsd-hifa", "with z-variance, image space, annealing", vsd_hifa)),
        Variant("image-equal", "image space only, as strong", {"lambda_latent": 0.0, "lambda_rgb": IMAGE_ALONE}),
        Variant("distortion", "distortion loss instead", {"lambda_zvar": 0.0, "lambda_distortion": DISTORTION}),
    ]


def jobs(compared: list[Variant], steps: int, prompts: list[Prompt], seeds: int) -> list[dict[str, Any]]:
    """Return lines for `hifa.batch`: all prompts and seeds of a variant, then those of the next."""
    rows = []
    for variant in compared:
        settings = {"num_inference_steps": steps} | variant.changes
        for prompt in prompts:
            for seed in range(seeds):
                name = f"{variant.name} {prompt.text} {seed}"
                rows.append({"prompt": prompt.text, "seed": seed, "name": name, **settings})
    return rows


def prompts(count: int = PROMPTS) -> list[Prompt]:
    """Return the first `count` prompts of `benchmarks.text_to_3d`. Every second prompt is held out from training."""
    return choose_prompts()[:count]


# Fairness


def timesteps(config: HiFAConfig, total: int = 1000) -> list[int]:
    """Return the timesteps of a run. For random timesteps, return as many evenly spaced ones."""
    n = config.num_inference_steps
    bounds = int(config.t_max * total), int(config.t_min * total)
    annealing = "linear" if config.annealing == "random" else config.annealing
    return [annealed_timestep(step, n, *bounds, annealing) for step in range(n)]


def evaluations(config: HiFAConfig) -> float:
    """Return the UNet evaluations of an average step, each of one latent. A backward pass counts as two more.

    Guidance evaluates the negative prompt and the prompt with its view. If the view words have a weight of their own,
    guidance also evaluates the prompt without its view.
    """
    asked = 2 if config.view_guidance == 1 else 3
    if config.distillation == "vsd":
        return asked + 1 + 3  # the variational score, and its training
    if config.distillation != "hifa":
        return asked
    calls = [len(denoising_timesteps(t, config.denoising_stride, 1000)) for t in timesteps(config)]
    return asked * sum(calls) / len(calls)


def equal_steps(base: HiFAConfig, other: HiFAConfig) -> int:
    """Return the number of steps in which `other` evaluates the UNet as often as `base` does in its whole run."""
    return round(base.num_inference_steps * evaluations(base) / evaluations(other))


def equal_weight(base: HiFAConfig, other: HiFAConfig, scheduler: DDIMScheduler) -> float:
    """Return the `sds_weight` at which the residuals of `other` have the same average weight as those of `base`.

    The weight w of `base` is constant. The other loss terms are the same in both.
    """
    alphas = scheduler.alphas_cumprod
    weights = [residual_weight(other.distillation, float(alphas[t])) for t in timesteps(other, len(alphas))]
    return base.sds_weight * len(weights) / sum(weights)
