"""Claims of the paper. Each claim lists the variants and measures that test it, and the expected differences."""

from collections.abc import Container
from dataclasses import dataclass, field


MEASURES = {
    "right": "correct views",
    "same_kind": "one kind in all views",
    "consistent": "consistent",
    "diverged": "diverged",
    "color_error": "color error",
    "sharpness": "sharpness",
    "roughness": "sharpness error",
    "z_variance": "z-variance x 1000",
    "semi_opaque": "half-transparent rays",
    "late": "correct views, end minus 60 %",
    "diversity": "diversity",
}
# Explanations for the page, in Markdown.
MEANINGS = (
    "- **correct views**: share of views in which the judge recognizes the kind and the color of the prompt.",
    "- **one kind in all views**: share of assets with the same recognized kind in all eight views.",
    "- **consistent**: share of assets with one kind in all views. If the kind has a front, the judge must also "
    "recognize the front and the back.",
    "- **diverged**: share of assets that are empty, or opaque everywhere.",
    "- **color error**: RGB distance between the mean color of an asset and the mean color of world renders of the "
    "same prompt.",
    "- **sharpness**: mean absolute Laplacian of the luminance inside the outline, divided by the same mean for world "
    "renders, as a binary logarithm. A positive value means noise or spurious detail. A negative value means blur.",
    "- **sharpness error**: absolute value of the sharpness.",
    "- **z-variance x 1000**: 1000 times the variance of the depth along a ray (equation 8), as a mean over opaque "
    "pixels, in squared world units.",
    "- **half-transparent rays**: share of rays with an opacity between 0.1 and 0.9 among all rays with an opacity "
    "above 0.1.",
    "- **correct views, end minus 60 %**: correct views at the end of a run minus correct views after 60 % of it.",
    "- **diversity**: distance between the assets of one prompt with different seeds, in features of the judge.",
)


@dataclass(frozen=True)
class Expectation:
    """Difference between two variants that the paper expects.

    Args:
        better, worse: Names of variants.
        measure: Key of `MEASURES`.
        sign: 1 if `better` should have the larger value, -1 if the smaller value.
    """

    better: str
    worse: str
    measure: str
    sign: int


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, reported in one section of the page.

    Args:
        name: Name of the figure files and of the remarks section.
        title: The claim in words.
        figure: Place in the paper: the number of a figure, or other words.
        variants: Names of variants. All others are compared with the first one.
        measures: Keys of `MEASURES`.
        expectations: Expected differences.
    """

    name: str
    title: str
    figure: str
    variants: tuple[str, ...]
    measures: tuple[str, ...]
    expectations: tuple[Expectation, ...] = field(default=())


RIVALS = ("sds", "sjc", "vsd-equal", "vsd")


def _better(best: str, others: tuple[str, ...], measure: str, sign: int = 1) -> tuple[Expectation, ...]:
    return tuple(Expectation(best, other, measure, sign) for other in others)


def claims_about(names: Container[str]) -> list[Claim]:
    """Return the claims whose variants are all in `names`."""
    return [claim for claim in CLAIMS if all(name in names for name in claim.variants)]


CLAIMS = (
    Claim(
        "spaces",
        "Latent and image space together beat either space alone, and image space alone shifts colors",
        "5",
        ("hifa", "latent", "image", "image-equal"),
        ("right", "color_error", "sharpness", "roughness", "diverged"),
        (
            *_better("hifa", ("latent", "image", "image-equal"), "right"),
            *_better("hifa", ("latent", "image", "image-equal"), "roughness", -1),
            *_better("hifa", ("image", "image-equal"), "color_error", -1),
        ),
    ),
    Claim(
        "zvar",
        "The z-variance loss removes cloudiness; the distortion loss does so at the cost of detail",
        "6",
        ("hifa", "no-zvar", "distortion", "monotonic", "z-entropy"),
        ("z_variance", "semi_opaque", "right", "sharpness", "roughness"),
        (
            *_better("hifa", ("no-zvar",), "z_variance", -1),
            *_better("hifa", ("no-zvar",), "semi_opaque", -1),
            *_better("no-zvar", ("distortion",), "z_variance"),
            *_better("hifa", ("distortion",), "roughness", -1),
        ),
    ),
    Claim(
        "zvar-alone",
        "The z-variance loss without the opacity losses",
        "6",
        ("bare", "bare-no-zvar"),
        ("z_variance", "semi_opaque", "right", "sharpness", "roughness", "diverged"),
        (
            *_better("bare", ("bare-no-zvar",), "z_variance", -1),
            *_better("bare", ("bare-no-zvar",), "semi_opaque", -1),
        ),
    ),
    Claim(
        "annealing",
        "Square root annealing beats linear, cosine and random timesteps",
        "7",
        ("hifa", "linear", "cosine", "random"),
        ("right", "consistent", "z_variance", "sharpness", "roughness", "late", "diverged"),
        (
            *_better("hifa", ("linear", "cosine", "random"), "right"),
            *_better("hifa", ("linear", "cosine", "random"), "roughness", -1),
            *_better("hifa", ("linear", "cosine", "random"), "late"),
        ),
    ),
    Claim(
        "annealing-deep",
        "Annealing with all timesteps down to t = 20",
        "7",
        ("deep-sqrt", "deep-linear", "deep-cosine", "deep-random"),
        ("right", "consistent", "color_error", "z_variance", "sharpness", "roughness", "late"),
        (
            *_better("deep-sqrt", ("deep-linear", "deep-cosine", "deep-random"), "right"),
            *_better("deep-sqrt", ("deep-linear", "deep-cosine", "deep-random"), "consistent"),
            *_better("deep-sqrt", ("deep-linear", "deep-cosine", "deep-random"), "roughness", -1),
            *_better("deep-sqrt", ("deep-linear", "deep-cosine", "deep-random"), "late"),
        ),
    ),
    Claim(
        "denoising",
        "Several denoising steps beat one",
        "appendix A.1",
        ("hifa", "several-equal", "paper-r"),
        ("right", "sharpness", "roughness", "color_error", "z_variance", "diverged"),
        (
            *(Expectation(several, "hifa", "right", 1) for several in ("several-equal", "paper-r")),
            *(Expectation(several, "hifa", "roughness", -1) for several in ("several-equal", "paper-r")),
        ),
    ),
    Claim(
        "kernel",
        "Kernel smoothing of the coarse weights during optimization",
        "3",
        ("hifa", "no-kernel"),
        ("right", "sharpness", "roughness", "z_variance", "semi_opaque"),
        (
            *_better("hifa", ("no-kernel",), "right"),
            *_better("hifa", ("no-kernel",), "roughness", -1),
        ),
    ),
    Claim(
        "vsd",
        "HiFA's additions sharpen VSD",
        "figures 19 and 20",
        ("vsd", "vsd-zvar", "vsd-hifa"),
        ("right", "z_variance", "semi_opaque", "sharpness", "roughness", "color_error", "diversity", "diverged"),
        (
            *_better("vsd-hifa", ("vsd",), "right"),
            *(Expectation(more, "vsd", "z_variance", -1) for more in ("vsd-zvar", "vsd-hifa")),
            *(Expectation(more, "vsd", "roughness", -1) for more in ("vsd-zvar", "vsd-hifa")),
        ),
    ),
    Claim(
        "rivals",
        "HiFA beats SDS, SJC and VSD at equal evaluations of the UNet",
        "figures 4 and 13",
        ("hifa", "several-equal", "sds", "sjc", "vsd-equal", "vsd"),
        (
            "right",
            "same_kind",
            "consistent",
            "diverged",
            "sharpness",
            "roughness",
            "color_error",
            "z_variance",
            "diversity",
        ),
        (
            *_better("hifa", RIVALS, "right"),
            *_better("hifa", RIVALS, "consistent"),
            *_better("hifa", RIVALS, "roughness", -1),
            *_better("hifa", RIVALS, "diverged", -1),
            *_better("several-equal", RIVALS, "right"),
        ),
    ),
)
