"""Claims of the paper: the variants and measures that test each claim, and the expected differences."""

from collections.abc import Container
from dataclasses import dataclass, field


MEASURES = {
    "right": "views right",
    "same_kind": "one kind from all sides",
    "consistent": "consistent",
    "diverged": "diverged",
    "color_error": "color error",
    "sharpness": "sharpness",
    "roughness": "off the world's sharpness",
    "z_variance": "z-variance x 1000",
    "semi_opaque": "half-transparent rays",
    "late": "views right, end less 60 %",
    "diversity": "diversity",
}
# Explanations for the page, in Markdown.
MEANINGS = (
    "- **views right**: share of views in which the judge sees the prompt's kind and color; **one kind from all "
    "sides** and **consistent**: share of assets, the second with fronts and backs that look like such",
    "- **diverged**: share of assets that are empty or opaque everywhere",
    "- **color error**: distance in RGB of the mean color from that of world renders of the prompt",
    "- **sharpness**: mean absolute Laplacian of the luminance inside the outline, as the binary logarithm of that of "
    "world renders: 0 is the world's, above it is noise or detail that does not belong there, below it is blur; "
    "**off the world's sharpness**: its distance from 0",
    "- **z-variance**: of the depth along a ray (equation 8), mean over opaque pixels, squared world units; "
    "**half-transparent rays**: share of the rays that are not empty with an opacity between 0.1 and 0.9",
    "- **diversity**: distance in the judge's features between the seeds of a prompt",
)


@dataclass(frozen=True)
class Expectation:
    """Expected sign of a measure's difference between two variants, as the paper states it.

    Args:
        better, worse: Names of variants.
        measure: Key of `MEASURES`.
        sign: 1 if `better` has the larger value, -1 if the smaller.
    """

    better: str
    worse: str
    measure: str
    sign: int


@dataclass(frozen=True)
class Claim:
    """A claim, which is one table of the results.

    Args:
        name: Name of its files and of its remarks.
        title: The claim in words.
        figure: Figure of the paper.
        variants: Names of variants. The first is the reference of the comparison.
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
        "Latent and image space together beat either alone; image space alone shifts colors",
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
        "The z-variance loss where no other loss works against haze",
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
        "The same with all timesteps down to 20",
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
        "19, 20",
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
        "4, 13",
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
