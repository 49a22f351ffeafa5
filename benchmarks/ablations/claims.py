"""The paper's claims: which variants and measures each is judged by, and what it expects."""

from collections.abc import Container
from dataclasses import dataclass, field


MEASURES = {
    "right": "views right",
    "same_kind": "one kind from all sides",
    "consistent": "consistent",
    "diverged": "diverged",
    "colour_error": "colour error",
    "sharpness": "sharpness",
    "z_variance": "z-variance x 1000",
    "semi_opaque": "half-transparent rays",
    "late": "views right, end less 60 %",
    "seconds": "seconds",
    "diversity": "diversity",
}


@dataclass(frozen=True)
class Expectation:
    """A measure of a variant, less that of another, has a sign: what the paper says in numbers.

    Args:
        better, worse: Names of variants.
        measure: Key of `MEASURES`.
        sign: 1 if `better` has more of it, -1 if less.
    """

    better: str
    worse: str
    measure: str
    sign: int


@dataclass(frozen=True)
class Claim:
    """One table of the results.

    Args:
        name: Of its files and of its remarks.
        title: The claim.
        figure: Of the paper.
        variants: Names, the one that the others are compared with first.
        measures: Keys of `MEASURES`.
        expectations: See there.
    """

    name: str
    title: str
    figure: str
    variants: tuple[str, ...]
    measures: tuple[str, ...]
    expectations: tuple[Expectation, ...] = field(default=())


def _better(best: str, others: tuple[str, ...], measure: str, sign: int = 1) -> tuple[Expectation, ...]:
    return tuple(Expectation(best, other, measure, sign) for other in others)


def claims_about(names: Container[str]) -> list[Claim]:
    """The claims all of whose variants are named."""
    return [claim for claim in CLAIMS if all(name in names for name in claim.variants)]


CLAIMS = (
    Claim(
        "spaces",
        "Latent and image space together beat either alone; image space alone shifts colours",
        "5",
        ("hifa", "latent", "image"),
        ("right", "colour_error", "sharpness", "diverged"),
        (
            *_better("hifa", ("latent", "image"), "right"),
            *_better("hifa", ("latent",), "sharpness"),
            *_better("hifa", ("image",), "colour_error", -1),
        ),
    ),
    Claim(
        "zvar",
        "The z-variance loss removes cloudiness; the distortion loss does so at the cost of detail",
        "6",
        ("hifa", "no-zvar", "distortion", "monotonic", "z-entropy"),
        ("z_variance", "semi_opaque", "right", "sharpness"),
        (
            *_better("hifa", ("no-zvar",), "z_variance", -1),
            *_better("hifa", ("no-zvar",), "semi_opaque", -1),
            *_better("no-zvar", ("distortion",), "z_variance"),
            *_better("hifa", ("distortion",), "sharpness"),
        ),
    ),
    Claim(
        "annealing",
        "Square root annealing beats linear, cosine and random timesteps",
        "7",
        ("hifa", "linear", "cosine", "random"),
        ("right", "sharpness", "late", "diverged"),
        (
            *_better("hifa", ("linear", "cosine", "random"), "right"),
            *_better("hifa", ("linear", "cosine", "random"), "sharpness"),
        ),
    ),
    Claim(
        "denoising",
        "Several denoising steps beat one",
        "appendix A.1",
        ("hifa", "single-step", "single-step-equal"),
        ("right", "sharpness", "seconds", "diverged"),
        _better("hifa", ("single-step", "single-step-equal"), "right"),
    ),
    Claim(
        "kernel",
        "Kernel smoothing of the coarse weights during optimisation",
        "3",
        ("hifa", "no-kernel"),
        ("right", "sharpness", "z_variance", "semi_opaque"),
    ),
    Claim(
        "vsd",
        "HiFA's additions sharpen VSD",
        "19, 20",
        ("vsd", "vsd-hifa"),
        ("right", "z_variance", "sharpness", "diversity", "diverged"),
        (
            *_better("vsd-hifa", ("vsd",), "right"),
            *_better("vsd-hifa", ("vsd",), "z_variance", -1),
            *_better("vsd-hifa", ("vsd",), "sharpness"),
        ),
    ),
    Claim(
        "rivals",
        "HiFA beats SDS, SJC and VSD at equal evaluations of the UNet",
        "4, 13",
        ("hifa", "sds", "sjc", "vsd"),
        ("right", "same_kind", "consistent", "diverged", "sharpness", "colour_error", "z_variance", "diversity"),
        (
            *_better("hifa", ("sds", "sjc", "vsd"), "right"),
            *_better("hifa", ("sds", "sjc", "vsd"), "consistent"),
        ),
    ),
)
