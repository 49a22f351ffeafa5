"""Introduction of the results page: how the variants were run and measured."""

from . import variants as settings
from .claims import MEANINGS
from .variants import Variant


def about(compared: list[Variant], prompts: int, seeds: int, steps: int) -> list[str]:
    """Return lines of Markdown.

    Args:
        compared: All variants.
        prompts: Number of prompts.
        seeds: Number of seeds.
        steps: Number of steps of HiFA.
    """
    preset = settings.PRESET_STEPS
    lines = [
        "The [summary](#summary) follows the method and the definitions of the measures.",
        "",
        "## Method",
        "",
        f"- Each of {len(compared)} variants makes {prompts * seeds} assets, one for each of {prompts} prompts and "
        f"{seeds} seeds.",
        "- The prior is the embedded Toybox prior, with the preset `fast`.",
        f"- A run of HiFA has {steps} steps instead of the {preset} steps of the preset, so that the benchmark takes "
        "less than 3 hours on two cores.",
        "- Each estimate takes one denoising step (r = 1). The paper uses several denoising steps.",
        "- A judge classifies eight views of each asset. The judge is a classifier trained on renders of the Toybox "
        "world.",
        "- The preset was tuned for HiFA, with some of these prompts and with this judge. All variants share the "
        "settings of the preset that they do not change, which favors HiFA.",
        "",
        "SDS, SJC and VSD differ from HiFA in more settings:",
        "",
        "- As in their papers, they have no image space, annealing, z-variance loss or kernel smoothing. The two "
        "variants called *VSD with ...* add the parts in their names.",
        f"- VSD has the guidance scale of ProlificDreamer, {settings.VSD_GUIDANCE:g}.",
        "- The weight of the residual is scaled so that its mean over a run is the same as for HiFA.",
        "- SDS, SJC and all variants called *equal evaluations* use as many UNet evaluations as HiFA. A backward pass "
        "counts as two evaluations.",
        "",
        "In three variants, another loss replaces the z-variance loss:",
        "",
        f"- The distortion loss has the weight {settings.DISTORTION:g}. With this weight, the z-variance is close to "
        "that of HiFA.",
        f"- The monotonicity loss has the weight {settings.MONOTONIC:g}, as in the public code.",
        f"- The z-entropy loss has the weight {settings.ZENTROPY:g}, as in the public code.",
        "- In the public code, the distillation loss has a different weight than here.",
        "",
        "| variant | steps | UNet evaluations |",
        "|---|---|---|",
    ]
    base = settings.hifa_config(steps)
    for variant in compared:
        config = settings.replace(base, **variant.changes)
        total = round(settings.evaluations(config) * config.num_inference_steps)
        lines.append(f"| {variant.label} | {config.num_inference_steps} | {total:,} |")
    return [
        *lines,
        "",
        "## How to read the tables",
        "",
        "The heading of each section states a claim or an idea of the paper. The table compares each variant with the "
        "variant in the first row.",
        "",
        f"- Each cell starts with the mean over {prompts * seeds} assets. Diversity and flicker are means over "
        f"{prompts} prompts.",
        "- In the first row, brackets contain the 95 % confidence interval of the mean.",
        "- In all other rows, parentheses contain the difference from the first row and the 95 % confidence interval "
        "of the difference.",
        "- The intervals are bootstrap intervals over prompts.",
        "- A difference is *significant* if its interval excludes 0. Significant differences are bold in the tables "
        "and red in the plots.",
        "- About one in twenty cells or more is bold by chance. Intervals over a dozen prompts tend to be too narrow, "
        "and nothing corrects for the number of comparisons.",
        "",
        "The list below each table compares the differences with the paper:",
        "",
        "- **agrees**: the difference is significant and has the sign that the paper expects.",
        "- **contradicts**: the difference is significant and has the opposite sign.",
        "- **inconclusive**: the difference is not significant.",
        "",
        "Measures:",
        "",
        *MEANINGS,
    ]
