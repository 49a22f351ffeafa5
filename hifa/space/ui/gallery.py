"""Gallery of finished examples, which open without computation. `python -m examples.gallery` generates the examples.

Each folder `examples/gallery/<name>/` contains `record.json`, `mesh.glb`, `turntable.mp4`, `previews.json`, and the
thumbnail `preview.jpg`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from ..jobs.run_store import FINISHED, PREVIEWS, Record, Request
from ..jobs.status import RunStatus
from .result_panel import ResultPanel
from .run_settings import RunSettings


FOLDER = Path(__file__).parents[3] / "examples" / "gallery"
FILES = {"glb": "mesh.glb", "mp4": "turntable.mp4"}


@dataclass(frozen=True)
class Example:
    """A finished example.

    Args:
        path: Folder of the example.
        record: Record of the run that generated the example.
    """

    path: Path
    record: Record

    @property
    def picture(self) -> Path:
        """Path of the thumbnail."""
        return self.path / "preview.jpg"

    @property
    def caption(self) -> str:
        """Prompt of the example, or its name without a prompt."""
        return self.record.request.prompt or self.path.name.replace("-", " ")

    def shown(self) -> RunStatus:
        """Return the state for the result panel. The run id is empty, so the example cannot be resumed."""
        files = {kind: self.path / name for kind, name in FILES.items()}
        of = "" if self.record.request.kind == "text" else ", from a picture"
        text = f"An example: {self.caption}{of}, seed {self.record.request.seed}, {self.record.steps:,} steps."
        return RunStatus(
            "", self.record, text, 1.0, None, json.loads((self.path / PREVIEWS).read_text("utf-8")), files
        )


def examples(kind: str, folder: Path = FOLDER) -> list[Example]:
    """Return the examples of a tab, sorted by name.

    Args:
        kind: Kind of the runs, see `Request`.
        folder: Folder of the gallery.
    """
    found = [read(path.parent) for path in sorted(folder.glob("*/record.json"))]
    return [example for example in found if example.record.request.kind == kind]


def read(path: Path) -> Example:
    """Read the example in a folder."""
    values = json.loads((path / "record.json").read_text("utf-8"))
    request = Request(**values.pop("request"))
    return Example(path, Record(request, FINISHED, **values))


class ExampleGallery:
    """Gallery component with the examples of a tab. The constructor adds it to the current `gr.Blocks` context.

    A click on an example sets the inputs of the tab to the values of the example.

    Args:
        kind: Kind of the runs, see `Request`.
        name: Prefix of the element id.
        settings: Run settings of the tab.
        prompt: Prompt input of the tab, if the tab has one.
        guidance_end: Slider for the end of the image guidance, if the tab has one.
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
        """Connect clicks to the result panel and to the inputs of the tab, except for the picture of an image tab.

        Args:
            panel: Result panel that shows the example.
            pending: State that is true while a run of this page is in progress.
            refuse: Function that raises an error for the user if its argument, the value of `pending`, is true.
            streams: Events that stream to the panel. A click cancels them.
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

        # The cancellation has its own listener. A listener that also calls a function cancels after the call, so a
        # stream would overwrite the example.
        self.gallery.select(None, None, None, cancels=streams, api_visibility="private")
        # The event must be queued. Otherwise Gradio does not fire the `change` event of the state, which loads the
        # files.
        self.gallery.select(
            show, pending, [*prompt, *end, *self.settings.inputs, *panel.outputs], concurrency_limit=None,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
