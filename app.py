"""HiFA as a Gradio app: a prompt or a picture goes in, the optimisation streams by, a 3D asset comes out.

`python app.py` here, or a Hugging Face Space: on ZeroGPU, on a GPU, or on a plain CPU. Its parts are in `hifa.space`.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from hifa.multiview import SyncDreamerPipeline
from hifa.multiview.pipeline_syncdreamer import TOYBOX as TOYBOX_MULTIVIEW
from hifa.options import load_multiview
from hifa.space.actions import Actions
from hifa.space.inputs import MAX_UPLOAD
from hifa.space.lease import Models, make_lease, seconds_asked
from hifa.space.memory import limit_arenas
from hifa.space.page import build_page
from hifa.space.panel import CSS
from hifa.space.priors import PriorShelf
from hifa.space.served import serve_from
from hifa.space.store import RunStore
from hifa.space.timings import Timings
from hifa.space.warm_up import warm_up
from hifa.space.worker import Worker
from hifa.space.zero import zero_gpu


RUNS = Path("outputs/space")
EXAMPLES = Path(__file__).resolve().parent / "examples"
SYNCDREAMER_STEPS = 50  # of denoising, as published
GPU = zero_gpu()
SESSIONS = 300  # of visitors that are remembered; Gradio holds half a megabyte of each, and by default of 10,000
THREADS = 64  # each run that waits or works takes one, and what is pressed meanwhile has to find one


def build_demo(
    root: Path = RUNS,
    shelf: PriorShelf | None = None,
    load_multiview: Callable[[], SyncDreamerPipeline] = SyncDreamerPipeline.from_pretrained,
    gpu: Callable[..., Callable] | None = None,
    hub: str | None = None,
    view_steps: int | None = None,
) -> gr.Blocks:
    """The app, to be launched by `launch`.

    Args:
        root: Where the runs are kept.
        shelf: Of the priors; those of this machine's device without it.
        load_multiview: Makes views of pictures.
        gpu: `spaces.GPU`, or something like it: takes `duration`, a function of the arguments of what it decorates.
        hub: Address of the Hub, if it is another than the usual one.
        view_steps: Denoising steps that the multi-view model is made for; those of the embedded one without it.
    """
    shelf = shelf or PriorShelf("cuda" if torch.cuda.is_available() else "cpu")
    models = Models(shelf, load_multiview)
    lease = make_lease(models)
    if gpu is not None:
        models.multiview()  # now, and not in each of the forked leases
        lease = gpu(duration=seconds_asked)(lease)
    store = RunStore(root)
    alone = gpu is None and shelf.device.type == "cpu"
    worker = Worker(store, lease, gpu is not None, Timings(store.root / "timings.json"), export_in_turn=alone)
    # From its settings alone: the model itself is loaded when the first picture comes.
    view_steps = view_steps or SyncDreamerPipeline.load_config(TOYBOX_MULTIVIEW)["num_inference_steps"]
    return build_page(worker, Actions(store, shelf, view_steps), gpu is not None, hub)


def launch(demo: gr.Blocks, **options: Any):
    """Serve it with its style and its limits, and its endpoints as MCP tools."""
    # Gradio's own bold face of its font lacks most letters; this one is whole.
    font = gr.themes.utils.fonts.LocalFont("Source Sans Pro", weights=(400, 700))
    theme = gr.themes.Default(font=(font, "ui-sans-serif", "system-ui", "sans-serif"))
    # Gradio's own history would keep what is entered, tokens too, in the browser.
    return demo.launch(
        css=CSS, theme=theme, max_file_size=MAX_UPLOAD, show_error=True, mcp_server=True, run_history=False,
        max_threads=THREADS, state_session_capacity=SESSIONS,
        ssr_mode=False,  # on a Space, Gradio's own default is a server of its own in Node
        **options,
    )  # fmt: skip


def main() -> None:
    limit_arenas()
    root = Path(os.environ.get("HIFA_RUNS", RUNS))
    serve_from(root)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shelf = PriorShelf(device, normal_model=os.environ.get("HIFA_NORMALS") or None)
    shelf.get_or_fall_back(shelf.default.key)  # before ZeroGPU packs what is on the GPU
    if shelf.device.type == "cpu":  # ZeroGPU has no GPU at this point
        warm_up(shelf.fallback, shelf.get(shelf.fallback.key), Timings(RunStore(root).root / "timings.json"))
    demo = build_demo(root, shelf, gpu=GPU, **multiview_options(shelf.device))
    launch(demo, allowed_paths=given_away(root))


def given_away(root: Path) -> list[str]:
    """Folders to tell Gradio of, which gives away what a function returns from below the working folder without."""
    return [str(place) for place in (root.resolve(), EXAMPLES) if not place.is_relative_to(Path.cwd())]


def multiview_options(device: torch.device) -> dict[str, Any]:
    """For `build_demo`: the multi-view model that HIFA_MULTIVIEW names, a hub id, a folder or a published checkpoint;
    the embedded one without it."""
    name = os.environ.get("HIFA_MULTIVIEW")
    if not name:
        return {}
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    return {"load_multiview": partial(load_multiview, name, dtype, device), "view_steps": SYNCDREAMER_STEPS}


if __name__ == "__main__":
    main()
