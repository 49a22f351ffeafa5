"""Files of a run: whatever happens while they are made, they can be made; a mesh is replaced whole or not at all."""

import multiprocessing
import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
import trimesh

from benchmarks.load import Told, Visitor, check, make_late
from hifa.space.jobs import gpu_lease as lease
from hifa.space.jobs.exports import KINDS, MeshOptions, share_of
from hifa.space.jobs.run_store import PICTURE, RunFolder
from hifa.space.jobs.status import RunStatus
from hifa.space.jobs.worker import Worker
from hifa.space.ui.image_inputs import sample_pictures
from hifa.space.ui.validation import read_photo
from tests.helpers.space import BallPipeline, make_worker, request, small, tiny_model_cache


pytestmark = pytest.mark.usefixtures("light_files")
STAGES = ("Reading the run", "Finding the surface", "Coloring", "Making the turntable", "Packing")


@pytest.fixture(scope="module")
def model_cache(tiny_prior):
    return tiny_model_cache(tiny_prior, BallPipeline)


@pytest.fixture
def worker(tmp_path, model_cache) -> Worker:
    return make_worker(tmp_path, model_cache)


def leave_at(stream, words: str) -> None:
    """Read until a text holds the words, then go away."""
    with closing(stream):
        assert any(words in state.text for state in stream), f"it never came to {words!r}"


def last(stream) -> RunStatus:
    return list(stream)[-1]


@pytest.mark.parametrize("stage", STAGES)
def test_who_leaves_while_files_are_made_gets_them_later(worker, stage):
    folder = worker.store.create(request(4))
    leave_at(worker.advance(folder), stage)
    record = folder.read()
    assert record.status == "finished" and record.step == 4 and not folder.busy
    assert set(record.files) < set(KINDS)
    end = last(worker.make_files(folder))
    assert set(end.files) == set(KINDS) and not end.missing and end.settled
    assert end.record.status == "finished" and end.record.step == 4


def test_to_advance_a_finished_run_makes_its_missing_files_only(worker):
    folder = worker.store.create(request(4))
    leave_at(worker.advance(folder), "Packing")
    mesh = folder.files / folder.read().files["glb"]
    written = mesh.stat().st_mtime_ns
    end = last(worker.advance(folder))
    assert set(end.files) == set(KINDS) and end.files["glb"] == mesh and mesh.stat().st_mtime_ns == written


def test_the_load_test_counts_runs_without_files(worker):
    folder = worker.store.create(request(4))
    leave_at(worker.advance(folder), "Packing")
    asked = (folder.read().request.prompt, folder.read().request.seed)
    visitors = [Visitor(0, runs={folder.id: Told(asked), "gone" * 6: Told(("a red mug", 4))})]
    assert check(visitors, worker.store) == (1, 1, 0)
    assert make_late(visitors, worker.store) == (1, 0)
    assert make_late(visitors, worker.store) == (0, 0)
    for kind in KINDS:
        assert (folder.files / folder.read().files[kind]).is_file()


def test_the_load_test_sees_what_is_mixed_up(worker):
    folder = worker.store.create(request(4))
    last(worker.advance(folder))
    prompt, seed = folder.read().request.prompt, folder.read().request.seed
    told = Told((prompt, seed))

    def mixed(visitor: Visitor) -> int:
        there, lost, count = check([visitor], worker.store)
        assert (there, lost) == (1, 0)
        return count

    assert mixed(Visitor(0, runs={folder.id: told})) == 0
    assert mixed(Visitor(0, runs={folder.id: Told((prompt, seed + 1))})) > 0
    duck, chair = (path for path in sample_pictures() if path.stem in ("yellow-duck", "red-chair"))
    assert mixed(Visitor(0, duck, {folder.id: told})) > 0, "it has no picture"
    read_photo(str(duck), folder.read().request.object_share).image.save(folder.path / PICTURE)
    assert mixed(Visitor(0, duck, {folder.id: told})) == 0
    assert mixed(Visitor(0, chair, {folder.id: told})) > 0 and mixed(Visitor(0, runs={folder.id: told})) > 0


def test_files_of_a_stopped_run_can_be_made_without_going_on(worker, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    folder = worker.store.create(request(200))
    with closing(worker.advance(folder)) as stream:
        for state in stream:
            if state.record.step == 3:
                folder.request_stop()
            if "Finding the surface" in state.text:
                break
    stopped = folder.read()
    assert stopped.status == "stopped" and not stopped.files
    end = last(worker.make_files(folder))
    assert set(end.files) == set(KINDS) and end.record.step == stopped.step < 200


def test_a_paused_run_has_files_to_make(worker, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    folder = worker.store.create(request(200))
    with closing(worker.advance(folder)) as stream:
        assert any(state.record.step >= 3 for state in stream)
    end = last(worker.make_files(folder))
    assert end.record.status == "paused" and set(end.files) == set(KINDS)


def test_files_of_an_earlier_step_count_as_missing(worker, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    folder = worker.store.create(request(8))
    with closing(worker.advance(folder)) as stream:
        assert any(state.record.step >= 2 for state in stream)
    early = last(worker.make_files(folder)).record
    leave_at(worker.advance(folder), "Finding the surface")
    record = folder.read()
    assert record.status == "finished" and set(record.made_at.values()) == {early.step} and early.step < 8
    end = last(worker.make_files(folder))
    assert set(end.record.made_at.values()) == {8} and not end.missing


@pytest.mark.parametrize("name", ["a-red-mushroom.mp4", "a-red-mushroom-asset.zip", "a-red-mushroom-run.zip"])
def test_a_stage_that_fails_says_why_and_is_made_later(worker, name):
    folder = worker.store.create(request(4))
    obstacle = folder.files / name
    obstacle.mkdir()  # no file can be written over a folder
    (obstacle / "x").touch()
    end = last(worker.advance(folder))
    assert end.record.status == "finished" and "Finished 4 steps" in end.text and end.record.problem in end.text
    assert end.record.problem and end.missing and "glb" in end.files
    (obstacle / "x").unlink()
    obstacle.rmdir()
    end = last(worker.make_files(folder))
    assert set(end.files) == set(KINDS) and not end.record.problem


def test_a_server_that_is_killed_while_files_are_made(tmp_path, tiny_prior, worker):
    """A process of its own, because SIGKILL lets nothing be put in order."""
    spawn = multiprocessing.get_context("spawn")
    folder = worker.store.create(request(4))
    here, there = spawn.Pipe()
    process = spawn.Process(target=advance_in_a_process, args=(tmp_path, tiny_prior, folder.id, there))
    process.start()
    deadline = time.monotonic() + 240
    while "Making the turntable" not in (text := here.recv() if here.poll(1) else ""):
        assert process.is_alive() and time.monotonic() < deadline, text
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert folder.read().status == "finished" and not folder.busy
    end = last(worker.make_files(folder))
    assert set(end.files) == set(KINDS)


def advance_in_a_process(root: Path, model: Path, run_id: str, news) -> None:
    torch.set_num_threads(1)
    small(pytest.MonkeyPatch())
    worker = make_worker(root, tiny_model_cache(model, BallPipeline))
    for state in worker.advance(RunFolder(worker.store.root / run_id)):
        news.send(state.text)
        if "Making the turntable" in state.text:
            time.sleep(240)  # to be killed here


# The mesh again


def faces(end: RunStatus) -> tuple[int, int]:
    """Of the GLB and of the PLY."""
    return tuple(len(trimesh.load(end.files[kind], force="mesh").faces) for kind in ("glb", "ply"))


def test_a_mesh_that_is_cancelled_leaves_the_old_one_and_lets_go_at_once(worker):
    folder = worker.store.create(request(4))
    before = last(worker.advance(folder))
    for words in ("Finding the surface", "Coloring"):
        leave_at(worker.remake_mesh(folder, MeshOptions(32, 300, 64)), words)
        assert not folder.busy
        after = folder.read()
        assert after.files == before.record.files and after.metadata == before.record.metadata
    # And at once another one can be made.
    end = last(worker.remake_mesh(folder, MeshOptions(32, 300, 64)))
    assert faces(end)[0] == faces(end)[1] <= 300 and not end.making and not end.missing
    # Of what was begun nothing stays but the current mesh and, for who downloads it, the one before.
    again = last(worker.remake_mesh(folder, MeshOptions(32, 200, 64)))
    assert len(list(folder.files.glob("mesh-*"))) <= 2 and faces(again)[0] <= 200


def test_the_bar_of_an_extraction_goes_from_nothing_to_the_whole(worker):
    folder = worker.store.create(request(4))
    last(worker.advance(folder))
    states = list(worker.remake_mesh(folder, MeshOptions(64, 2000, 512)))
    shares = [state.share for state in states if state.making]
    assert shares == sorted(shares) and shares[0] == 0 and 0.35 < shares[-1] <= 1


def test_the_bar_of_an_export_rises_from_nothing_to_the_whole(worker):
    folder = worker.store.create(request(4))
    shares = [state.share for state in worker.advance(folder) if state.exporting]
    assert shares == sorted(shares) and shares[0] == 0 and 0.9 < shares[-1] < 1 and len(set(shares)) > 3


def test_shares_of_the_stages_by_hand():
    assert share_of(["mesh", "mp4", "asset", "run"], "mesh", 0.5) == pytest.approx(1.5 / 5.2)
    assert share_of(["mesh", "mp4", "asset", "run"], "asset", 0.0) == pytest.approx(5 / 5.2)
    assert share_of(["mp4"], "mp4", 0.25) == 0.25


def test_a_long_extraction_can_be_left_within_a_second(worker):
    folder = worker.store.create(request(4))
    last(worker.advance(folder))
    # Fine enough to take several seconds.
    with closing(worker.remake_mesh(folder, MeshOptions(256, 100_000, 2048))) as stream:
        assert any("Finding" in state.text and state.making for state in stream)
        next(stream)
        asked = time.monotonic()
    assert time.monotonic() - asked < 1 and not folder.busy


def test_a_failing_turntable_does_not_keep_the_other_files_back(worker, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "missing"))
    folder = worker.store.create(request(4))
    end = last(worker.advance(folder))
    assert set(end.files) == set(KINDS) - {"mp4"} and "turntable could not be made" in end.record.problem
    assert "error: the turntable: " in capsys.readouterr().err
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    assert set(last(worker.make_files(folder)).files) == set(KINDS)


def test_a_failing_unwrap_leaves_a_ply_and_all_else(worker, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("xatlas ran out of charts")

    monkeypatch.setattr("hifa.export.texture.unwrap", fail)
    folder = worker.store.create(request(4))
    end = last(worker.advance(folder))
    assert set(end.files) == set(KINDS) - {"glb", "obj"} and "xatlas ran out of charts" in end.record.problem
    monkeypatch.undo()
