"""Runs of the app without its page: stop, resume, leases that end, and errors; nothing computed may get lost."""

import asyncio
import errno
import math
import os
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from PIL import Image

import app
from hifa import HiFAConfig, HiFAPipeline, HiFARun
from hifa.export import EmptyFieldError
from hifa.multiview import sheet
from hifa.run import FILE
from hifa.saved import RunError
from hifa.space import files, lease
from hifa.space.actions import Actions, Guided
from hifa.space.errors import explain
from hifa.space.panel import facts_html
from hifa.space.sheets import Sheets
from hifa.space.store import Request, RunStore
from hifa.state import read

from .space_setup import (
    STEPS,
    BallPipeline,
    LearningPipeline,
    assert_same,
    finished_run,
    make_worker,
    request,
    tiny_shelf,
)  # fmt: skip
from .syncdreamer_models import tiny_pipeline
from .test_given_views import shades


pytestmark = pytest.mark.usefixtures("light_files")


@pytest.fixture(scope="module")
def shelf(tiny_prior):
    return tiny_shelf(tiny_prior, LearningPipeline)


@pytest.fixture(scope="module")
def reference(shelf):
    return finished_run(shelf, torch.get_num_threads())


def test_a_run_is_worked_off_and_its_files_are_made(tmp_path, tiny_prior):
    worker = make_worker(tmp_path, tiny_shelf(tiny_prior, BallPipeline))
    folder = worker.store.create(request())
    states = list(worker.advance(folder))
    looks = [state for state in states if state.previews]
    assert set(looks[0].previews) == {"colour", "normals", "depth", "opacity"} and looks[0].record.step == 0
    assert len({looks[0].previews[mode] for mode in looks[0].previews}) == 4
    end = states[-1]
    assert end.record.status == "finished" and end.settled and not end.working and "Finished 16 steps" in end.text
    assert set(end.files) == {"glb", "obj", "ply", "mp4", "asset", "run"}
    assert end.record.facts["faces"] > 100 and worker.timings.get("text/toybox/default") > 0
    assert end.status()["status"] == "finished" and end.status()["seed"] == 3


def test_stop_keeps_what_is_there_and_resume_gives_the_uninterrupted_run(tmp_path, shelf, reference, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    worker = make_worker(tmp_path, shelf)
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


def test_drafts_of_a_stopped_run_can_be_made_in_full(tmp_path, shelf, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(files, "STOPPED_MESH", files.MeshOptions(32, 1000, 128))
    worker = make_worker(tmp_path, shelf)
    folder = worker.store.create(request())
    for state in worker.advance(folder):
        if state.record.step == 4 and state.working:
            folder.request_stop()
    assert state.record.status == "stopped" and state.record.facts["texture_size"] == 128
    assert "drafts" in facts_html(state) and not state.missing
    end = list(worker.make_files(folder))[-1]
    assert end.record.status == "stopped" and end.record.facts["texture_size"] == 64
    assert "drafts" not in facts_html(end)
    folder.clear_stop()
    assert "drafts" not in facts_html(list(worker.advance(folder))[-1])


def test_files_that_are_put_off_are_made_later(tmp_path, shelf, monkeypatch):
    worker = make_worker(tmp_path, shelf)
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
    assert state.settled and not state.exporting and state.text.endswith("Its files were put off.")
    assert set(state.files) == {"glb", "obj", "ply"} and set(state.missing) == {"mp4", "asset", "run"}
    monkeypatch.setattr(files, "TURNTABLE", files.TurntableOptions(2, 32))
    end = list(worker.make_files(folder))[-1]
    assert not end.missing and "put off" not in end.text


def test_stop_before_its_turn_ends_a_run_before_the_first_step(tmp_path, shelf):
    worker = make_worker(tmp_path, shelf)
    folder = worker.store.create(request())
    folder.request_stop()
    end = list(worker.advance(folder))[-1]
    assert end.record.status == "stopped" and not folder.started and "before the first step" in end.text


def test_a_reader_that_goes_away_leaves_a_run_that_goes_on(tmp_path, shelf, reference, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    worker = make_worker(tmp_path, shelf)
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


def test_a_second_worker_is_refused_and_can_look_on(tmp_path, shelf, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    worker = make_worker(tmp_path, shelf)
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


def test_a_hundred_who_look_on_hold_no_thread(tmp_path, shelf):
    worker = make_worker(tmp_path, shelf)
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
    worker = make_worker(tmp_path, tiny_shelf(tiny_prior, BallPipeline))
    end = list(worker.advance(worker.store.create(request(10))))[-1]
    assert end.record.status == "finished" and "no surface yet" in end.text
    assert set(end.files) == {"asset", "run"} and not end.missing, "what can be made without a surface is made"


def test_files_of_an_earlier_step_stay_when_the_surface_is_lost(tmp_path, tiny_prior, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    worker = make_worker(tmp_path, tiny_shelf(tiny_prior, BallPipeline))
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


def test_a_diverged_step_does_not_replace_the_last_save(tmp_path, shelf, monkeypatch):
    worker = make_worker(tmp_path, shelf)
    folder = worker.store.create(request(10))
    pipe = shelf.get("toybox")
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


# Pictures


def test_a_picture_becomes_views_and_the_best_ones_are_reconstructed(tmp_path, shelf):
    worker = make_worker(tmp_path, shelf)
    folder = worker.store.create(
        Request("image", "", "toybox", 3, settings={"num_inference_steps": 4}, view_seeds=(3, 4), view_steps=2)
    )
    picture = Image.new("RGBA", (64, 64))
    picture.paste((200, 30, 30, 255), (16, 16, 48, 48))
    picture.save(folder.path / "picture.png")
    states = list(worker.advance(folder))
    assert any("Views of seed 3: denoising step 1 of 2" in state.text for state in states)
    sheets = Sheets(folder.path)
    assert set(sheets.scores()) == {3, 4} and sheets.missing((3, 4, 5)) == [5]
    assert sheets.best().width == 16 * sheets.best().height
    # Random weights draw views that may show nothing, which is said and keeps the views.
    assert states[-1].record.status in ("finished", "failed")
    if states[-1].record.status == "failed":
        assert "nothing but background" in states[-1].text


def test_views_are_made_in_as_many_steps_as_their_model_is_made_for(tmp_path, shelf):
    multiview = tiny_pipeline()
    multiview.register_to_config(num_inference_steps=3)
    folder = RunStore(tmp_path).create(Request("image", "", "toybox", 3, view_seeds=(3,), views_only=True))
    picture = Image.new("RGBA", (64, 64))
    picture.paste((200, 30, 30, 255), (16, 16, 48, 48))
    picture.save(folder.path / "picture.png")
    news = list(lease.begin(lease.Models(shelf, lambda: multiview), shelf.get("toybox"), folder, math.inf))
    told = [item.text.split(": ")[-1].split(",")[0] for item in news if "denoising" in item.text]
    assert list(dict.fromkeys(told)) == [f"denoising step {step} of 3" for step in (1, 2, 3)]
    assert news[-1].share == 1


class Pausing:
    """A multi-view model whose denoising waits at its first step until it may go on."""

    def __init__(self):
        self.pipe, self.reached, self.may_go_on = tiny_pipeline(), threading.Event(), threading.Event()
        step = self.pipe.scheduler.step

        def wait(*arguments, **options):
            self.reached.set()
            assert self.may_go_on.wait(60)
            return step(*arguments, **options)

        self.pipe.scheduler.step = wait


def pictured(store: RunStore, colour: tuple[int, int, int], seed: int, view_steps: int = 2):
    """A waiting run that wants views of a square."""
    request = Request("image", "", "toybox", seed, view_seeds=(seed,), view_steps=view_steps, views_only=True)
    folder = store.create(request)
    picture = Image.new("RGBA", (64, 64))
    picture.paste((*colour, 255), (16, 16, 48, 48))
    picture.save(folder.path / "picture.png")
    return folder


def views_by(models: lease.Models, folder):
    return lease.begin(models, models.shelf.get("toybox"), folder, math.inf)


def test_who_leaves_while_views_are_made_is_not_in_the_way_of_the_next(tmp_path, shelf):
    store, pausing = RunStore(tmp_path), Pausing()
    left, other = pictured(store, (200, 30, 30), 1), pictured(store, (30, 30, 200), 2)
    models = lease.Models(shelf, lambda: pausing.pipe)
    with closing(views_by(models, left)) as news:
        for _ in news:
            if pausing.reached.is_set():
                break
    threading.Timer(1.0, pausing.may_go_on.set).start()  # until then the model is not free
    texts = [item.text for item in views_by(models, other)]
    assert any(text.startswith("Views of seed 2, ") for text in texts), "something new while it waits"
    alone = pictured(store, (30, 30, 200), 2)
    list(views_by(lease.Models(shelf, tiny_pipeline), alone))
    made, expected = (Sheets(folder.path).open(2).tobytes() for folder in (other, alone))
    assert made == expected and not Sheets(left.path).scores()


def test_stop_need_not_wait_for_a_step_and_keeps_the_last_one(tmp_path, shelf):
    store, pausing = RunStore(tmp_path), Pausing()
    folder, models = pictured(store, (200, 30, 30), 1, view_steps=1), lease.Models(shelf, lambda: pausing.pipe)
    stream = views_by(models, folder)
    while not pausing.reached.is_set():
        next(stream)
    folder.request_stop()
    asked = time.monotonic()
    with pytest.raises(StopIteration) as end:
        while True:
            next(stream)
    assert end.value.value == lease.STOPPED and time.monotonic() - asked < 2
    pausing.may_go_on.set()
    deadline = time.monotonic() + 60
    while not Sheets(folder.path).scores():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("view_steps, one_step", [(None, True), (1, True), (50, False)])
def test_a_model_made_for_one_step_leaves_little_to_choose_and_says_so(tmp_path, shelf, view_steps, one_step):
    """Without a number it is the embedded model, which is made for one."""
    demo = app.build_demo(tmp_path, shelf, tiny_pipeline, view_steps=view_steps)
    parts = {block.elem_id: block for block in demo.blocks.values()}
    for name in ("image", "guided"):
        assert parts[f"{name}-seeds"].visible and parts[f"{name}-view-steps"].visible
        assert ("makes its views in one step" in parts[f"{name}-seeds"].info) is one_step
        assert parts[f"{name}-view-steps"].value == (view_steps or 1)


def test_views_that_a_model_made_are_reconstructed_as_such(tmp_path, tiny_prior):
    shelf = tiny_shelf(tiny_prior, HiFAPipeline)
    folder = RunStore(tmp_path).create(Request("image", "", "toybox", 3, settings={"num_inference_steps": 1}))
    Sheets(folder.path).give(sheet([image.convert("RGB") for image in shades()]))
    assert not list(lease.begin(lease.Models(shelf, tiny_pipeline), shelf.get("toybox"), folder, math.inf))
    config = HiFARun.load(folder.run).config
    assert config == HiFAConfig.hallucinated(num_inference_steps=1, finest_resolution=32)


def test_a_prompt_that_cannot_be_read_beside_views_is_told_as_the_pipeline_does(tmp_path, tiny_prior):
    """Where the views guide to the end, they are reconstructed alone; where they do not, there is nothing to go on."""
    shelf, store = tiny_shelf(tiny_prior, HiFAPipeline), RunStore(tmp_path)
    sheet([image.convert("RGB") for image in shades()]).save(path := tmp_path / "sheet.png")
    given = Guided(None, 0.8, 20.0, str(path))

    def ask(end: float):
        settings = {"num_inference_steps": 1, "image_guidance_end": end}
        return Actions(store, shelf, 1).guided("hallucination", given, "a zebra", "", "toybox", 3, False, settings)

    folder, notice = ask(1.0)
    assert "reconstructed alone" in notice and "'zebra'" in notice
    assert not list(lease.begin(lease.Models(shelf, tiny_pipeline), shelf.get("toybox"), folder, math.inf))
    assert read(folder.run / FILE)[1]["note"] == notice
    with pytest.raises(ValueError, match="'zebra'"):
        ask(0.5)


@pytest.mark.parametrize("error, words", [
    (torch.OutOfMemoryError("CUDA out of memory"), "too little memory"),
    (OSError(28, "No space left on device"), "disk of the server is full"),
    (ValueError("steps must be 3"), "steps must be 3."),
    (KeyError("x"), "Resume tries again"),
])  # fmt: skip
def test_errors_say_what_to_do(error, words):
    assert words in explain(error)


def no_space(*_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_wherever_it_is_met(tmp_path, shelf, monkeypatch):
    folder = RunStore(tmp_path).create(request())
    list(lease.begin(lease.Models(shelf, tiny_pipeline), shelf.get("toybox"), folder, math.inf))
    run = HiFARun.load(folder.run)
    monkeypatch.setattr(os, "replace", no_space)
    for write in (lambda: folder.write(folder.read()), lambda: run.save(folder.run)):
        with pytest.raises((OSError, ValueError)) as raised:
            write()
        assert "disk of the server is full" in explain(raised.value)


def test_folders_of_the_server_are_not_told(tmp_path, caplog):
    for error in (RunError(f"{str(tmp_path)!r} is damaged."), PermissionError(13, "Permission denied", str(tmp_path))):
        assert str(tmp_path.parent) not in explain(error)
        assert str(tmp_path.parent) in caplog.text, "but to the one who runs it"
        caplog.clear()
    assert "https://huggingface.co/some/model is gone" in explain(OSError("https://huggingface.co/some/model is gone"))


def test_a_run_whose_prior_cannot_be_loaded_is_kept_and_says_what_it_needs(tmp_path, shelf):
    store = RunStore(tmp_path)
    folder = store.create(replace(request(), prior="lost"))
    with pytest.raises(ValueError, match="needs Lost prior, which cannot be loaded now: .*Resume later"):
        Actions(store, shelf, 1).check_resumable(folder)
    Actions(store, shelf, 1).check_resumable(store.create(request()))
