"""Sheets of sixteen views in the folder of a run: a given sheet, or a generated sheet with a score for each seed."""

import json
from pathlib import Path

import PIL.Image

from ...storage.checkpoint import write_text_atomically
from ...storage.files import atomically


GIVEN, MADE, SCORES = "sheet.png", "sheets", "scores.json"
CONTACT = ".contact.jpg"  # suffix of the copies for display, with the views in rows
COLUMNS = 4


class Sheets:
    """The view sheets of a run.

    Args:
        path: Folder of the run.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def given(self) -> bool:
        """Whether there is a given sheet."""
        return (self.path / GIVEN).is_file()

    def give(self, image: PIL.Image.Image) -> None:
        """Store a sheet that was uploaded or made by another run, for use without changes."""
        with atomically(self.path / GIVEN) as partial:
            image.save(partial)

    def scores(self) -> dict[int, float]:
        """Return the scores of the generated sheets by seed, best first; see `multiview.selection`."""
        try:
            scores = json.loads((self.path / MADE / SCORES).read_text("utf-8"))
        except FileNotFoundError:
            return {}
        return {int(seed): score for seed, score in sorted(scores.items(), key=lambda item: -item[1])}

    def missing(self, seeds: tuple[int, ...]) -> list[int]:
        """Return the seeds without a generated sheet."""
        scores = self.scores()
        return [seed for seed in seeds if seed not in scores]

    def add(self, seed: int, image: PIL.Image.Image, score: float) -> None:
        """Store the generated sheet of a seed with its score."""
        folder = self.path / MADE
        folder.mkdir(exist_ok=True)
        with atomically(folder / f"{seed}.png") as partial:
            image.save(partial)
        write_text_atomically(folder / SCORES, json.dumps({**self.scores(), seed: score}))

    def pictures(self) -> list[tuple[Path, str]]:
        """Return the path and caption of all sheets for display, starting with the sheet that is used."""
        if self.given:
            return [(_contact(self.path / GIVEN), "given sheet")]
        scores = self.scores()
        # A single score is not informative, so scores are shown for comparison only.
        said = {seed: f" · views agree {score:.0%}" if len(scores) > 1 else "" for seed, score in scores.items()}
        return [(_contact(self.path / MADE / f"{seed}.png"), f"seed {seed}{said[seed]}") for seed in scores]

    def open(self, seed: int) -> PIL.Image.Image:
        """Open the generated sheet of a seed."""
        with PIL.Image.open(self.path / MADE / f"{seed}.png") as image:
            return image.copy()

    def best(self) -> PIL.Image.Image:
        """Return the given sheet, or the generated sheet with the best score.

        Raises:
            ValueError: If there is no sheet.
        """
        if self.given:
            with PIL.Image.open(self.path / GIVEN) as image:
                return image.copy()
        seeds = list(self.scores())
        if not seeds:
            raise ValueError("There are no views to reconstruct. Upload a picture or a sheet of sixteen views.")
        return self.open(seeds[0])


def _contact(sheet: Path) -> Path:
    """Return the path of a sheet's `contact_picture`. The first call creates the file."""
    path = sheet.with_suffix(CONTACT)
    if not path.is_file():
        with atomically(path) as partial, PIL.Image.open(sheet) as image:
            contact_picture(image).save(partial, "jpeg", quality=85)
    return path


def contact_picture(sheet: PIL.Image.Image, side: int = 128) -> PIL.Image.Image:
    """Arrange the views of a sheet, which are side by side, in rows of four for display.

    Args:
        sheet: Views of equal size in a single row.
        side: Pixels per side of each view in the result.
    """
    size, count = sheet.height, sheet.width // sheet.height
    rows = -(-count // COLUMNS)
    picture = PIL.Image.new("RGB", (COLUMNS * side, rows * side), "white")
    for view in range(count):
        tile = sheet.crop((view * size, 0, (view + 1) * size, size)).convert("RGBA").resize((side, side))
        picture.paste(tile, (view % COLUMNS * side, view // COLUMNS * side), tile)
    return picture
