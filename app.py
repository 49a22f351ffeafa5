"""HiFA as a Gradio app: a prompt goes in, the optimisation streams by, a 3D asset comes out. `python app.py`."""

import random
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image

from hifa import HiFAPipeline, HiFARun
from hifa.export import EmptyFieldError
from hifa.toybox.vocabulary import COLOURS, KIND_WORDS


HEADER = """# HiFA: text to 3D
Type a prompt and watch a radiance field take shape. Stop whenever you like: what is there becomes the asset."""
EXAMPLES = (
    "a red mushroom", "a yellow duck", "a blue car", "a brown teddy bear", "a green sailboat",
    "a red ball on a blue cube",
)  # fmt: skip
PREVIEW_SECONDS = 0.5  # between previews; a step and the preview itself come on top, and a second must not pass
PREVIEW_SIZE, PREVIEW_SHOWN = 96, 384  # pixels rendered, and sent to the browser
TURN_DEG_PER_SECOND = 9.0
MESH = {"resolution": 128, "max_faces": 10_000, "texture_size": 1024}
TURNTABLE = {"num_frames": 48, "size": 192, "fps": 16}
# A stopped run has to be on the screen in two seconds, so what is made of it is lighter.
STOPPED_MESH = {"resolution": 64, "max_faces": 5_000, "texture_size": 512}
STOPPED_TURNTABLE = {"num_frames": 24, "size": 128, "fps": 8}
MAX_SEED = 2**31 - 1  # a browser's numbers stay exact
HOUR = 3600


class StopSignal(threading.Event):
    """Set by Stop. Each run has its own, made before it enters the queue, so that it can be stopped there too."""

    taken = False  # a run listens to it already


class RunProgress(gr.HTML):
    """A bar and a line of text; its value is `{"step", "steps", "loss", "elapsed", "left", "text"}`."""

    def __init__(self, **kwargs: Any):
        super().__init__(
            value={"text": "Ready."},
            html_template=(
                "<div role='status'><progress max='${value.steps || 1}' value='${value.step || 0}' "
                "aria-label='Finished steps'></progress><p>${value.text}</p></div>"
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

    def api_info(self) -> dict[str, Any]:
        return {"type": "object", "description": "step, steps, loss, seconds elapsed and left, text"}


@dataclass(frozen=True)
class Shown:
    """What the result panel shows at one moment."""

    progress: dict[str, Any]
    preview: PIL.Image.Image | None = None
    model: Path | None = None
    turntable: Path | None = None
    ply: Path | None = None


class ResultPanel:
    """Progress with Stop, live preview, 3D model; below them, when they are there, the turntable and the downloads."""

    def __init__(self):
        with gr.Row(equal_height=True):
            self.progress = RunProgress(elem_id="progress", scale=4, min_width=240)
            # Here, and not beside Generate, so that it is in sight of the preview on a phone too.
            self.stop = gr.Button("Stop", variant="stop", interactive=False, min_width=120, elem_id="stop")
        with gr.Row():
            self.preview = gr.Image(
                label="Preview", alt_text="Preview of the object as it takes shape", format="jpeg", height=390,
                min_width=280, interactive=False, buttons=["fullscreen"], elem_id="preview",
            )  # fmt: skip
            # Front +Z, which is at alpha 90; the gray is that of the preview. It is never hidden, because gradio's
            # viewer stays blank when its model arrives before it is on the page.
            self.model = gr.Model3D(
                label="3D model", clear_color=(0.5, 0.5, 0.5, 1.0), camera_position=(90, 75, None), height=390,
                min_width=280, interactive=False, elem_id="model",
            )  # fmt: skip
        with gr.Column(visible=False) as self.results:
            self.turntable = gr.Video(
                label="Turntable: colour and normals", autoplay=True, loop=True, interactive=False, elem_id="turntable"
            )
            with gr.Row():
                self.downloads = [gr.DownloadButton(f"Download {name}") for name in ("GLB", "PLY", "MP4")]

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        return [self.progress, self.preview, self.model, self.turntable, *self.downloads, self.results]

    @staticmethod
    def values(shown: Shown) -> tuple:
        """One value for each of `outputs`. A column is no part of the API, so what callers get is plain values."""
        files = (shown.model, shown.ply, shown.turntable) if shown.turntable else (None, None, None)
        head = (shown.progress, shown.preview, shown.model, shown.turntable)
        return *head, *files, gr.Column(visible=shown.turntable is not None)


def build_demo(pipe: HiFAPipeline) -> gr.Blocks:
    """The app around a loaded pipeline; it keeps nothing of its users outside of their sessions."""
    # A fast tokenizer must not be entered by two threads, and prompts are checked while others optimise.
    tokenizing = threading.Lock()
    default_steps = pipe.default_config().num_inference_steps

    def checked(call, *args, **kwargs):
        try:
            with tokenizing:
                return call(*args, **kwargs)
        except ValueError as error:
            raise gr.Error(str(error), duration=20, print_exception=False) from error

    def prepare(prompt: str, seed: int | None, randomise: bool, pending: StopSignal | None):
        if pending is not None:
            raise gr.Error("A run is going on. Stop it first, or wait.", print_exception=False)
        checked(pipe.check_inputs, prompt)
        seed = random.randrange(MAX_SEED + 1) if randomise or seed is None else seed
        waiting = {"text": "Waiting for a free place …"}
        return seed, StopSignal(), waiting, gr.Button(interactive=False), gr.Button(interactive=True)

    def text_to_3d(prompt: str, seed: int, steps: int, signal: StopSignal | None):
        """Optimise a 3D asset for a prompt, streaming previews; ends with a GLB, a PLY and a turntable MP4.

        Args:
            prompt: What to make, such as "a red mushroom".
            seed: The same seed gives the same asset.
            steps: Optimisation steps.
        """
        if signal is None or signal.taken:  # called through the API, where nothing was prepared
            signal = StopSignal()
        signal.taken = True
        run = checked(pipe.start, prompt, seed=int(seed), num_inference_steps=int(steps))
        # Gradio copies what is yielded into its cache, so the folder can go when the run has ended, however it ends.
        with tempfile.TemporaryDirectory(prefix="hifa-") as folder:
            for shown in run_to_asset(pipe, run, signal, Path(folder)):
                yield *panel.values(shown), signal

    def stop_run(signal: StopSignal | None):
        """Stop the optimisation of this session; what there is becomes the asset."""
        if signal is not None:
            signal.set()
        return gr.Button("Stopping …", interactive=False)

    def rest():
        return None, gr.Button(interactive=True), gr.Button("Stop", interactive=False)

    with gr.Blocks(title="HiFA: text to 3D", analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as demo:
        signal = gr.State()
        gr.Markdown(HEADER)
        with gr.Row():
            with gr.Column(scale=1, min_width=320), gr.Tabs(), gr.Tab("Text to 3D"):
                prompt = gr.Textbox(
                    label="Prompt", placeholder="a red mushroom", max_length=500, autofocus=True, elem_id="prompt"
                )
                generate = gr.Button("Generate", variant="primary", elem_id="generate")
                gr.Examples([[text] for text in EXAMPLES], inputs=[prompt], label="Try one of these")
                steps = gr.Slider(
                    10, 5 * default_steps, default_steps, step=10, label="Steps", elem_id="steps",
                    info="More steps take longer and look finer.",
                )  # fmt: skip
                with gr.Row(equal_height=True):
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed")
                    randomise = gr.Checkbox(True, label="New seed each time", container=True, elem_id="randomise")
                with gr.Accordion("Words it knows", open=False):
                    gr.HTML(vocabulary_help())
            with gr.Column(scale=2, min_width=320):
                panel = ResultPanel()

        # Through the queue, though at once: without it the browser is not told why a prompt is refused. The refusal
        # is shown on the button, that is in a message only, because on the outputs it would be a bare "Error" on each.
        submitted = gr.on(
            [generate.click, prompt.submit], prepare, [prompt, seed, randomise, signal],
            [seed, signal, panel.progress, generate, panel.stop],
            concurrency_limit=None, show_progress="hidden", show_progress_on=generate, api_visibility="private",
        )  # fmt: skip
        optimised = submitted.success(
            text_to_3d, [prompt, seed, steps, signal], [*panel.outputs, signal], api_name="text_to_3d",
            show_progress="minimal", show_progress_on=panel.progress, scroll_to_output=True,
        )  # fmt: skip
        optimised.then(
            rest, None, [signal, generate, panel.stop], queue=False, show_progress="hidden", api_visibility="private"
        )
        panel.stop.click(stop_run, signal, panel.stop, queue=False, show_progress="hidden", api_name="stop")
    return demo.queue(max_size=16, default_concurrency_limit=1)


def run_to_asset(pipe: HiFAPipeline, run: HiFARun, signal: StopSignal, folder: Path) -> Iterator[Shown]:
    """Optimise to the end or to the signal, then export into `folder`, yielding what to show on the way."""
    if signal.is_set():
        yield Shown({"text": "Stopped before the first step."})
        return
    started = shown_at = time.perf_counter()
    times = deque([started], maxlen=20)
    preview = look(run, 0.0)
    yield Shown(progress(run, times, started), preview)
    for _ in pipe.advance(run):
        times.append(time.perf_counter())
        if times[-1] - shown_at > PREVIEW_SECONDS:
            preview = look(run, (times[-1] - started) * TURN_DEG_PER_SECOND)
            yield Shown(progress(run, times, started), preview)
            shown_at = time.perf_counter()
        if signal.is_set():
            break
    yield from export(run, folder, preview, times[-1] - started)


def look(run: HiFARun, azimuth_deg: float) -> PIL.Image.Image:
    pixels = run.preview(run.front_camera(azimuth_deg), PREVIEW_SIZE)
    image = PIL.Image.fromarray((pixels * 255).round().byte().cpu().numpy())
    return image.resize((PREVIEW_SHOWN, PREVIEW_SHOWN), PIL.Image.Resampling.BICUBIC)


def progress(run: HiFARun, times: deque[float], started: float) -> dict[str, Any]:
    """Where the run is. The time left is that of the last steps, previews included, times the steps left."""
    total = run.config.num_inference_steps
    state = {"step": run.step, "steps": total, "elapsed": round(times[-1] - started, 1)}
    if len(times) < 3:
        return state | {"text": f"Step {run.step} of {total}"}
    left = (times[-1] - times[0]) / (len(times) - 1) * (total - run.step)
    loss = run.losses[-1]["loss"]
    text = f"Step {run.step} of {total} · loss {loss:.3f} · {clock(state['elapsed'])} · about {clock(left)} left"
    return state | {"loss": loss, "left": round(left, 1), "text": text}


def export(run: HiFARun, folder: Path, preview: PIL.Image.Image, seconds: float) -> Iterator[Shown]:
    """The mesh first, as soon as it is there; then the other files."""
    total = run.config.num_inference_steps
    done = f"Finished {total} steps" if run.finished else f"Stopped at step {run.step} of {total}"
    done += f" after {clock(seconds)}"
    state = {"step": run.step, "steps": total}
    name = re.sub(r"[^a-z0-9]+", "-", run.prompt.lower()).strip("-")[:60] or "asset"
    glb, ply, mp4 = (folder / f"{name}.{suffix}" for suffix in ("glb", "ply", "mp4"))
    yield Shown(state | {"text": f"{done}. Making the mesh …"}, preview)
    quality, turn = (MESH, TURNTABLE) if run.finished else (STOPPED_MESH, STOPPED_TURNTABLE)
    asset = run.asset()
    try:
        asset.export_mesh(glb, **quality)
    except EmptyFieldError as error:
        gr.Warning(str(error), title="There is no surface yet", duration=20)
        yield Shown(state | {"text": f"{done}. There is no surface yet: try more steps."}, preview)
        return
    yield Shown(state | {"text": f"{done}. Making the turntable …"}, preview, glb)
    asset.export_mesh(ply, **quality)
    asset.export_video(mp4, **turn)
    yield Shown(state | {"text": f"{done}."}, preview, glb, mp4, ply)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def vocabulary_help() -> str:
    """Kinds with their synonyms and colours with their shade, for the prior that knows only these."""
    kinds = ", ".join(
        kind + (f" <i>({', '.join(others)})</i>" if (others := [w for w in words if w != kind]) else "")
        for kind, words in KIND_WORDS.items()
    )
    colours = ", ".join(
        "<span style='display:inline-block;width:.8em;height:.8em;border-radius:50%;border:1px solid #8888;"
        f"background:rgb({','.join(str(round(255 * value)) for value in rgb)})'></span>&nbsp;{colour}"
        for colour, rgb in COLOURS.items()
    )
    return (
        "<p>The embedded Toybox prior was trained on a small world: an object in one colour, or one on another, as in "
        f"“a red ball on a blue cube”.</p><p><b>Objects:</b> {kinds}</p><p><b>Colours:</b> {colours}</p>"
    )


def main() -> None:
    build_demo(HiFAPipeline.from_pretrained()).launch(show_error=True)


if __name__ == "__main__":
    main()
