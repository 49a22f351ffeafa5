"""Runs of the app without its page: stop, resume, leases that end, and errors; nothing computed may get lost."""

import asyncio
import threading
import time
from contextlib import closing

import pytest
import torch

from hifa import HiFARun
from hifa.export import EmptyFieldError
from hifa.optimization.step import ATTEMPTS
from hifa.space.jobs import exports as files
from hifa.space.jobs import gpu_lease as lease
from hifa.space.ui.result_panel import facts_html
from tests.helpers.space import (
    STEPS,
    BallPipeline,
    LearningPipeline,
    assert_same,
    finished_run,
    make_worker,
    request,
    tiny_model_cache,
)


pytestmark = pytest.mark.usefixtures("light_files")


@pytest.fixture(scope="module")
def model_cache(tiny_prior):
    return tiny_model_cache(tiny_prior, LearningPipeline)


@pytest.fixture(scope="module")
def reference(model_cache):
    return finished_run(model_cache, torch.get_num_threads())


def test_a_run_is_worked_off_and_its_files_are_made(tmp_path, tiny_prior):
    worker = make_worker(tmp_path, tiny_model_cache(tiny_prior, BallPipeline))
    folder = worker.store.create(request())
    states = list(worker.advance(folder))
    looks = [state for state in states if state.previews]
    assert set(looks[0].previews) == {"color", "normals", "depth", "opacity"} and looks[0].record.step == 0
    assert len({looks[0].previews[mode] for mode in looks[0].previews}) == 4
    end = states[-1]
    assert end.record.status == "finished" and end.settled and not end.working and "Finished 16 steps" in end.text
    assert set(end.files) == {"glb", "obj", "ply", "mp4", "asset", "run"}
    assert end.record.metadata["faces"] > 100 and worker.timings.get("text/toybox/default") > 0
    assert end.status()["status"] == "finished" and end.status()["seed"] == 3


def test_stop_keeps_what_is_there_and_resume_gives_the_uninterrupted_run(
    tmp_path, model_cache, reference, monkeypatch
):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    worker = make_worker(tmp_path, model_cache)
    folder = worker.store.create(request())
    for state in worker.advance(folder):
        if state.record.step == 11:
            folder.request_stop()
            asked = time.monotonic()
        if state.record.status == "stopped":
            break
    assert time.monotonic() - asked < 2
    record = folder.read()
    assert record.status == "stopped" and 11 <= record.step < STEPS
    folder.clear_stop()
    assert list(worker.advance(folder))[-1].record.status == "finished"
    assert_same(HiFARun.load(folder.run), reference)


def test_drafts_of_a_stopped_run_can_be_made_in_full(tmp_path, model_cache, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(files, "STOPPED_MESH", files.MeshOptions(32, 1000, 128))
    worker = make_worker(tmp_path, model_cache)
    folder = worker.store.create(request())
    for state in worker.advance(folder):
        if state.record.step == 4 and state.working:
            folder.request_stop()
    assert state.record.status == "stopped" and state.record.metadata["texture_size"] == 128
    assert "drafts" in facts_html(state) and not state.missing
    end = list(worker.make_files(folder))[-1]
    assert end.record.status == "stopped" and end.record.metadata["texture_size"] == 64
    assert "drafts" not in facts_html(end)
    folder.clear_stop()
    assert "drafts" not in facts_html(list(worker.advance(folder))[-1])


def test_files_that_are_put_off_are_made_later(tmp_path, model_cache, monkeypatch):
    worker = make_worker(tmp_path, model_cache)
    folder = worker.store.create(request(4))
    folder.put_off_files()  # a wish of before does not count
    monkeypatch.setattr(files, "TURNTABLE", files.TurntableOptions(1000, 64))
    texts = []
    for state in worker.advance(folder):
        texts.append(state.text)
        if state.exporting and "turntable" in state.text:
            folder.put_off_files()
            asked = time.monotonic()
    assert time.monotonic() - asked < 2 and not any("Packing" in text for text in texts)
    assert state.settled and not state.exporting and state.text.endswith("The files can be made later.")
    assert set(state.files) == {"glb", "obj", "ply"} and set(state.missing) == {"mp4", "asset", "run"}
    monkeypatch.setattr(files, "TURNTABLE", files.TurntableOptions(2, 32))
    end = list(worker.make_files(folder))[-1]
    assert not end.missing and "canceled" not in end.text


def test_stop_before_its_turn_ends_a_run_before_the_first_step(tmp_path, model_cache):
    worker = make_worker(tmp_path, model_cache)
    folder = worker.store.create(request())
    folder.request_stop()
    end = list(worker.advance(folder))[-1]
    assert end.record.status == "stopped" and not folder.started and "before the first step" in end.text


def test_a_reader_that_goes_away_leaves_a_run_that_goes_on(tmp_path, model_cache, reference, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    worker = make_worker(tmp_path, model_cache)
    folder = worker.store.create(request())
    with closing(worker.advance(folder)) as stream:
        for state in stream:
            if state.record.step == 7:
                break
    record = folder.read()
    assert record.status == "paused" and record.step >= 7 and "window was closed" in record.message
    assert not folder.busy
    assert list(worker.advance(folder))[-1].record.status == "finished"
    assert_same(HiFARun.load(folder.run), reference)


def test_a_second_worker_is_refused_and_can_look_on(tmp_path, model_cache, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    worker = make_worker(tmp_path, model_cache)
    folder = worker.store.create(request())
    with closing(worker.advance(folder)) as stream:
        for state in stream:
            if state.record.step == 5:
                break
        follower, loop = worker.follow(folder, 0.01), asyncio.new_event_loop()
        seen = loop.run_until_complete(anext(follower))
        assert seen.working and seen.record.step >= 5 and seen.previews
        with pytest.raises(ValueError, match="here or in another window"):
            list(worker.remake_mesh(folder, files.STOPPED_MESH))
    *_, last = loop.run_until_complete(collected(follower))
    loop.close()
    assert last.settled and last.record.status == "paused"


async def collected(stream) -> list:
    return [item async for item in stream]


def test_a_hundred_who_look_on_hold_no_thread(tmp_path, model_cache):
    worker = make_worker(tmp_path, model_cache)
    folder = worker.store.create(request())

    async def look_on() -> int:
        followers = [asyncio.create_task(collected(worker.follow(folder, 0.02))) for _ in range(100)]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in followers)
        return threading.active_count()

    before = threading.active_count()
    with folder.locked():
        assert asyncio.run(look_on()) == before


def test_a_field_without_a_surface_is_no_error(tmp_path, tiny_prior, monkeypatch):
    monkeypatch.setattr(BallPipeline, "blob_density", 0.0)
    worker = make_worker(tmp_path, tiny_model_cache(tiny_prior, BallPipeline))
    end = list(worker.advance(worker.store.create(request(10))))[-1]
    assert end.record.status == "finished" and "no surface yet" in end.text
    assert set(end.files) == {"asset", "run"} and not end.missing, "what can be made without a surface is made"


def test_files_of_an_earlier_step_stay_when_the_surface_is_lost(tmp_path, tiny_prior, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    worker = make_worker(tmp_path, tiny_model_cache(tiny_prior, BallPipeline))
    folder = worker.store.create(request(8))
    with closing(worker.advance(folder)) as stream:
        assert any(state.record.step >= 2 for state in stream)
    early = list(worker.make_files(folder))[-1]
    assert set(early.files) == set(files.KINDS)

    def nothing(*arguments, **options):
        raise EmptyFieldError("no surface")

    monkeypatch.setattr(files, "extract_mesh", nothing)
    end = list(worker.advance(folder))[-1]
    assert "no surface yet" in end.text and early.files.items() <= end.files.items()
    assert end.record.made_at["glb"] == early.record.step < end.record.made_at["asset"] == 8
    assert set(end.missing) == {"glb", "obj", "ply", "mp4"}, "they can be made again with more steps"


def test_a_run_that_diverges_pauses_at_its_last_good_step_and_resumes(tmp_path, model_cache, monkeypatch):
    """Once it has found no finite gradient often enough it is saved as it was, and Resume draws other noise."""
    worker = make_worker(tmp_path, model_cache)
    folder = worker.store.create(request(10))
    pipe = model_cache.get("toybox")
    advance, bad = type(pipe).advance, [True] * ATTEMPTS

    def spoil(gradient):
        return gradient * torch.inf if bad and bad.pop() else gradient

    def poisoned(self, run, steps=None):
        for step in advance(self, run, steps):
            yield step
            if run.step == 5:
                run.radiance_field.grid.table.register_hook(spoil)

    monkeypatch.setattr(type(pipe), "advance", poisoned)
    end = list(worker.advance(folder))[-1]
    assert end.record.status == "paused" and "diverged at step 6" in end.text
    saved = HiFARun.load(folder.run)
    assert saved.step == end.record.step == 5 and saved.skipped == ATTEMPTS
    assert all(value.isfinite().all() for value in saved.radiance_field.state_dict().values())
    end = list(worker.advance(folder))[-1]
    assert end.record.status == "finished" and HiFARun.load(folder.run).skipped == ATTEMPTS


def test_a_field_that_was_spoilt_does_not_replace_the_last_save(tmp_path, model_cache, monkeypatch):
    worker = make_worker(tmp_path, model_cache)
    folder = worker.store.create(request(10))
    pipe = model_cache.get("toybox")
    advance = type(pipe).advance

    def poisoned(self, run, steps=None):
        for step in advance(self, run, steps):
            yield step
            if run.step == 5:
                with torch.no_grad():
                    next(run.radiance_field.parameters()).fill_(torch.nan)

    monkeypatch.setattr(type(pipe), "advance", poisoned)
    end = list(worker.advance(folder))[-1]
    assert end.record.status == "paused" and "diverged at step 6" in end.text
    assert HiFARun.load(folder.run).step == 0
