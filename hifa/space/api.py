"""The app for programs: named endpoints with plain values, over HTTP, for `gradio_client` and as MCP tools.

Each is bound to a button that is never shown, because Gradio types and serves files by components.
"""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .actions import Actions, Guided, told
from .files import MeshOptions
from .inputs import PhotoInput
from .priors import RECONSTRUCTION_PRESETS
from .settings import settings_of
from .shown import Shown, shown
from .store import RunFolder
from .worker import Worker, current


FILES = ("glb", "obj", "ply", "mp4", "asset", "run")


class Api:
    """The endpoints.

    Args:
        gpu, export: Queue options of the work on the GPU and of the making of files.
    """

    def __init__(self, worker: Worker, actions: Actions, gpu: dict[str, Any], export: dict[str, Any]):
        self.worker, self.actions, self.store = worker, actions, worker.store
        self.gpu, self.export = gpu, export

    def build(self) -> None:
        """Add them to the page that is being built."""
        priors = list(self.actions.shelf.priors)
        with gr.Column(visible=False):
            prompt, negative = gr.Textbox(label="Prompt"), gr.Textbox("", label="Negative prompt")
            prior = gr.Dropdown(priors, value=self.actions.shelf.default.key, label="Prior")
            seed, steps = gr.Number(0, label="Seed", precision=0), gr.Number(None, label="Steps", precision=0)
            photo = PhotoInput(type="filepath", label="Picture", image_mode=None)
            elevation = gr.Number(20, label="Elevation, degrees")
            sheet = PhotoInput(type="filepath", label="Sheet of sixteen views", image_mode=None)
            guidance_end = gr.Number(0.5, label="Image guidance end")
            run_id = gr.Textbox(label="Run")
            faces, texture = (
                gr.Number(10_000, label="Faces", precision=0),
                gr.Number(1024, label="Texture", precision=0),
            )
            status = gr.JSON(label="Status")
            model = gr.Model3D(label="GLB")
            files = [gr.File(label=name) for name in FILES[1:]]
            button = gr.Button()
        outputs = [status, model, *files]
        for function, inputs, options in (
            (self.text_to_3d, [prompt, seed, steps, prior, negative], self.gpu),
            (self.image_to_3d, [photo, elevation, seed, steps, sheet], self.gpu),
            (self.hallucinate, [prompt, photo, elevation, guidance_end, seed, steps, prior, sheet], self.gpu),
            (self.resume, [run_id], self.gpu),
            (self.extract_mesh, [run_id, faces, texture], self.export),
        ):
            button.click(function, inputs, outputs, api_name=function.__name__, **options)
        for function in (self.status, self.stop):
            button.click(function, run_id, status, api_name=function.__name__, concurrency_limit=None)

    def text_to_3d(
        self, prompt: str, seed: int = 0, steps: int | None = None, prior: str = "toybox", negative_prompt: str = ""
    ) -> Iterator[tuple]:
        """Optimise a 3D object for a prompt. Streams the status; ends with a GLB, OBJ, PLY, turntable, asset and run.

        Args:
            prompt: What to make, such as "a red mushroom".
            seed: The same seed gives the same object.
            steps: Optimisation steps; more take longer and look finer. The prior's usual number without it.
            prior: The model that guides, one of those the app lists.
            negative_prompt: What to keep away from.
        """
        with told():
            settings = self._settings(prior, steps)
            folder, notice = self.actions.text(prompt, negative_prompt, prior, seed, False, settings)
            yield from self._work(folder, notice)

    def image_to_3d(
        self,
        picture: str,
        elevation_deg: float = 20,
        seed: int = 0,
        steps: int | None = None,
        sheet: str | None = None,
    ) -> Iterator[tuple]:
        """Reconstruct a 3D object from a picture, by way of sixteen imagined views, or from a sheet of such views.

        Args:
            picture: One object, best with a transparent or white background.
            elevation_deg: Of the picture's camera above the horizon, degrees.
            seed: The same seed gives the same object.
            steps: Optimisation steps.
            sheet: Sixteen square views side by side, in place of the picture.
        """
        with told():
            given = Guided(picture, 200 / 256, float(elevation_deg), sheet)
            settings = settings_of({p.name: p for p in RECONSTRUCTION_PRESETS}, "Standard", steps, None, None)
            folder, notice = self.actions.guided(
                "image", given, "", "", self.actions.shelf.fallback.key, seed, False, settings
            )
            yield from self._work(folder, notice)

    def hallucinate(
        self,
        prompt: str,
        picture: str,
        elevation_deg: float = 20,
        image_guidance_end: float = 0.5,
        seed: int = 0,
        steps: int | None = None,
        prior: str = "toybox",
        sheet: str | None = None,
    ) -> Iterator[tuple]:
        """Optimise a 3D object for a prompt, guided by a picture or a sheet of views for a share of the run.

        Args:
            prompt: What the object is or should become.
            picture: One object, best with a transparent or white background.
            elevation_deg: Of the picture's camera above the horizon, degrees.
            image_guidance_end: Share of the run, up to 1, over which the picture's pull fades out.
            seed: The same seed gives the same object.
            steps: Optimisation steps.
            prior: The model that guides.
            sheet: Sixteen square views side by side, in place of the picture.
        """
        with told():
            given = Guided(picture, 200 / 256, float(elevation_deg), sheet)
            settings = self._settings(prior, steps) | {"image_guidance_end": float(image_guidance_end)}
            folder, notice = self.actions.guided("hallucination", given, prompt, "", prior, seed, False, settings)
            yield from self._work(folder, notice)

    def resume(self, run_id: str) -> Iterator[tuple]:
        """Go on with a run that was stopped, paused or interrupted, from where it is; make the files of a finished one
        that are missing.

        Args:
            run_id: From the status of the run.
        """
        with told():
            folder = self.store.open(run_id)
            self.actions.check_resumable(folder)
            folder.clear_stop()
            yield from self._work(folder, "")

    def extract_mesh(self, run_id: str, faces: int = 10_000, texture_size: int = 1024) -> Iterator[tuple]:
        """Make the mesh of a run again.

        Args:
            run_id: From the status of the run.
            faces: At most so many triangles, from 100 to 100,000.
            texture_size: Pixels per side, from 64 to 2048.
        """
        with told():
            options = MeshOptions(max_faces=int(faces), texture_size=int(texture_size))
            for state in self.worker.remake_mesh(self.store.open(run_id), options):
                yield _values(state)

    def status(self, run_id: str) -> dict[str, Any]:
        """Where a run is: status, step, steps, loss, seconds, seed, prior, mesh facts.

        Args:
            run_id: From the status of the run.
        """
        with told():
            folder = self.store.open(run_id)
            record = folder.read()
        busy = folder.busy
        return shown(folder, record if busy else current(folder, record, held=False), working=busy).status()

    def stop(self, run_id: str) -> dict[str, Any]:
        """Stop a run; what there is becomes the asset, and the call that works on it returns it.

        Args:
            run_id: From the status of the run.
        """
        with told():
            self.store.open(run_id).request_stop()
        return self.status(run_id)

    def _settings(self, prior: str, steps: int | None) -> dict[str, Any]:
        shelf = self.actions.shelf
        if prior not in shelf.priors:
            raise ValueError(f"There is no prior {prior!r}; choose one of {', '.join(shelf.priors)}.")
        presets = shelf.priors[shelf.get_or_fall_back(prior)[0]].presets
        return settings_of({p.name: p for p in presets}, presets[min(1, len(presets) - 1)].name, steps, None, None)

    def _work(self, folder: RunFolder, notice: str) -> Iterator[tuple]:
        for state in self.worker.advance(folder):
            yield _values(state, notice)


def _values(state: Shown, notice: str = "") -> tuple:
    status = state.status() | ({"notice": notice} if notice else {})
    return status, *(state.files.get(kind) and str(state.files[kind]) for kind in FILES)
