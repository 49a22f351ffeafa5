"""Introduction of the results page: how the figures were made."""

from . import variants as settings
from .claims import MEANINGS
from .variants import Variant


def about(compared: list[Variant], prompts: int, seeds: int, steps: int) -> list[str]:
    """Return lines of Markdown.

    Args:
        compared: All variants.
        prompts, seeds: Number of prompts and of seeds.
        steps: Steps of HiFA.
    """
    lines = [
        f"{prompts} prompts x {seeds} seeds for each of {len(compared)} variants, from the embedded prior with its "
        f"preset `fast`, cut to {steps} of its {settings.HiFAConfig.fast().num_inference_steps} steps so that all "
        "fits in 3 hours of two cores. It makes its estimates in one denoising step (r = 1), where the paper makes "
        "several. A judge that was trained on renders of the Toybox world looks at eight "
        f"views of each asset. Cells have the mean of {prompts * seeds} assets (diversity and flicker: of {prompts} "
        "prompts) and, in brackets, the difference to the first row with its 95 % bootstrap interval over prompts, in "
        "bold where it leaves out 0. Of so many cells one in twenty or more is bold by chance: intervals over a dozen "
        "prompts are rather too narrow, and nothing corrects for their number.",
        "",
        "The preset was made for HiFA, on some of these prompts and with this judge; where a variant has the same "
        "settings otherwise, that speaks for HiFA.",
        "",
        *MEANINGS,
        "",
        "Rivals have their own settings, as many evaluations of the UNet where that is said or where they evaluate it "
        "once a step (a backward pass counts as two), and a coefficient of the residual that on average is HiFA's. "
        "Weights of the losses that stand in for z-variance: distortion "
        f"{settings.DISTORTION:g}, which leaves a z-variance near HiFA's; monotonicity {settings.MONOTONIC:g} and "
        f"z-entropy {settings.ZENTROPY:g}, the public code's, beside another weight of the distillation.",
        "",
        "| variant | steps | UNet evaluations |",
        "|---|---|---|",
    ]
    base = settings.hifa_config(steps)
    for variant in compared:
        config = settings.replace(base, **variant.changes)
        total = round(settings.evaluations(config) * config.num_inference_steps)
        lines.append(f"| {variant.label} | {config.num_inference_steps} | {total:,} |")
    return lines
