"""API of the app: named endpoints with plain values, for HTTP, `gradio_client` and MCP.

Each endpoint is bound to a hidden button, because Gradio derives types and file handling from components.
"""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..jobs.exports import MeshOptions
from ..jobs.models import RECONSTRUCTION_PRESETS
from ..jobs.run_store import RunFolder
from ..jobs.status import RunStatus, shown
from ..jobs.worker import Worker, current
from .requests import Actions, Guided, user_errors
from .run_settings import settings_of
from .validation import PhotoInput


FILES = ("glb", "obj", "ply", "mp4", "asset", "run")


class Api:
    """Endpoints of the app.

    The docstrings of the endpoints are the descriptions of the MCP tools. Gradio reads one line for each argument.

    Args:
        worker: Worker that advances the runs.
        actions: Factory of the runs.
        gpu: Gradio queue options of the endpoints that advance a run.
        export: Gradio queue options of the endpoint that exports a mesh.
    """

    def __init__(self, worker: Worker, actions: Actions, gpu: dict[str, Any], export: dict[str, Any]):
        self.worker, self.actions, self.store = worker, actions, worker.store
        self.gpu, self.export = gpu, export

    def build(self) -> None:
        """Add the endpoints to the current `gr.Blocks` context."""
        priors = list(self.actions.model_cache.priors)
        with gr.Column(visible=False):
            prompt, negative = gr.Textbox(label="Prompt"), gr.Textbox("", label="Negative prompt")
            prior = gr.Dropdown(priors, value=self.actions.model_cache.default.key, label="Prior")
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
        """Optimize a 3D object for a prompt. Streams the status and returns a GLB, OBJ, PLY, turntable, asset and run.

        Args:
            prompt: Object to generate, such as "a red mushroom".
            seed: Random seed. The same seed gives the same object.
            steps: Number of optimization steps. More steps take longer and add detail. Default: preset of the prior.
            prior: Key of the model that guides the optimization, one of those that the app lists.
            negative_prompt: Description of what to avoid.
        """
        with user_errors():
            settings = self._settings("text", prior, steps)
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
        """Reconstruct a 3D object from a picture through sixteen generated views, or from a sheet of such views.

        Args:
            picture: Picture of one object, preferably with a transparent or white background.
            elevation_deg: Elevation of the picture's camera above the horizon, in degrees.
            seed: Random seed. The same seed gives the same object.
            steps: Number of optimization steps. Default: preset Standard.
            sheet: Sheet of sixteen square views side by side. Replaces the picture.
        """
        with user_errors():
            given = Guided(picture, 200 / 256, float(elevation_deg), sheet)
            settings = settings_of({p.name: p for p in RECONSTRUCTION_PRESETS}, "Standard", steps, None, None)
            folder, notice = self.actions.guided(
                "image", given, "", "", self.actions.model_cache.fallback.key, seed, False, settings
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
        """Optimize a 3D object for a prompt, guided by a picture or a sheet of views during a fraction of the run.

        Args:
            prompt: Description of the object in the picture, or of an object to turn the picture into.
            picture: Picture of one object, preferably with a transparent or white background.
            elevation_deg: Elevation of the picture's camera above the horizon, in degrees.
            image_guidance_end: Fraction of the run, up to 1, over which the image losses fade out.
            seed: Random seed. The same seed gives the same object.
            steps: Number of optimization steps. Default: preset of the prior.
            prior: Key of the model that guides the optimization, one of those that the app lists.
            sheet: Sheet of sixteen square views side by side. Replaces the picture.
        """
        with user_errors():
            given = Guided(picture, 200 / 256, float(elevation_deg), sheet)
            settings = self._settings("hallucination", prior, steps) | {
                "image_guidance_end": float(image_guidance_end)
            }
            folder, notice = self.actions.guided("hallucination", given, prompt, "", prior, seed, False, settings)
            yield from self._work(folder, notice)

    def resume(self, run_id: str) -> Iterator[tuple]:
        """Resume a run that was stopped, paused or interrupted. Export the missing files of a finished run.

        Args:
            run_id: Run id, as returned in the status.
        """
        with user_errors():
            folder = self.store.open(run_id)
            self.actions.check_resumable(folder)
            folder.clear_stop()
            yield from self._work(folder, "")

    def extract_mesh(self, run_id: str, faces: int = 10_000, texture_size: int = 1024) -> Iterator[tuple]:
        """Export the mesh of a run again with other options.

        Args:
            run_id: Run id, as returned in the status.
            faces: Maximum number of triangles, from 100 to 100,000.
            texture_size: Texture width and height in pixels, from 64 to 2048.
        """
        with user_errors():
            options = MeshOptions(max_faces=int(faces), texture_size=int(texture_size))
            for state in self.worker.remake_mesh(self.store.open(run_id), options):
                yield _values(state)

    def status(self, run_id: str) -> dict[str, Any]:
        """Return the status of a run: status, step, steps, loss, seconds, seed, prior and metadata of the mesh.

        Args:
            run_id: Run id, as returned in the status.
        """
        with user_errors():
            folder = self.store.open(run_id)
            record = folder.read()
        busy = folder.busy
        return shown(folder, record if busy else current(folder, record, held=False), working=busy).status()

    def stop(self, run_id: str) -> dict[str, Any]:
        """Stop a run. The call that advances the run then exports and returns the asset of the current step.

        Args:
            run_id: Run id, as returned in the status.
        """
        with user_errors():
            self.store.open(run_id).request_stop()
        return self.status(run_id)

    def _settings(self, kind: str, prior: str, steps: int | None) -> dict[str, Any]:
        model_cache = self.actions.model_cache
        if prior not in model_cache.priors:
            raise ValueError(f"Unknown prior {prior!r}. Choose one of {', '.join(model_cache.priors)}.")
        presets = model_cache.priors[model_cache.get_or_fall_back(prior)[0]].presets_for(kind)
        return settings_of({p.name: p for p in presets}, presets[min(1, len(presets) - 1)].name, steps, None, None)

    def _work(self, folder: RunFolder, notice: str) -> Iterator[tuple]:
        for state in self.worker.advance(folder):
            yield _values(state, notice)


def _values(state: RunStatus, notice: str = "") -> tuple:
    status = state.status() | ({"notice": notice} if notice else {})
    return status, *(state.files.get(kind) and str(state.files[kind]) for kind in FILES)
