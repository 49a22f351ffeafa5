"""The result panel that all tabs share: progress, live preview, 3D model, turntable, metadata and downloads."""

import html
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import BlockContext
from gradio.components import Component
from gradio.events import Dependency

from ...optimization.initialization import PREVIEW_GRAY
from ..jobs import exports as files
from ..jobs.models import PRIORS
from ..jobs.previews import MODES
from ..jobs.run_store import FAILED, FINISHED, PAUSED, STOPPED, WAITING, Record
from ..jobs.status import RunStatus


DOWNLOADS = {"glb": "GLB", "obj": "OBJ (zip)", "ply": "PLY", "mp4": "MP4", "asset": "Asset (zip)", "run": "Run (zip)"}
RESUMABLE = (WAITING, PAUSED, STOPPED, FAILED)
Media = dict[str, tuple[tuple[str, int, str], ...]]  # by kind: path, modification time in ns, caption
TEXTURE_SIZES = (256, 512, 1024, 2048)
# The browser stores the selected mode, so that new pictures keep the mode without a round trip or server state.
CHOOSE_MODE = "(mode) => { document.getElementById('preview').dataset.mode = mode; return mode; }"
CSS = (
    "\n".join(f"#preview[data-mode={mode}] img:not(.{mode}) {{ display: none; }}" for mode in MODES)
    + """
/* Gradio's own gray for explanations has a contrast of 2.6 on white; this one has 4.8. */
:root { --body-text-color-subdued: #71717a; --block-info-text-color: #71717a; }
#preview:not([data-mode]) img:not(.color) { display: none; }
#preview { padding: 0 !important; } #mode label { padding: 3px 6px; font-size: var(--text-sm); }
#mode .wrap { gap: 5px; }
#preview, #preview .html-container, #preview .prose { height: 100%; }
#preview figure { margin: 0; display: flex; flex-direction: column; align-items: center; justify-content: center;
  min-height: 340px; background: GRAY; border-radius: var(--radius-md); overflow: hidden; }
/* The viewer is on the page before there is a model. Hide its column, so that the preview fills the row. */
.column:has(> #model.hidden) { display: none; }
#preview img { width: 100%; max-width: 420px; aspect-ratio: 1; object-fit: contain; margin: 0; }
#preview figure.empty { background: var(--background-fill-secondary); color: var(--body-text-color-subdued); }
#facts dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
#facts dt { color: var(--body-text-color-subdued); } #facts dd { margin: 0; overflow-wrap: anywhere; }
#facts, #hub-result, #share { overflow-wrap: anywhere; }
.hint a { padding: 0 !important; margin: 0 !important; }
.hint { font-size: var(--text-sm); color: var(--body-text-color-subdued); }
.hint b { color: var(--body-text-color); } .hint p { margin: 2px 0; }
:is(.examples, #views, #image-gallery, #guided-gallery) .fixed-height { min-height: 0; max-height: none; }
ul.runs { list-style: none; margin: 0; padding: 0; max-height: 420px; overflow-y: auto; }
ul.runs a { display: flex; gap: 10px; align-items: center; padding: 4px; color: var(--body-text-color);
  text-decoration: none; border-radius: var(--radius-sm); }
ul.runs a:hover, ul.runs a:focus-visible { background: var(--background-fill-secondary); }
ul.runs img, ul.runs span { width: 48px; height: 48px; margin: 0; border-radius: var(--radius-sm);
  background: var(--background-fill-secondary); flex: none; }
footer { flex-wrap: wrap; }
@media (max-width: 640px) { .gradio-container { padding: 8px !important; } #preview figure { min-height: 260px; } }
""".replace("GRAY", f"rgb({round(255 * PREVIEW_GRAY)} {round(255 * PREVIEW_GRAY)} {round(255 * PREVIEW_GRAY)})")
)


class ProgressLine(gr.HTML):
    """A progress bar with a line of text. Its value is `{"share": fraction in [0, 1], "text": text}`."""

    def __init__(self, **kwargs: Any):
        super().__init__(
            value={"text": "Ready.", "share": 0},
            html_template=(
                "<div role='status'><progress max='1' value='${value.share || 0}' aria-label='Share that is done'>"
                "</progress><p>${value.text}</p></div>"
            ),
            css_template=(
                "progress { appearance: none; display: block; width: 100%; height: 8px; border: 0; "
                "border-radius: 4px; overflow: hidden; background: var(--border-color-primary); } "
                "progress::-webkit-progress-bar { background: var(--border-color-primary); } "
                "progress::-webkit-progress-value { background: var(--color-accent); } "
                "progress::-moz-progress-bar { background: var(--color-accent); } "
                "p { margin: 6px 0 0; color: var(--body-text-color); font-variant-numeric: tabular-nums; }"
            ),
            container=True,
            **kwargs,
        )


class ResultPanel:
    """Components of the result panel, built in the current Gradio context.

    `values` returns one value for each component in `outputs`.

    Streams update only `live_outputs`, which exclude the run id. The event that starts or opens a run sets the id. A
    stream that follows a run of another window continues for a moment after the next run is started here, and must not
    overwrite the id of that run.

    Files are sent separately: `media` lists the files, and `load` sends each file to the browser once. There are two
    reasons:

    - A stream sends every value with every message, because Gradio's client merges a waiting message into the next
      message. On a busy computer, a value that is sent once and then skipped may never arrive.
    - A file must not arrive twice. The 3D viewer loads its code when the first model arrives, and stays hidden if the
      model arrives again during that time.
    """

    def __init__(self):
        self.run_id = gr.State("")
        self.media, self.loaded = gr.State({}), gr.State({})
        with gr.Row(equal_height=True):
            with gr.Column(scale=5, min_width=200):
                self.progress = ProgressLine(elem_id="progress")
            # These buttons are here instead of next to Generate, so that they are near the preview on a phone, too.
            with gr.Column(visible=False, min_width=110, scale=1) as self.stop_place:
                self.stop = gr.Button("Stop", variant="stop", min_width=110, elem_id="stop")
            with gr.Column(visible=False, min_width=110, scale=1) as self.resume_place:
                self.resume = gr.Button("Resume", variant="primary", min_width=110, elem_id="resume")
            with gr.Column(visible=False, min_width=110, scale=1) as self.later_place:
                self.later = gr.Button("Cancel", variant="stop", min_width=110, elem_id="cancel-files")
            with gr.Column(visible=False, min_width=130, scale=1) as self.files_place:
                self.make_files = gr.Button("Make the files", min_width=130, elem_id="make-files")
        with gr.Row():
            with gr.Column(min_width=280, elem_classes="tight"):
                self.preview = gr.HTML(preview_html({}), elem_id="preview", padding=False)
                self.mode = gr.Radio(
                    [(mode.capitalize(), mode) for mode in MODES], value="color", label="Preview shows",
                    elem_id="mode", container=True,
                )  # fmt: skip
            # The viewer is on the page from the start, but hidden: Gradio's viewer stays blank if the model arrives
            # before the viewer exists.
            with gr.Column(min_width=280, visible="hidden") as self.model_place:
                # The front of the object is +Z, at alpha = 90 degrees. The gray is the background of the preview.
                self.model = gr.Model3D(
                    label="3D model", clear_color=(PREVIEW_GRAY, PREVIEW_GRAY, PREVIEW_GRAY, 1.0),
                    camera_position=(90, 75, None), height=430, interactive=False, elem_id="model",
                )  # fmt: skip
        self.views = gr.Gallery(
            label="Sixteen views of each seed; the first sheet is reconstructed", columns=2, visible=False,
            object_fit="contain", allow_preview=False, interactive=False, elem_id="views", buttons=[], height="auto",
        )  # fmt: skip
        with gr.Column(visible=False) as self.results:
            with gr.Row():
                with gr.Column(min_width=280):
                    self.turntable = gr.Video(
                        label="Turntable: color and normals", autoplay=True, loop=True, interactive=False,
                        elem_id="turntable", buttons=[],
                    )  # fmt: skip
                with gr.Column(min_width=280):
                    self.metadata = gr.HTML(elem_id="facts", container=True, padding=True, label="Facts")
            with gr.Row():
                self.downloads = {
                    # `load` enables the buttons that have a file.
                    kind: gr.DownloadButton(
                        name, size="sm", min_width=90, elem_id=f"download-{kind}", interactive=False
                    )
                    for kind, name in DOWNLOADS.items()
                }
            with gr.Accordion("Make the mesh again", open=False, elem_id="mesh-step") as self.mesh_step:
                with gr.Row():
                    self.faces = gr.Slider(1000, 50_000, files.MESH.max_faces, step=1000, label="Faces, at most")
                    self.texture = gr.Radio(
                        list(TEXTURE_SIZES), value=files.MESH.texture_size, label="Texture, pixels per side"
                    )
                self.size_hint = gr.HTML(size_hint(files.MESH.max_faces, files.MESH.texture_size))
                with gr.Row():
                    self.extract = gr.Button("Make mesh", elem_id="extract")
                    self.cancel_extract = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel-extract")
        self.share = gr.HTML(elem_id="share")
        self.hub_place = gr.Column(visible=False)  # visible if the run has files

    def wire(self) -> None:
        """Connect the events within the panel."""
        self.mode.change(None, self.mode, None, js=CHOOSE_MODE, api_visibility="private")
        gr.on(
            [self.faces.change, self.texture.change], size_hint, [self.faces, self.texture], self.size_hint,
            queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        self.media.change(
            self.load, [self.media, self.loaded],
            [self.loaded, self.model, self.turntable, self.views, *self.downloads.values()],
            trigger_mode="always_last", queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip

    def load_after(self, event: Dependency) -> None:
        """Load the files after an event outside of the queue. Such an event does not trigger `media.change`."""
        event.then(
            self.load, [self.media, self.loaded],
            [self.loaded, self.model, self.turntable, self.views, *self.downloads.values()],
            queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip

    @property
    def outputs(self) -> list[Component | BlockContext]:
        """Components whose values `values` returns."""
        return [self.run_id, self.share, *self.live_outputs]

    @property
    def live_outputs(self) -> list[Component | BlockContext]:
        """Components whose values `live_values` returns."""
        return [
            self.media, self.progress, self.stop_place, self.resume_place, self.later_place, self.files_place,
            self.make_files, self.preview, self.model_place, self.metadata, self.results, self.mesh_step, self.extract,
            self.cancel_extract, self.hub_place,
        ]  # fmt: skip

    @classmethod
    def values(cls, shown: RunStatus) -> tuple:
        """Return one value for each of `outputs`."""
        return shown.run_id, share_html(shown.run_id), *cls.live_values(shown)

    @staticmethod
    def live_values(shown: RunStatus, offering: bool = True) -> tuple:
        """Return one value for each of `live_outputs`.

        Args:
            shown: State of the run.
            offering: Whether to display Resume if the run can be resumed.
        """
        have, record = shown.files, shown.record
        made = bool(have) and not shown.working
        draft = record is not None and bool(shown.run_id) and files.are_drafts(record)
        return (
            media_of(shown),
            {"text": html.escape(shown.text or "Ready."), "share": round(shown.share, 4)},
            gr.Column(visible=shown.working),
            gr.Column(visible=offering and resumable(shown)),
            gr.Column(visible=shown.exporting),
            gr.Column(visible=shown.settled and bool(shown.missing or draft)),
            gr.Button("Make the files" if shown.missing else "Make full files"),
            preview_html(shown.previews),
            gr.Column(visible=True if "glb" in have else "hidden"),
            facts_html(shown),
            gr.Column(visible=made),
            gr.Accordion(visible=bool(shown.run_id)),  # an example has no run to extract a mesh from
            gr.update(visible=not shown.making),
            gr.update(visible=shown.making),
            gr.Column(visible=made and bool(shown.run_id)),
        )

    def stream(self, states: Iterable[RunStatus], offering: bool = True) -> Iterator[tuple]:
        """Return an iterator over the `live_values` of each state."""
        return (self.live_values(state, offering) for state in states)

    @staticmethod
    def load(media: Media, loaded: Media) -> tuple:
        """Return updates for the components whose files in the browser differ from `media`.

        Args:
            media: Current files; see `media_of`.
            loaded: Files that the browser has.

        Returns:
            `media` as the new value of `loaded`, then one value each for the 3D model, the turntable, the views and
            each of `DOWNLOADS`.
        """

        def file(kind: str) -> Any:
            path = Path(media[kind][0][0]) if kind in media else None
            # A missing file was replaced by a newer file, which the next event loads.
            return path if path is not None and path.is_file() else None

        def changed(kind: str, value: Any) -> Any:
            return gr.skip() if media.get(kind) == loaded.get(kind) else value

        views = [(Path(path), said) for path, _, said in media.get("views", ())]
        downloads = (gr.update(value=file(kind), interactive=kind in media) for kind in DOWNLOADS)
        return (
            media,
            changed("glb", file("glb")),
            changed("mp4", file("mp4")),
            changed("views", gr.update(value=views, visible=bool(views))),
            *(changed(kind, value) for kind, value in zip(DOWNLOADS, downloads, strict=True)),
        )


def resumable(shown: RunStatus) -> bool:
    """Return whether the run is idle and not finished."""
    return shown.record is not None and shown.settled and shown.record.status in RESUMABLE


def media_of(shown: RunStatus) -> Media:
    """Return the files of a state: by kind, a tuple `(path, modification time in ns, caption)` for each file.

    The modification time distinguishes a new file from an old file with the same path.
    """
    files_of = {kind: [(path, "")] for kind, path in shown.files.items()}
    if shown.views:
        files_of["views"] = list(shown.views)
    return {
        kind: tuple((str(path), path.stat().st_mtime_ns, said) for path, said in entries)
        for kind, entries in files_of.items()
    }


def preview_html(previews: dict[str, str]) -> str:
    """Return the HTML of all preview pictures. The style sheet displays only the picture of the selected mode."""
    if not previews:
        return "<figure class='empty'><p>The preview appears here a moment after you start.</p></figure>"
    images = "".join(
        f"<img class='{mode}' src='{previews[mode]}' alt='{mode.capitalize()} of the object as it takes shape'>"
        for mode in MODES
    )
    return f"<figure>{images}</figure>"


def facts_html(shown: RunStatus) -> str:
    """Return the metadata of a run as HTML; empty without a run."""
    record = shown.record
    if record is None:
        return ""
    metadata = {
        "Prompt": record.request.prompt or "none",
        "Seed": record.request.seed,
        "Prior": prior_name(record.request.prior) if record.request.prompt else "none, reconstruction alone",
        "Steps": f"{record.step:,} of {record.steps:,}",
        **mesh_metadata(record),
        "Status": {FINISHED: "finished", STOPPED: "stopped before the end"}.get(record.status, record.status),
    }
    stale = {step for kind, step in record.made_at.items() if kind in record.files} - {record.step}
    if shown.settled and stale:
        metadata["Files"] = (
            f"from step {', '.join(map(str, sorted(stale)))}; files of step {record.step:,} can be made"
        )
    elif shown.settled and files.are_drafts(record):
        metadata["Files"] = "quick drafts, made when the run was stopped; files in full quality can be made"
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in metadata.items())
    return f"<dl>{rows}</dl>"


def prior_name(key: str) -> str:
    """Return the display name of a prior; for a prior that the app does not offer, return the key."""
    return next((prior.name for prior in PRIORS if prior.key == key), key)


def mesh_metadata(record: Record) -> dict[str, str]:
    """Return the metadata of the mesh by label; empty without a mesh."""
    if "faces" not in record.metadata:
        return {}
    side = record.metadata["texture_size"]
    return {
        "Faces": f"{record.metadata['faces']:,}",
        "Texture": f"{side} × {side}",
        "GLB": f"{record.metadata['glb_megabytes']:.2f} MB",
    }


def size_hint(faces: int, texture: int) -> str:
    """Return the estimated size of a GLB as HTML."""
    megabytes = files.predicted_megabytes(int(faces), int(texture))
    return f"<p class='hint'>About <b>{megabytes:.1f} MB</b> as GLB.</p>"


def share_html(run_id: str) -> str:
    """Return HTML with the address of a run. The address is relative, so that it works behind any proxy."""
    if not run_id:
        return ""
    return (
        f"<p class='hint'>Address of this run: <a href='?run={run_id}'>?run={run_id}</a>. Anyone with the address can "
        "open, resume and download the run.</p>"
    )
