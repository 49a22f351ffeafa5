"""Figures of the results page: plots of differences with intervals, and sheets of assets."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hifa import HiFAAsset

from ..text_to_3d import ELEVATION
from .claims import MEASURES, Claim
from .report import Table, scaled
from .statistics import difference


SIDE, AZIMUTHS, SHOWN_PROMPTS = 112, (0.0, 135.0), 6


def plot_differences(claim: Claim, table: Table, labels: dict[str, str], path: Path) -> None:
    """Plot the differences from the first variant of a claim with their intervals, one panel per measure."""
    from matplotlib.figure import Figure

    reference, others = claim.variants[0], claim.variants[1:]
    figure = Figure(figsize=(2.6 * len(claim.measures), 0.9 + 0.38 * len(others)), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(claim.measures), sharey=True, squeeze=False)[0]
    for axis, measure in zip(axes, claim.measures, strict=True):
        for row, name in enumerate(others):
            change = difference(scaled(table, name, measure), scaled(table, reference, measure))
            if np.isfinite(change.mean):
                color = "tab:red" if change.is_sure else "tab:gray"
                axis.plot([change.low, change.high], [row, row], color=color, linewidth=2)
                axis.plot([change.mean], [row], "o", color=color, markersize=5)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(others)), [labels[name] for name in others])
        axis.set_ylim(len(others) - 0.5, -0.5)
        axis.set_title(MEASURES[measure], fontsize=9)
        axis.tick_params(labelsize=8)
    figure.suptitle(f"difference from {labels[reference]}, 95 % intervals", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def asset_sheet(
    claim: Claim, assets: dict[str, list[HiFAAsset]], prompts: list[str], labels: dict[str, str]
) -> Image.Image:
    """Draw a sheet with one row per prompt and one column per variant. Each cell shows two views of the asset.

    Args:
        claim: Claim whose variants are drawn.
        assets: Assets of the first seed by variant, in the order of `prompts`.
        prompts: Prompts. Only the first `SHOWN_PROMPTS` are drawn.
        labels: Labels of the variants.
    """
    left, top, wide = 150, 24, SIDE * len(AZIMUTHS) + 8
    shown = list(range(len(prompts)))[:SHOWN_PROMPTS]
    sheet = Image.new("RGB", (left + wide * len(claim.variants), top + SIDE * len(shown)), "white")
    draw, bold, plain = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(12)
    for column, name in enumerate(claim.variants):
        draw.text((left + wide * column + 4, 5), labels[name], "black", bold)
        for row in shown:
            draw.text((6, top + SIDE * row + SIDE // 2 - 8), prompts[row], "black", plain)
            asset = assets[name][row]
            for index, azimuth in enumerate(AZIMUTHS):
                pixels = asset.render(asset.camera(azimuth, ELEVATION), SIDE).color.numpy()
                tile = Image.fromarray((pixels * 255).round().astype(np.uint8))
                sheet.paste(tile, (left + wide * column + SIDE * index, top + SIDE * row))
    return sheet
