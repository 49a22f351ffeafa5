"""Runs on ZeroGPU's leases: chunks, deadlines, aborts and refusals, with a stand-in that forks, pickles and kills."""

import time
from contextlib import closing

import gradio as gr
import pytest

from hifa import HiFARun
from hifa.space.jobs import gpu_lease as lease
from hifa.space.jobs.errors import explain
from hifa.space.jobs.gpu_lease import LONGEST_LEASE, RESERVE, lease_seconds
from hifa.space.jobs.run_store import RunStore
from hifa.space.jobs.step_times import Timings
from hifa.space.jobs.worker import Worker
from tests.helpers.space import (
    LearningPipeline,
    LeasedGPU,
    assert_same,
    finished_run,
    grids_as_on_a_gpu,
    make_worker,
    request,
    tiny_model_cache,
)


pytestmark = pytest.mark.usefixtures("light_files")


@pytest.fixture(scope="module", autouse=True)
def code_of_a_gpu():
    with grids_as_on_a_gpu():
        yield


@pytest.fixture(scope="module")
def model_cache(tiny_prior):
    return tiny_model_cache(tiny_prior, LearningPipeline)


@pytest.fixture(scope="module")
def reference(model_cache):
    return finished_run(model_cache, threads=1)


def test_leases_are_sized_from_the_measured_step_time():
    assert lease_seconds(1000, None, 0) == 30
    assert lease_seconds(1000, 0.5, 3) == LONGEST_LEASE
    assert lease_seconds(10, 0.5, 3) == 3 + 6 + RESERVE


def test_a_run_crosses_several_leases_bit_for_bit(tmp_path, model_cache, reference, monkeypatch):
    # Three seconds to work in, in which no more than ten of the sixteen steps fit.
    monkeypatch.setattr(lease, "RESERVE", 9.0)
    monkeypatch.setattr(lease, "FIRST_LEASE", 12)
    monkeypatch.setattr(lease, "LONGEST_LEASE", 12)
    slow_down(monkeypatch, model_cache, 0.3)
    gpu = LeasedGPU()
    worker = make_worker(tmp_path, model_cache, gpu)
    folder = worker.store.create(request())
    end = list(worker.advance(folder))[-1]
    assert end.record.status == "finished", end.text
    assert len(gpu.asked) >= 2
    assert all(used <= asked for used, asked in zip(gpu.used, gpu.asked, strict=True))
    assert_same(HiFARun.load(folder.run), reference)


def test_aborted_leases_pause_and_resume_gives_the_uninterrupted_run(tmp_path, model_cache, reference, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(lease, "SAVE_SECONDS", 0.0)
    gpu = LeasedGPU(abort=0.7, seed=1)
    worker = make_worker(tmp_path, model_cache, gpu)
    folder = worker.store.create(request())
    pauses = 0
    for _ in range(40):
        end = list(worker.advance(folder))[-1]
        if end.record.status == "finished":
            break
        assert end.record.status == "paused" and end.settled and "taken away" in end.text
        pauses += 1
    assert pauses == gpu.aborted > 0
    assert_same(HiFARun.load(folder.run), reference)


def test_quota_and_queue_errors_pause_the_run(tmp_path, model_cache):
    quota = "You have exceeded your free ZeroGPU quota (45s requested vs. 3s left). Try again in 1:02"
    title = "ZeroGPU quota exceeded"
    gpu = LeasedGPU(refusals=((title, quota), (title, "No GPU was available after 60s")))
    worker = make_worker(tmp_path, model_cache, gpu)
    folder = worker.store.create(request(10))
    first, second, third = (list(worker.advance(folder))[-1] for _ in range(3))
    assert first.record.status == second.record.status == "paused"
    assert "used up" in first.text and "Try again in 1:02" in first.text and "No GPU was free" in second.text
    assert third.record.status == "finished"


@pytest.mark.parametrize("title, message, told", [
    ("ZeroGPU quota exceeded", "You have exceeded your ZeroGPU runs limit. ", "used up"),
    ("ZeroGPU quota exceeded", "Space app has reached its GPU limit. Retry", "signed-in visitors"),
    ("ZeroGPU quota exceeded", "No GPU was available after 60s. Retry", "No GPU was free"),
    ("ZeroGPU pending credits exceeded", "You have too many ZeroGPU credits allocated.", "Other work"),
    ("ZeroGPU illegal duration", "The requested GPU duration (90s) is larger than the maximum allowed", "fewer steps"),
    ("ZeroGPU worker error", "GPU task aborted", "taken away"),
    ("Error", "Expired ZeroGPU proxy token", "Reload the page"),
])  # fmt: skip
def test_errors_as_zero_gpu_puts_them_are_told_in_words(title, message, told):
    assert told in explain(gr.Error(message, title=title))


def test_a_lease_that_ignores_its_deadline_is_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "FIRST_LEASE", 2)

    def endless(task):
        while True:
            yield lease.Progress(text="Views of seed 0: denoising step 3 of 50", share=0.06)
            time.sleep(0.01)

    gpu = LeasedGPU()
    store = RunStore(tmp_path)
    worker = Worker(store, gpu(duration=lease.seconds_asked)(endless), True, Timings(tmp_path / "timings.json"))
    end = list(worker.advance(store.create(request(10))))[-1]
    assert end.record.status == "paused" and "taken away" in end.text
    assert 2 <= gpu.used[0] < 12 and len(gpu.used) == 1


def test_leases_that_come_no_further_end(tmp_path):
    asked = []

    def too_short(task):
        asked.append(task.seconds)
        yield lease.Progress(text="Views of seed 0: denoising step 3 of 50", share=0.06)
        yield lease.Progress(end=lease.DEADLINE)

    store = RunStore(tmp_path)
    worker = Worker(store, too_short, True, Timings(tmp_path / "timings.json"))
    end = list(worker.advance(store.create(request(10))))[-1]
    assert end.record.status == "paused" and "too short" in end.text and end.settled
    assert asked == [lease.FIRST_LEASE, lease.LONGEST_LEASE], "once more, and with all that can be had"


def test_a_visitor_who_leaves_in_a_lease_gives_the_gpu_back(tmp_path, model_cache, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    gpu = LeasedGPU()
    worker = make_worker(tmp_path, model_cache, gpu)
    folder = worker.store.create(request(2000))
    with closing(worker.advance(folder)) as stream:
        for state in stream:
            if state.record.step >= 4:
                break
    assert len(gpu.used) == 1 and not folder.busy
    assert folder.read().status == "paused" and HiFARun.load(folder.run).step >= 4


def slow_down(monkeypatch, model_cache, seconds: float) -> None:
    pipe = model_cache.get("toybox")
    advance = type(pipe).advance

    def slowly(self, run, steps=None):
        for step in advance(self, run, steps):
            time.sleep(seconds)
            yield step

    monkeypatch.setattr(type(pipe), "advance", slowly)
