"""The compared variants. Each variant is a set of changes to the settings of HiFA."""

from dataclasses import dataclass, field, replace
from typing import Any

from diffusers import DDIMScheduler

from hifa import HiFAConfig
from hifa.optimization.distillation import residual_weight
from hifa.priors.denoising import denoising_timesteps
from hifa.schedule import annealed_timestep

from ..text_to_3d import Prompt, choose_prompts


STEPS, PROMPTS, SEEDS = 128, 12, 2
SEVERAL = {"denoising_stride": 0.25}  # the paper's r
VSD_GUIDANCE = 7.5  # as in ProlificDreamer
VSD_SHARE = 0.75  # steps of VSD / steps of HiFA; at equal evaluations, the runs are too short for VSD
# Weights of the losses that replace the z-variance loss. Monotonicity and z-entropy have the weights of the public
# code. No weight of the distortion loss is published for this use. With the weight below, the z-variance is close to
# that of HiFA (see `strength`).
DISTORTION, MONOTONIC, ZENTROPY = 1.0, 1.0, 1e-2
# Weight of the image term without the latent term. With its usual weight, the image term has a weak gradient: averaged
# over a run, its gradient at the image is 1/71 of the gradient of the latent term (see `strength`). The regularizers
# would dominate.
IMAGE_ALONE = 71 * HiFAConfig.fast().lambda_rgb


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Args:
        name: Name of its folders.
        label: Label in tables and figures.
        changes: Fields of `HiFAConfig` that differ from those of HiFA.
    """

    name: str
    label: str
    changes: dict[str, Any] = field(default_factory=dict)


HIFA = "hifa"
# Turn off the two opacity losses, which also reduce haze, to measure the z-variance loss alone.
UNHELPED = {"lambda_entropy": 0.0, "lambda_opacity": 0.0}
PRESET_STEPS = 480  # steps of the preset `fast` without views by cameras
# Use all timesteps, where annealing should matter most. The preset ends at t = 200.
DEEP = {"t_min": 0.02}


def hifa_config(steps: int = STEPS) -> HiFAConfig:
    """Return the method of the paper, with the embedded prior's other defaults and fewer steps.

    The paper has no views by cameras and no terms for normals and curvature, so these are off.
    """
    return HiFAConfig.fast(num_inference_steps=steps, num_views=0, lambda_normal=0.0, lambda_curvature=0.0)


def variants(scheduler: DDIMScheduler, steps: int = STEPS) -> list[Variant]:
    """Return all variants, with HiFA first.

    Variants with "equal" in the name have as many UNet evaluations as HiFA, but fewer steps.

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
        longer(weighted("vsd-zvar", "VSD with z-variance", vsd_zvar)),
        longer(weighted("vsd-hifa", "VSD with z-variance, image, annealing", vsd_hifa)),
        Variant("image-equal", "image space only, equal strength", {"lambda_latent": 0.0, "lambda_rgb": IMAGE_ALONE}),
        Variant("distortion", "distortion loss instead", {"lambda_zvar": 0.0, "lambda_distortion": DISTORTION}),
    ]


def jobs(compared: list[Variant], steps: int, prompts: list[Prompt], seeds: int) -> list[dict[str, Any]]:
    """Return lines for `hifa.batch`, grouped by variant: all prompts and seeds of the first variant come first."""
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
    """Return the timesteps of a run. For random timesteps, return the same number of evenly spaced timesteps."""
    n = config.num_inference_steps
    bounds = int(config.t_max * total), int(config.t_min * total)
    annealing = "linear" if config.annealing == "random" else config.annealing
    return [annealed_timestep(step, n, *bounds, annealing) for step in range(n)]


def evaluations(config: HiFAConfig) -> float:
    """Return the mean number of UNet evaluations per step. One evaluation processes one latent.

    A backward pass counts as two evaluations. Guidance evaluates the UNet for the negative prompt and for the prompt
    with its view suffix. If the view suffix has its own weight, guidance also evaluates the UNet for the prompt
    without the suffix.
    """
    asked = 2 if config.view_guidance == 1 else 3
    if config.distillation == "vsd":
        return asked + 1 + 3  # the variational score (1) and its training (3)
    if config.distillation != "hifa":
        return asked
    calls = [len(denoising_timesteps(t, config.denoising_stride, 1000)) for t in timesteps(config)]
    return asked * sum(calls) / len(calls)


def equal_steps(base: HiFAConfig, other: HiFAConfig) -> int:
    """Return the number of steps of `other` that need as many UNet evaluations as a whole run of `base`."""
    return round(base.num_inference_steps * evaluations(base) / evaluations(other))


def equal_weight(base: HiFAConfig, other: HiFAConfig, scheduler: DDIMScheduler) -> float:
    """Return the `sds_weight` of `other` that gives the residual the same mean weight over a run as in `base`.

    In `base`, the weight of the residual is constant. All other loss terms are the same in `base` and `other`.
    """
    alphas = scheduler.alphas_cumprod
    weights = [residual_weight(other.distillation, float(alphas[t])) for t in timesteps(other, len(alphas))]
    return base.sds_weight * len(weights) / sum(weights)
