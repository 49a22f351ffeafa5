"""Finished results to look at: they cost nothing. `python -m examples.gallery` makes them.

examples/gallery/<name>/record.json, mesh.glb, turntable.mp4, preview.jpg
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from .shown import Shown
from .store import FINISHED, Record, Request


FOLDER = Path(__file__).parents[2] / "examples" / "gallery"
FILES = {"glb": "mesh.glb", "mp4": "turntable.mp4"}


@dataclass(frozen=True)
class Example:
    """A finished result.

    Args:
        path: Its folder.
        record: What made it.
    """

    path: Path
    record: Record

    @property
    def picture(self) -> Path:
        return self.path / "preview.jpg"

    @property
    def caption(self) -> str:
        return self.record.request.prompt or "from a picture"

    def shown(self) -> Shown:
        """As a run would be, without one to resume."""
        uri = "data:image/jpeg;base64," + base64.b64encode(self.picture.read_bytes()).decode()
        files = {kind: self.path / name for kind, name in FILES.items()}
        text = f"An example: {self.caption}, seed {self.record.request.seed}, {self.record.steps:,} steps."
        return Shown("", self.record, text, 1.0, None, {mode: uri for mode in ("colour",)}, files)


def examples(folder: Path = FOLDER) -> list[Example]:
    """All that are there, by name."""
    return [read(path.parent) for path in sorted(folder.glob("*/record.json"))]


def read(path: Path) -> Example:
    facts = json.loads((path / "record.json").read_text())
    request = Request(**facts.pop("request"))
    return Example(path, Record(request, FINISHED, **facts))
