"""Finished results to look at: they cost nothing. `python -m examples.gallery` makes them.

examples/gallery/<name>/record.json, mesh.glb, turntable.mp4, previews.json, and preview.jpg for the list
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from .panel import ResultPanel
from .settings import RunSettings
from .shown import Shown
from .store import FINISHED, PREVIEWS, Record, Request


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
        return self.record.request.prompt or self.path.name.replace("-", " ")

    def shown(self) -> Shown:
        """As a run would be, without one to resume."""
        files = {kind: self.path / name for kind, name in FILES.items()}
        of = "" if self.record.request.kind == "text" else ", from a picture"
        text = f"An example: {self.caption}{of}, seed {self.record.request.seed}, {self.record.steps:,} steps."
        return Shown("", self.record, text, 1.0, None, json.loads((self.path / PREVIEWS).read_text()), files)


def examples(kind: str, folder: Path = FOLDER) -> list[Example]:
    """Those for a tab, by name.

    Args:
        kind: As in `Request`.
    """
    found = [read(path.parent) for path in sorted(folder.glob("*/record.json"))]
    return [example for example in found if example.record.request.kind == kind]


def read(path: Path) -> Example:
    facts = json.loads((path / "record.json").read_text())
    request = Request(**facts.pop("request"))
    return Example(path, Record(request, FINISHED, **facts))


class ExampleGallery:
    """The examples of a tab, built where it stands.

    Args:
        kind: Of its runs.
        name: Prefix of the element id.
        settings, prompt, guidance_end: Of the tab; they get what an example was made with.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        settings: RunSettings,
        prompt: gr.Textbox | None = None,
        guidance_end: gr.Slider | None = None,
    ):
        self.settings, self.prompt, self.guidance_end, self.examples = settings, prompt, guidance_end, examples(kind)
        self.gallery = gr.Gallery(
            [(str(example.picture), example.caption) for example in self.examples],
            label="Finished examples: click to look at one", columns=3, object_fit="cover", allow_preview=False,
            interactive=False, elem_id=f"{name}-examples", elem_classes="examples", buttons=[], height="auto",
            visible=bool(self.examples),
        )  # fmt: skip

    def wire(self, panel: ResultPanel, pending: gr.State, refuse: Callable[[bool], None], streams: list) -> None:
        """Show an example where it is clicked at, with what it was made with, but for the picture of an image tab.

        Args:
            refuse: Raises an error for the visitor if `pending`.
            streams: What writes to the panel until then.
        """
        prompt, end = ([] if part is None else [part] for part in (self.prompt, self.guidance_end))

        def show(pending: bool, event: gr.SelectData) -> tuple:
            refuse(pending)
            example = self.examples[event.index]
            request = example.record.request
            entered = [request.prompt for _ in prompt] + [
                request.settings.get("image_guidance_end", gr.skip()) for _ in end
            ]
            entered += self.settings.restored(request)
            return *entered, *panel.values(example.shown())

        # Two listeners: one that also calls a function cancels after that, and a stream would write over the example.
        self.gallery.select(None, None, None, cancels=streams, api_visibility="private")
        # Through the queue: Gradio tells the browser of a changed state, which brings the files, by no other way.
        self.gallery.select(
            show, pending, [*prompt, *end, *self.settings.inputs, *panel.outputs], concurrency_limit=None,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
