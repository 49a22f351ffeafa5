"""The page of results: tables with intervals, the paper's expectations with verdicts, remarks, and figures."""

from pathlib import Path

import numpy as np

from .claims import MEASURES, Claim, Expectation, claims_about
from .flicker import KERNELS, REFERENCE_SAMPLES, SAMPLES, as_array
from .statistics import Estimate, bootstrap, difference


SCALES = {"z_variance": 1000.0}
# Arrays `(prompts, seeds)` by variant and measure. The diversity, one number for all seeds, is `(prompts, 1)`.
Table = dict[str, dict[str, np.ndarray]]


def scaled(table: Table, variant: str, measure: str) -> np.ndarray:
    return table[variant][measure] * SCALES.get(measure, 1.0)


def cell(table: Table, variant: str, reference: str, measure: str) -> str:
    """Return the mean, and its difference to the reference with the interval, in bold if the interval excludes 0."""
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
    """Return one line: the expectation, and whether the interval agrees, contradicts or is inconclusive."""
    better, worse, measure = expectation.better, expectation.worse, expectation.measure
    change = difference(scaled(table, better, measure), scaled(table, worse, measure))
    more = "more" if expectation.sign > 0 else "less"
    asked = f"{labels[better]}: {more} {MEASURES[measure]} than {labels[worse]}"
    if not change.is_sure:
        return f"- {asked}: **not seen** ({change.mean:+.3g} {interval(change)})"
    agrees = np.sign(change.mean) == expectation.sign
    return f"- {asked}: **{'agrees' if agrees else 'contradicts'}** ({change.mean:+.3g} {interval(change)})"


def flicker_table(tables: list[dict]) -> list[str]:
    """Return the flicker above that of the reference, in thousandths, by kernel and samples, as lines of Markdown.

    Differences are to the results without a kernel.
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
    """Return what the paper expects of its kernel, as one line per number of samples."""
    lines = []
    for samples in SAMPLES:
        change = difference(as_array(tables, "1 1 1", samples), as_array(tables, "none", samples))
        word = "not seen" if not change.is_sure else "agrees" if change.mean < 0 else "contradicts"
        lines.append(
            f"- less flicker with 1 1 1 at {samples} samples: **{word}** ({change.mean:+.3g} {interval(change)})"
        )
    return lines


def read_remarks(path: Path) -> dict[str, str]:
    """Return the handwritten remarks on each claim: the sections of a Markdown file by heading."""
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
        times: Seconds of a run by variant; see `times.side_by_side`.
        labels: Labels of the variants.
        settings: Lines about how the figures were made.
        remarks: Remarks by name of a claim, or `summary`.
        folder: Folder of the figures, relative to the page.
    """
    lines = ["# What each idea of the paper buys, on Toybox", ""]
    lines += [
        "<!-- Written by `python -m benchmarks.ablations`; its remarks are those of ablations/remarks.md. -->",
        "",
    ]
    lines += [*settings, ""]
    if "summary" in remarks:
        lines += [remarks["summary"], ""]
    for claim in claims_about(table):
        lines += [f"## {claim.title} (figure {claim.figure})" if claim.figure[0].isdigit() else
                  f"## {claim.title} ({claim.figure})", ""]  # fmt: skip
        lines += [*claim_table(claim, table, labels), ""]
        if claim.expectations:
            lines += ["The paper expects:", "", *(verdict(e, table, labels) for e in claim.expectations), ""]
        if claim.name == "kernel":
            for name, tables in flicker.items():
                lines += [f"Flicker of a slow turntable above that of {REFERENCE_SAMPLES} samples, in thousandths,"
                          f" of assets optimized as {labels[name]}:", "", *flicker_table(tables), "",
                          "The paper expects:", "", *flicker_verdicts(tables), ""]  # fmt: skip
        if claim.name == "denoising":
            first = times[claim.variants[0]]
            each = (f"{labels[name]} {seconds / first:.2f}" for name, seconds in times.items())
            lines += [f"Time of a run over that of HiFA ({first:.0f} s), all taking turns: {', '.join(each)}.", ""]
        if claim.name in remarks:
            lines += [remarks[claim.name], ""]
        lines += [f"![{claim.title}]({folder}/{claim.name}.png)", f"![assets]({folder}/{claim.name}_assets.jpg)", ""]
    return "\n".join(lines)
