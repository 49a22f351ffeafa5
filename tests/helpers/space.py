"""Small pipelines, a running app, and a stand-in for ZeroGPU's leases, for the tests of the app."""

import contextlib
import multiprocessing
import pickle
import random
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import gradio_client
import pytest
import torch

import app
from hifa import HiFAConfig, HiFAPipeline, HiFARun
from hifa.field.hash_grid import HashGrid, encode_torch
from hifa.rendering.density_grid import DensityGrid
from hifa.space.jobs import exports as files
from hifa.space.jobs import gpu_lease as lease
from hifa.space.jobs.gpu_lease import Models, make_lease, seconds_asked
from hifa.space.jobs.models import ModelCache, Preset, Prior
from hifa.space.jobs.run_store import Request, RunStore
from hifa.space.jobs.step_times import Timings
from hifa.space.jobs.worker import Worker
from tests.helpers.syncdreamer import tiny_pipeline


STEPS = 16


def request(steps: int = STEPS, **changes) -> Request:
    return Request("text", "a red mushroom", "toybox", 3, settings={"num_inference_steps": steps}, **changes)


def finished_run(model_cache: ModelCache, threads: int) -> HiFARun:
    """Return what the run of `request()` is when nothing comes between.

    Sums over several threads are rounded otherwise than those of one, and a lease's fork has one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    pipe = model_cache.get("toybox")
    run = pipe.start("a red mushroom", seed=3, num_inference_steps=STEPS)
    for _ in pipe.advance(run):
        pass
    torch.set_num_threads(before)
    return run


def assert_same(run: HiFARun, other: HiFARun) -> None:
    assert run.step == other.step and run.losses == other.losses
    for (name, value), (_, expected) in zip(
        run.radiance_field.state_dict().items(), other.radiance_field.state_dict().items(), strict=True
    ):
        assert torch.equal(value, expected), name
    assert torch.equal(run.generator.get_state(), other.generator.get_state())


class BallPipeline(HiFAPipeline):
    """Runs on small pictures, in which the field stays the ball it starts as: what the prior thinks is not tested."""

    blob_density = 6.0

    def default_config(self, views: bool = False, prompt: bool = True, image: bool = False):
        return HiFAConfig.fast(
            num_views=0,
            num_inference_steps=400, start_render_size=16, render_size=16, n_coarse=16, n_fine=8, grid_lr=0.0,
            network_lr=0.0, given_rays=64, given_size=16, blob_density=self.blob_density, lambda_normal=0.0,
        )  # fmt: skip


class LearningPipeline(BallPipeline):
    """As `BallPipeline`, with a field that changes in every step."""

    def default_config(self, views: bool = False, prompt: bool = True, image: bool = False):
        return HiFAConfig.fast(
            num_views=0,
            num_inference_steps=400, start_render_size=16, render_size=16, n_coarse=16, n_fine=8, given_rays=64,
            given_size=16, log2_hashmap_size=8, levels=4, lambda_normal=0.0,
        )  # fmt: skip


def tiny_model_cache(model: Path, pipeline: type[HiFAPipeline] = BallPipeline) -> ModelCache:
    """Return a cache with a tiny Toybox, and a prior that cannot be loaded."""
    presets = (Preset("Quick", 20), Preset("Standard", 40))
    priors = (
        Prior("toybox", "Toybox", model, "is tiny", "Apache-2.0", "https://example.org", False, presets),
        Prior("lost", "Lost prior", "no/where", "is gone", "none", "https://example.org", False, presets),
    )
    return ModelCache("cpu", priors, pipeline.from_pretrained)


def make_worker(root: Path, model_cache: ModelCache, gpu: Callable | None = None, **options) -> Worker:
    store = RunStore(root)
    lease = make_lease(Models(model_cache, tiny_pipeline))
    if gpu is not None:
        lease = gpu(duration=seconds_asked)(lease)
    return Worker(store, lease, gpu is not None, Timings(root / "timings.json"), **options)


@contextlib.contextmanager
def grids_as_on_a_gpu() -> Iterator[None]:
    """Have both grids take the paths they take on CUDA. Those on the CPU use GNU OpenMP, which no fork survives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            HashGrid, "forward",
            lambda self, points: encode_torch(points, self.table, self.resolutions.tolist(), self.entries),
        )  # fmt: skip
        patch.setattr(DensityGrid, "_density_on_cpu", DensityGrid._density_by_torch)
        yield


class LeasedGPU:
    """Stands in for `spaces.GPU` on ZeroGPU: forks for each call, pickles what goes in and out, kills what takes
    longer than it said, takes the GPU away at random, and refuses when it is told to.

    Args:
        abort: Chance that a lease is aborted in the middle of it.
        refusals: Titles and messages with which the next calls are refused, in this order.
        seed: Of the aborts.
        longest: No duration above this is granted.
    """

    def __init__(
        self, abort: float = 0.0, refusals: tuple[tuple[str, str], ...] = (), seed: int = 0, longest: float = 120.0
    ):
        self.abort, self.refusals, self.longest = abort, list(refusals), longest
        self.random = random.Random(seed)
        self.asked: list[float] = []
        self.used: list[float] = []
        self.aborted = 0

    def __call__(self, duration: Callable) -> Callable:
        def decorate(function: Callable) -> Callable:
            def leased(*arguments):
                yield from self._lease(function, pickle.dumps(arguments), duration(*arguments))

            return leased

        return decorate

    def _lease(self, function: Callable, arguments: bytes, seconds: float):
        if self.refusals:
            title, message = self.refusals.pop(0)
            raise gr.Error(message, title=title)
        if seconds > self.longest:
            message = f"The requested GPU duration ({seconds}s) is larger than the maximum allowed"
            raise gr.Error(message, title="ZeroGPU illegal duration")
        self.asked.append(seconds)
        fork = multiprocessing.get_context("fork")
        here, there = fork.Pipe()
        stop = fork.Event()
        child = fork.Process(target=_serve, args=(function, arguments, there, stop), daemon=True)
        began = time.monotonic()
        child.start()
        there.close()
        end = began + seconds
        doomed = self.random.random() < self.abort
        if doomed:  # after a few pieces of news, or never if there are fewer
            news_left = self.random.randrange(2, 12)
        try:
            while True:
                if time.monotonic() >= end or not here.poll(max(0.0, end - time.monotonic())):
                    raise gr.Error("GPU task aborted", title="ZeroGPU worker error")
                kind, item = pickle.loads(here.recv_bytes())
                if kind == "end":
                    return
                if kind == "error":
                    raise gr.Error(item)  # its class name is all that comes across
                if doomed and (news_left := news_left - 1) == 0:
                    self.aborted += 1
                    raise gr.Error("GPU task aborted", title="ZeroGPU worker error")
                yield item
        except GeneratorExit:
            stop.set()  # seen after the next yield, as on ZeroGPU
            child.join(10)
            raise
        finally:
            self.used.append(time.monotonic() - began)
            if child.is_alive():
                child.kill()
            child.join()


def _serve(function: Callable, arguments: bytes, connection, stop) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)  # the threads of the parent did not come along
    stream = function(*pickle.loads(arguments))
    try:
        for item in stream:
            connection.send_bytes(pickle.dumps(("item", item)))
            if stop.is_set():
                stream.close()
                return
        connection.send_bytes(pickle.dumps(("end", None)))
    except BaseException as error:
        connection.send_bytes(pickle.dumps(("error", type(error).__name__)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PATIENCE = 240  # seconds; all of this takes a few on a free machine
TOO_MANY = 2000  # steps, for a run that only Stop ends


class AppServer:
    """A running app with tiny models and small files.

    Args:
        root: Where it keeps its runs.
        model: Folder of the prior.
        hub: Address of a Hub.
    """

    def __init__(self, root: Path, model: Path, hub: str | None = None, **options):
        self.store = RunStore(root / "runs")
        self._patch = pytest.MonkeyPatch()
        self._root, self._model, self._hub, self._options = root, model, hub, options

    def __enter__(self) -> "AppServer":
        self._patch.setattr(tempfile, "tempdir", str(self._root))
        small(self._patch)
        self._demo = app.build_demo(
            self.store.root, tiny_model_cache(self._model), tiny_pipeline, hub=self._hub, view_steps=4, **self._options
        )
        self.functions = lambda: list(self._demo.fns.values())
        app.launch(self._demo, prevent_thread_lock=True, server_port=free_port(), quiet=True)
        self.url = self._demo.local_url.rstrip("/")
        return self

    def __exit__(self, *_) -> None:
        self._demo.close()
        self._patch.undo()

    def client(self) -> gradio_client.Client:
        return gradio_client.Client(self.url, verbose=False, analytics_enabled=False)

    def finished(self, client: gradio_client.Client) -> str:
        """Make a run and return its id."""
        return client.predict("a red mushroom", 0, 10, api_name="/text_to_3d")[0]["run_id"]


def small(patch: pytest.MonkeyPatch) -> None:
    """Make previews and files small, so that a test takes seconds."""
    for name in ("MESH", "STOPPED_MESH"):
        patch.setattr(files, name, files.MeshOptions(32, 1000, 64))
    for name in ("TURNTABLE", "STOPPED_TURNTABLE"):
        patch.setattr(files, name, files.TurntableOptions(2, 32))
    patch.setattr(lease, "PREVIEW_SECONDS", 0.2)
