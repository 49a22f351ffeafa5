"""Gradio app of HiFA: generates a 3D asset from a prompt or a picture and streams previews of the optimization.

Run it locally with `python app.py` or as a Hugging Face Space, on ZeroGPU, a GPU or a CPU. The app is implemented in
`hifa.space`.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from hifa.cli.options import load_multiview
from hifa.multiview import SyncDreamerPipeline
from hifa.space.deploy.warm_up import warm_up
from hifa.space.jobs.gpu_lease import Models, make_lease, seconds_asked
from hifa.space.jobs.memory import limit_arenas
from hifa.space.jobs.models import ModelCache
from hifa.space.jobs.run_store import RunStore
from hifa.space.jobs.step_times import Timings
from hifa.space.jobs.upload_cache import serve_from
from hifa.space.jobs.worker import Worker
from hifa.space.jobs.zero_gpu import zero_gpu
from hifa.space.ui.page import build_page
from hifa.space.ui.requests import Actions
from hifa.space.ui.result_panel import CSS
from hifa.space.ui.validation import MAX_UPLOAD
from hifa.toybox import MULTIVIEW_WEIGHTS


RUNS = Path("outputs/space")
EXAMPLES = Path(__file__).resolve().parent / "examples"
SYNCDREAMER_STEPS = 50  # denoising steps of the published model
GPU = zero_gpu()
SESSIONS = 300  # session states that Gradio keeps, 0.5 MB each; Gradio's default is 10,000
THREADS = 64  # each queued or running run occupies a thread, and clicks need free threads in addition


def build_demo(
    root: Path = RUNS,
    model_cache: ModelCache | None = None,
    load_multiview: Callable[[], SyncDreamerPipeline] = SyncDreamerPipeline.from_pretrained,
    gpu: Callable[..., Callable] | None = None,
    hub: str | None = None,
    view_steps: int | None = None,
) -> gr.Blocks:
    """Build the app. `launch` starts the server.

    Args:
        root: Folder of the runs.
        model_cache: Cache of the priors. Default: a cache on CUDA if available, on the CPU otherwise.
        load_multiview: Function that loads the multi-view model.
        gpu: `spaces.GPU` or a decorator factory with the same interface. The argument `duration` of the factory is a
            function that receives the arguments of the decorated function. Default: leases without a time limit.
        hub: URL of the Hub. Default: the public Hub.
        view_steps: Default number of denoising steps of the multi-view model. If `None`, the number in the config of
            the embedded model is used.

    Returns:
        The page.
    """
    model_cache = model_cache or ModelCache("cuda" if torch.cuda.is_available() else "cpu")
    models = Models(model_cache, load_multiview)
    lease = make_lease(models)
    if gpu is not None:
        models.multiview()  # Loaded before the fork, so that each forked lease does not load the model again.
        lease = gpu(duration=seconds_asked)(lease)
    store = RunStore(root)
    alone = gpu is None and model_cache.device.type == "cpu"
    worker = Worker(store, lease, gpu is not None, Timings(store.root / "timings.json"), export_in_turn=alone)
    # Only the model's config is read. The model itself is loaded for the first picture.
    view_steps = view_steps or int(SyncDreamerPipeline.load_config(MULTIVIEW_WEIGHTS)["num_inference_steps"])  # pyright: ignore[reportArgumentType, reportCallIssue]
    return build_page(worker, Actions(store, model_cache, view_steps), gpu is not None, hub)


def launch(demo: gr.Blocks, **options: Any):
    """Start the server with the app's style and limits, and with the endpoints as MCP tools.

    Args:
        demo: The page, as built by `build_demo`.
        **options: Further arguments of `gr.Blocks.launch`.

    Returns:
        The return value of `gr.Blocks.launch`.
    """
    # The bold face of Gradio's default font lacks most letters. This font has all of them.
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    theme = gr.themes.Default(font=(font, "ui-sans-serif", "system-ui", "sans-serif"))
    # `run_history=False`: Gradio's run history would store all inputs, including Hub tokens, in the browser.
    return demo.launch(
        css=CSS, theme=theme, max_file_size=MAX_UPLOAD, show_error=True, mcp_server=True, run_history=False,
        max_threads=THREADS, state_session_capacity=SESSIONS,
        ssr_mode=False,  # on a Space, Gradio's default is server-side rendering in a separate Node server
        **options,
    )  # fmt: skip


def main() -> None:
    limit_arenas()
    root = Path(os.environ.get("HIFA_RUNS", RUNS))
    serve_from(root)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model_cache = ModelCache(device, normal_model=os.environ.get("HIFA_NORMALS") or None)
    model_cache.get_or_fall_back(model_cache.default.key)  # before ZeroGPU packs the tensors that are on the GPU
    if model_cache.device.type == "cpu":  # also on ZeroGPU, which has no GPU at this point
        warm_up(
            model_cache.fallback,
            model_cache.get(model_cache.fallback.key),
            Timings(RunStore(root).root / "timings.json"),
        )
    demo = build_demo(root, model_cache, gpu=GPU, **multiview_options(model_cache.device))
    launch(demo, allowed_paths=given_away(root))


def given_away(root: Path) -> list[str]:
    """Return the folders to list in `allowed_paths`: those outside of the working directory.

    Files below the working directory need no entry: Gradio serves them if a function returns them.
    """
    return [str(place) for place in (root.resolve(), EXAMPLES) if not place.is_relative_to(Path.cwd())]


def multiview_options(device: torch.device) -> dict[str, Any]:
    """Return the arguments of `build_demo` that select the multi-view model.

    The environment variable `HIFA_MULTIVIEW` names the model: a Hub ID, a folder or a published checkpoint. Without
    the variable the embedded model is used.
    """
    name = os.environ.get("HIFA_MULTIVIEW")
    if not name:
        return {}
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    return {"load_multiview": partial(load_multiview, name, dtype, device), "view_steps": SYNCDREAMER_STEPS}


if __name__ == "__main__":
    main()
