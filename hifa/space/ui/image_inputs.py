"""Inputs of the two image tabs: picture, matte, framing, and sixteen views, which are generated or uploaded."""

import html
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from gradio.blocks import BlockContext
from gradio.components import Component
from gradio.events import Dependency

from ..jobs.errors import explain
from ..jobs.run_store import PICTURE, Request, RunFolder, RunStore, UnknownRunError
from ..jobs.view_sheets import GIVEN, Sheets
from .requests import MAX_SEEDS, Guided, user_errors
from .validation import PhotoInput, read_photo


ONLY_TOYBOX = (
    "<div class='hint'><p>The multi-view model of this app supports Toybox's kinds of objects only. Its views of "
    "other objects are poor. For other objects, upload a sheet from another model.</p></div>"
)
ONE_STEP = (
    "This model makes its views in one step. The views are the mean of all objects that fit the picture, so they are "
    "almost the same for every seed. With more steps the views differ more and are less often correct."
)
FORMATS: list[Literal["upload", "webcam", "clipboard"]] = ["upload", "clipboard"]
SAMPLES = Path(__file__).parents[3] / "examples" / "photos"


class ImageInputs:
    """Inputs of an image tab. The constructor adds them to the current `gr.Blocks` context.

    `given` converts the values of `inputs` to a `Guided`.

    Args:
        name: Prefix of the element ids.
        store: Store of the runs.
        view_steps: Default number of denoising steps of the multi-view model. A single-step model generates the mean
            of all objects that fit the picture, which is almost the same for every seed.
    """

    def __init__(self, name: str, store: RunStore, view_steps: int):
        self.store = store
        self.views_run, self.chosen = gr.State(""), gr.State(None)
        with gr.Row():
            self.photo = PhotoInput(
                type="filepath", label="Picture of one object", sources=FORMATS, image_mode=None, height=220,
                min_width=150, elem_id=f"{name}-photo",
            )  # fmt: skip
            self.matte = gr.Image(
                label="What the model sees", interactive=False, height=220, min_width=150, elem_id=f"{name}-matte",
                buttons=[], alt_text="The object cut out of the picture, on white", format="png",
            )  # fmt: skip
        self.matte_note = gr.HTML(elem_id=f"{name}-matte-note")
        self.samples = sample_pictures()
        self.sample = gr.Gallery(
            [(str(path), path.stem.replace("-", " ")) for path in self.samples], label="Or one of these",
            columns=max(1, len(self.samples)), height=130, object_fit="contain", allow_preview=False,
            interactive=False, buttons=[], elem_id=f"{name}-samples", visible=bool(self.samples),
        )  # fmt: skip
        one_step = view_steps == 1  # true for the embedded model
        gr.HTML(ONLY_TOYBOX, elem_id=f"{name}-limits", visible=one_step)
        self.object_share = gr.Slider(
            0.3, 1.0, 0.78, step=0.01, label="Size of the object in the frame", elem_id=f"{name}-share"
        )
        self.elevation = gr.Slider(
            -10, 40, 20, step=1, label="Camera above the horizon, degrees", elem_id=f"{name}-elevation",
            info="0 looks level at the object, 30 a little from above.",
        )  # fmt: skip
        with gr.Accordion("Sixteen views", open=False, elem_id=f"{name}-views"):
            gr.Markdown(
                "A multi-view model generates views of the object from sixteen sides. Make sheets of views and choose "
                "the best, or upload a sheet. Otherwise the app makes and chooses sheets when the run starts."
            )
            self.seeds = gr.Slider(
                1, MAX_SEEDS, 1, step=1, label="How many to choose from", elem_id=f"{name}-seeds",
                info=ONE_STEP if one_step else "Each sheet has its own seed. Sheets with consistent views come first.",
            )  # fmt: skip
            self.view_steps = gr.Slider(
                1, max(100, view_steps), view_steps, step=1, label="Denoising steps of the views",
                elem_id=f"{name}-view-steps",
            )  # fmt: skip
            self.make = gr.Button("Make views", elem_id=f"{name}-make-views")
            self.gallery = gr.Gallery(
                label="Sheets of views, best first; the selected sheet is used", columns=2, object_fit="contain",
                allow_preview=False, interactive=False, elem_id=f"{name}-gallery", visible=False, buttons=[],
            )  # fmt: skip
            self.sheet = PhotoInput(
                type="filepath", label="Or a sheet: sixteen square views side by side", sources=FORMATS,
                image_mode=None, height=110, elem_id=f"{name}-sheet",
            )  # fmt: skip

        self.used = gr.HTML(elem_id=f"{name}-used")

    @property
    def inputs(self) -> list[gr.components.Component]:
        """Components whose values `given` converts, in this order."""
        return [
            self.photo, self.object_share, self.elevation, self.sheet, self.views_run, self.chosen, self.seeds,
            self.view_steps,
        ]  # fmt: skip

    @staticmethod
    def given(
        photo: str | None,
        share: float,
        elevation: float,
        sheet: str | None,
        views_run: str,
        chosen: int | None,
        seeds: float,
        view_steps: float,
    ) -> Guided:
        """Convert the values of `inputs` to a `Guided`."""
        made = (views_run, chosen) if views_run and chosen is not None else None
        return Guided(photo, float(share), float(elevation), sheet, made, int(seeds), int(view_steps))

    def wire(self) -> None:
        """Connect the events within the inputs."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on(
            [self.photo.change, self.object_share.input], self.show_matte, [self.photo, self.object_share],
            [self.matte, self.matte_note], trigger_mode="always_last", concurrency_limit=4, **quiet,
        )  # fmt: skip
        views = [self.views_run, self.chosen, self.gallery]
        # Views are valid only for the picture, object size and elevation for which they were generated.
        seen_otherwise = gr.on(
            [self.object_share.input, self.elevation.input], forget, None, views, queue=False,
            trigger_mode="always_last", **quiet,
        )  # fmt: skip
        # The latest input is used. A new picture replaces a sheet, an uploaded sheet replaces generated views, and new
        # views replace an uploaded sheet, see `show_views`.
        photo = gr.on(
            [self.photo.input, self.photo.clear],
            self._on_photo,
            self.photo,
            [*views, self.sheet],
            queue=False,
            **quiet,
        )
        sheet = self.sheet.input(self._on_sheet, self.sheet, views, queue=False, **quiet)
        sample = self.sample.select(self._on_sample, None, [self.photo, *views, self.sheet], queue=False, **quiet)
        chosen = self.gallery.select(self.choose, self.views_run, self.chosen, queue=False, **quiet)
        for event in (seen_otherwise, photo, sample, sheet, chosen):
            self.tell_source(event)
        gr.on(
            [self.photo.change, self.sheet.change, self.chosen.change], self.source,
            [self.photo, self.sheet, self.chosen], self.used, queue=False, trigger_mode="always_last", **quiet,
        )  # fmt: skip

    def tell_source(self, event: Dependency) -> None:
        """Update the message of `source` after an event.

        A state that is changed by an event outside of the queue does not reliably fire its `change` event.
        """
        event.then(
            self.source, [self.photo, self.sheet, self.chosen], self.used, queue=False, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip

    @property
    def views(self) -> list[Component | BlockContext]:
        """Outputs of `show_views`."""
        return [self.views_run, self.chosen, self.gallery, self.sheet]

    @staticmethod
    def _on_photo(photo: str | None) -> tuple[Any, ...]:
        return *forget(), gr.skip() if photo is None else None

    def _on_sample(self, event: gr.SelectData) -> tuple[Any, ...]:
        return str(self.samples[event.index]), *forget(), None

    @staticmethod
    def _on_sheet(sheet: str | None) -> tuple[Any, ...]:
        return forget() if sheet is not None else (gr.skip(),) * 3

    @staticmethod
    def source(photo: str | None, sheet: str | None, chosen: int | None) -> str:
        """Return an HTML message that names the input of the next run.

        Order of precedence, as in `Actions`: sheet, selected views, picture.
        """
        if sheet is not None:
            text = "The uploaded sheet is used."
        elif chosen is not None:
            text = f"The views of seed {chosen} are used."
        elif photo is not None:
            text = "Views of the picture are made first."
        else:
            text = ""
        return f"<p class='hint' role='status'>{text}</p>" if text else ""

    @property
    def restorable(self) -> list[Component | BlockContext]:
        """Components whose values `restored` returns."""
        return [self.object_share, self.elevation, self.seeds, self.view_steps, self.photo, *self.views]

    def restored(self, folder: RunFolder, request: Request) -> list[Any]:
        """Return the values of `restorable` for a run: the settings, the cut-out picture and the views."""
        views = self.show_views(folder.id)
        sheet = folder.path / GIVEN if Sheets(folder.path).given else None
        numbers = request.object_share, request.elevation_deg, max(1, len(request.view_seeds))
        picture = folder.path / PICTURE
        photo = str(picture) if picture.is_file() else None
        return [*numbers, request.view_steps or self.view_steps.value, photo, *views[:3], sheet and str(sheet)]

    @staticmethod
    def show_matte(path: str | None, share: float) -> tuple[Any, ...]:
        """Return the object cut out of a picture, and HTML notes on the picture."""
        if path is None:
            return None, ""
        try:
            prepared = read_photo(path, share)
        except (ValueError, TypeError, OSError) as error:
            message = explain(error)
            gr.Warning(message, duration=20)
            # Clear the matte of the previous picture.
            return None, f"<div class='hint' role='alert'><p>{html.escape(message)}</p></div>"
        found = {"alpha": "its transparency", "white": "its white background", "rembg": "rembg"}[prepared.background]
        notes = "".join(f"<p>{warning}</p>" for warning in prepared.warnings)
        return prepared.preview(), f"<div class='hint'><p>Cut out by {found}.</p>{notes}</div>"

    def show_views(self, run_id: str) -> tuple[Any, ...]:
        """Show the generated sheets of a run, best first. Select the first sheet and clear an uploaded sheet.

        Returns:
            One value for each of `views`.
        """
        try:
            sheets = Sheets(self.store.open(run_id).path)
        except UnknownRunError:
            return *forget(), gr.skip()
        scores = sheets.scores()
        if sheets.given or not scores:
            return *forget(), gr.skip()
        return run_id, next(iter(scores)), gr.Gallery(sheets.pictures(), visible=True, selected_index=0), None

    def choose(self, views_run: str, event: gr.SelectData) -> int | None:
        """Return the seed of the selected sheet."""
        with user_errors():
            seeds = list(Sheets(self.store.open(views_run).path).scores())
        return seeds[event.index] if event.index < len(seeds) else None


def sample_pictures() -> list[Path]:
    """Return the paths of the sample pictures, which `python -m examples.photos` generates.

    The list is empty if the package is installed without the repository.
    """
    return sorted(SAMPLES.glob("*.png"))


def forget() -> tuple[Any, ...]:
    """Return values that clear the generated views."""
    return "", None, gr.Gallery(None, visible=False)
