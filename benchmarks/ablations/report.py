"""The results page: tables with intervals, verdicts on the expectations of the paper, remarks and figures."""

from pathlib import Path

import numpy as np

from .claims import MEASURES, Claim, Expectation, claims_about
from .flicker import KERNELS, REFERENCE_SAMPLES, SAMPLES, as_array
from .statistics import Estimate, bootstrap, difference


SCALES = {"z_variance": 1000.0}
# Arrays `(prompts, seeds)` by variant and measure. Diversity has one value for all seeds: `(prompts, 1)`.
Table = dict[str, dict[str, np.ndarray]]


def scaled(table: Table, variant: str, measure: str) -> np.ndarray:
    return table[variant][measure] * SCALES.get(measure, 1.0)


def cell(table: Table, variant: str, reference: str, measure: str) -> str:
    """Return the mean, the difference from the reference and its interval, in bold if the interval excludes 0.

    The cell of the reference has the interval of the mean instead.
    """
    values = scaled(table, variant, measure)
    mean = bootstrap(values).mean
    if not np.isfinite(mean):
        return "-"
    if variant == reference:
        return f"{rounded(mean)} {interval(bootstrap(values))}"
    change = difference(values, scaled(table, reference, measure))
    words = f"{change.mean:+.3g} {interval(change)}"
    return f"{rounded(mean)} (**{words}**)" if change.is_sure else f"{rounded(mean)} ({words})"


def interval(estimate: Estimate) -> str:
    return f"[{estimate.low:.3g}, {estimate.high:.3g}]"


def rounded(value: float) -> str:
    return f"{value:.3g}"


def claim_table(claim: Claim, table: Table, labels: dict[str, str]) -> list[str]:
    """Return lines of Markdown."""
    lines = [f"| | {' | '.join(MEASURES[m] for m in claim.measures)} |", "|" + "---|" * (len(claim.measures) + 1)]
    for name in claim.variants:
        cells = [cell(table, name, claim.variants[0], measure) for measure in claim.measures]
        lines.append(f"| {labels[name]} | {' | '.join(cells)} |")
    return lines


def verdict(expectation: Expectation, table: Table, labels: dict[str, str]) -> str:
    """Return one line: the expectation, and whether the interval agrees, contradicts or is inconclusive.

    The measure comes first, for example `- sharpness error: *HiFA* < *SJC*: **agrees** (-0.3 [-0.5, -0.1])`.
    """
    better, worse, measure = expectation.better, expectation.worse, expectation.measure
    change = difference(scaled(table, better, measure), scaled(table, worse, measure))
    relation = ">" if expectation.sign > 0 else "<"
    asked = f"{MEASURES[measure]}: *{labels[better]}* {relation} *{labels[worse]}*"
    if not change.is_sure:
        return f"- {asked}: **inconclusive** ({change.mean:+.3g} {interval(change)})"
    agrees = np.sign(change.mean) == expectation.sign
    return f"- {asked}: **{'agrees' if agrees else 'contradicts'}** ({change.mean:+.3g} {interval(change)})"


def flicker_table(tables: list[dict]) -> list[str]:
    """Return a table of the flicker by kernel and number of samples, minus the flicker of the reference, x 1000.

    The differences are from the row without a kernel. The result is lines of Markdown.
    """
    still = as_array(tables, "reference", REFERENCE_SAMPLES)
    lines = [
        f"| kernel | {' | '.join(f'{samples} samples' for samples in SAMPLES)} |",
        "|" + "---|" * (len(SAMPLES) + 1),
    ]
    for kernel in KERNELS:
        cells = []
        for samples in SAMPLES:
            values, plain = as_array(tables, kernel, samples) - still, as_array(tables, "none", samples) - still
            mean = bootstrap(values)
            if kernel == "none":
                cells.append(f"{rounded(mean.mean)} {interval(mean)}")
                continue
            change = difference(values, plain)
            words = f"{change.mean:+.3g} {interval(change)}"
            cells.append(f"{rounded(mean.mean)} ({f'**{words}**' if change.is_sure else words})")
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    return lines


def flicker_verdicts(tables: list[dict]) -> list[str]:
    """Return the verdicts on the kernel of the paper, one line per number of samples."""
    lines = []
    for samples in SAMPLES:
        change = difference(as_array(tables, "1 1 1", samples), as_array(tables, "none", samples))
        word = "inconclusive" if not change.is_sure else "agrees" if change.mean < 0 else "contradicts"
        lines.append(
            f"- flicker at {samples} samples: *1 1 1* < *none*: **{word}** ({change.mean:+.3g} {interval(change)})"
        )
    return lines


def read_remarks(path: Path) -> dict[str, str]:
    """Return the handwritten remarks by claim. The headings of the Markdown file are the names of the claims."""
    remarks: dict[str, str] = {}
    if path.exists():
        for part in path.read_text().split("\n## ")[1:]:
            name, _, text = part.partition("\n")
            remarks[name.strip()] = text.strip()
    return remarks


def page(
    table: Table,
    flicker: dict[str, list[dict]],
    times: dict[str, float],
    labels: dict[str, str],
    settings: list[str],
    remarks: dict[str, str],
    folder: str,
) -> str:
    """Return the whole page.

    Args:
        table: The measures.
        flicker: Flicker of the assets by variant.
        times: Seconds of a run by variant, as returned by `times.side_by_side`.
        labels: Labels of the variants.
        settings: Lines of the introduction, as returned by `about.about`.
        remarks: Remarks by name of a claim. The key `summary` holds the summary of the page.
        folder: Folder of the figures, relative to the page.
    """
    lines = ["# Effect of each idea of the paper, on Toybox", ""]
    lines += [
        "<!-- Written by `python -m benchmarks.ablations`. The remarks come from ablations/remarks.md. -->",
        "",
    ]
    lines += [*settings, ""]
    if "summary" in remarks:
        lines += ["## Summary", "", remarks["summary"], ""]
    for claim in claims_about(table):
        lines += [f"## {claim.title} (figure {claim.figure})" if claim.figure[0].isdigit() else
                  f"## {claim.title} ({claim.figure})", ""]  # fmt: skip
        lines += [*claim_table(claim, table, labels), ""]
        if claim.expectations:
            lines += ["The paper expects:", "", *(verdict(e, table, labels) for e in claim.expectations), ""]
        if claim.name == "kernel":
            for name, tables in flicker.items():
                lines += [f"Flicker of a slow turntable, x 1000, for assets of the variant *{labels[name]}*. The "
                          f"flicker at {REFERENCE_SAMPLES} samples per ray is subtracted, so the table shows only the "
                          "flicker that sampling causes.", "", *flicker_table(tables), "",
                          "The paper expects:", "", *flicker_verdicts(tables), ""]  # fmt: skip
        if claim.name == "denoising":
            first = times[claim.variants[0]]
            each = (f"- *{labels[name]}*: {seconds / first:.2f}" for name, seconds in times.items())
            lines += [
                f"Time of a run divided by the time of a HiFA run ({first:.0f} s), measured with alternating runs:",
                "",
                *each,
                "",
            ]
        if claim.name in remarks:
            lines += [remarks[claim.name], ""]
        lines += [f"![{claim.title}]({folder}/{claim.name}.png)", f"![assets]({folder}/{claim.name}_assets.jpg)", ""]
    return "\n".join(lines)
