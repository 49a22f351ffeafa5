"""What is compared: HiFA's settings, and each variant's changes to them."""

from dataclasses import dataclass, field, replace
from typing import Any

from diffusers import DDIMScheduler

from hifa import HiFAConfig
from hifa.distillation import residual_weight
from hifa.priors.denoising import denoising_timesteps
from hifa.schedule import annealed_timestep

from ..text_to_3d import Prompt, choose_prompts


STEPS, PROMPTS, SEEDS = 128, 12, 2
STRIDE = 0.3  # r of the HiFA that is compared; the preset went over to a single denoising step because of the results
VSD_GUIDANCE = 7.5  # ProlificDreamer's
# Weights of what stands in for z-variance. Monotonicity and z-entropy have those of the public code; distortion, which
# has no published weight for this use, one that leaves a z-variance near HiFA's (see `strength`).
DISTORTION, MONOTONIC, ZENTROPY = 1.0, 1.0, 1e-2
# Of the image space alone: with its weight beside the latent space, its gradient at the image is in the mean of a run
# only a 33rd (on other prompts a 36th, see `strength`) of the latent one's, and the regularisers overpower it.
IMAGE_ALONE = 33 * HiFAConfig.fast().lambda_rgb


@dataclass(frozen=True)
class Variant:
    """One row of the tables.

    Args:
        name: Of its folders.
        label: For people.
        changes: Fields of `HiFAConfig` that differ from HiFA's.
    """

    name: str
    label: str
    changes: dict[str, Any] = field(default_factory=dict)


HIFA = "hifa"
# The preset's other losses that work against haze, off: what z-variance does alone.
UNHELPED = {"lambda_entropy": 0.0, "lambda_opacity": 0.0}
# Where the annealing should tell most: estimates that depend on t alone, and all of the timesteps.
DEEP = {"denoising_stride": 1.0, "t_min": 0.02}


def hifa_config(steps: int = STEPS) -> HiFAConfig:
    """The method with the default settings of the embedded prior, in fewer steps and with several denoising steps."""
    return HiFAConfig.fast(num_inference_steps=steps, denoising_stride=STRIDE)


def variants(scheduler: DDIMScheduler, steps: int = STEPS) -> list[Variant]:
    """All of them, HiFA first. Its rivals get as many evaluations of the UNet, not as many steps.

    Args:
        scheduler: Of the prior.
        steps: Of HiFA.
    """
    base = hifa_config(steps)
    # What DreamFusion, SJC and ProlificDreamer have not: image space, annealing, z-variance, kernel smoothing.
    plain = {"lambda_rgb": 0.0, "annealing": "random", "lambda_zvar": 0.0, "kernel": (1.0,)}

    def rival(name: str, label: str, **changes: Any) -> Variant:
        changes["num_inference_steps"] = equal_steps(base, replace(base, **changes))
        if "distillation" in changes:
            changes |= weight_of(changes)
        return Variant(name, label, changes)

    def weight_of(changes: dict[str, Any]) -> dict[str, float]:
        return {"sds_weight": equal_weight(base, replace(base, **changes), scheduler)}

    return [
        Variant(HIFA, "HiFA"),
        Variant("latent", "latent space only", {"lambda_rgb": 0.0}),
        Variant("image", "image space only", {"lambda_latent": 0.0}),
        Variant("no-zvar", "no z-variance loss", {"lambda_zvar": 0.0}),
        Variant("distortion", "distortion loss instead", {"lambda_zvar": 0.0, "lambda_distortion": DISTORTION}),
        Variant("monotonic", "monotonicity loss instead", {"lambda_zvar": 0.0, "lambda_monotonic": MONOTONIC}),
        Variant("z-entropy", "z-entropy loss instead", {"lambda_zvar": 0.0, "lambda_zentropy": ZENTROPY}),
        Variant("linear", "linear annealing", {"annealing": "linear"}),
        Variant("cosine", "cosine annealing", {"annealing": "cosine"}),
        Variant("random", "random timesteps", {"annealing": "random"}),
        Variant("no-kernel", "no kernel smoothing", {"kernel": (1.0,)}),
        Variant("single-step", "single-step denoising", {"denoising_stride": 1.0}),
        rival("single-step-equal", "single-step, equal evaluations", denoising_stride=1.0),
        rival("sds", "SDS (DreamFusion)", distillation="sds", **plain),
        rival("sjc", "SJC", distillation="sjc", **plain),
        rival("vsd", "VSD (ProlificDreamer)", distillation="vsd", guidance_scale=VSD_GUIDANCE, **plain),
        rival("vsd-hifa", "VSD with HiFA's additions", distillation="vsd", guidance_scale=VSD_GUIDANCE),
        Variant("image-equal", "image space only, as strong", {"lambda_latent": 0.0, "lambda_rgb": IMAGE_ALONE}),
        rival("vsd-mild", "VSD, guidance 4, LoRA rate 1e-3", distillation="vsd", lora_lr=1e-3, **plain),
        Variant("sds-steps", "SDS, equal steps", (sds := {"distillation": "sds", **plain}) | weight_of(sds)),
        Variant("paper-r", "r = 0.25, eta = 1", {"denoising_stride": 0.25, "eta": 1.0}),
        Variant("bare", "z-variance, no opacity losses", UNHELPED),
        Variant("bare-no-zvar", "no z-variance, no opacity losses", {"lambda_zvar": 0.0, **UNHELPED}),
        rival("deep-sqrt", "square root, one step, to t = 20", **DEEP),
        rival("deep-linear", "linear, one step, to t = 20", annealing="linear", **DEEP),
        rival("deep-cosine", "cosine, one step, to t = 20", annealing="cosine", **DEEP),
        rival("deep-random", "random, one step, to t = 20", annealing="random", **DEEP),
    ]


def jobs(compared: list[Variant], steps: int, prompts: list[Prompt], seeds: int) -> list[dict[str, Any]]:
    """Lines for `hifa.batch`: all prompts and seeds of a variant, then those of the next."""
    rows = []
    for variant in compared:
        settings = {"num_inference_steps": steps, "denoising_stride": STRIDE} | variant.changes
        for prompt in prompts:
            for seed in range(seeds):
                name = f"{variant.name} {prompt.text} {seed}"
                rows.append({"prompt": prompt.text, "seed": seed, "name": name, **settings})
    return rows


def prompts(count: int = PROMPTS) -> list[Prompt]:
    """Of the 24 prompts of `benchmarks.text_to_3d`, the first; every other one was never trained."""
    return choose_prompts()[:count]


# Fairness


def timesteps(config: HiFAConfig, total: int = 1000) -> list[int]:
    """Of all steps of a run; for random ones as many, evenly spread."""
    n = config.num_inference_steps
    bounds = int(config.t_max * total), int(config.t_min * total)
    annealing = "linear" if config.annealing == "random" else config.annealing
    return [annealed_timestep(step, n, *bounds, annealing) for step in range(n)]


def evaluations(config: HiFAConfig) -> float:
    """UNet evaluations of an average step, each of one latent; a backward pass counts as two more.

    Guidance asks with the negative prompt and the prompt with its view, and without it too where the words of the view
    have a strength of their own.
    """
    asked = 2 if config.view_guidance == 1 else 3
    if config.distillation == "vsd":
        return asked + 1 + 3  # the variational score, and its learning
    if config.distillation != "hifa":
        return asked
    calls = [len(denoising_timesteps(t, config.denoising_stride, 1000)) for t in timesteps(config)]
    return asked * sum(calls) / len(calls)


def equal_steps(base: HiFAConfig, other: HiFAConfig) -> int:
    """Steps in which `other` evaluates the UNet as often as `base` does in all of its own."""
    return round(base.num_inference_steps * evaluations(base) / evaluations(other))


def equal_weight(base: HiFAConfig, other: HiFAConfig, scheduler: DDIMScheduler) -> float:
    """`sds_weight` with which the residuals of `other` weigh on average as much as those of `base`, whose w is
    constant: the regularisers beside them are the same."""
    alphas = scheduler.alphas_cumprod
    weights = [residual_weight(other.distillation, float(alphas[t])) for t in timesteps(other, len(alphas))]
    return base.sds_weight * len(weights) / sum(weights)
