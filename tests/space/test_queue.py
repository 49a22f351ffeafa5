"""One run works at a time: the others are told their place, and Stop ends them without waiting for their turn."""

import threading
import time

import pytest

from hifa.space.jobs import gpu_lease as lease
from hifa.space.jobs.queue import RunQueue
from tests.helpers.space import BallPipeline, LearningPipeline, make_worker, request, tiny_model_cache


pytestmark = pytest.mark.usefixtures("light_files")


@pytest.fixture(scope="module")
def model_cache(tiny_prior):
    return tiny_model_cache(tiny_prior, LearningPipeline)


def test_a_place_moves_up_when_others_leave():
    line = RunQueue()
    with line.joined("a"), line.joined("c"):
        with line.joined("b"):
            assert [line.before(run) for run in ("a", "c", "b", "x")] == [0, 1, 2, 0]
        assert line.before("c") == 1
    assert line.before("c") == 0


class Visitor:
    """Reads what a worker says of a run, in a thread of its own."""

    def __init__(self, worker, folder):
        self.folder, self.states = folder, []
        self._thread = threading.Thread(target=self._read, args=(worker,))
        self._thread.start()

    def _read(self, worker) -> None:
        for state in worker.advance(self.folder):
            self.states.append(state)

    @property
    def text(self) -> str:
        return self.states[-1].text if self.states else ""

    def until(self, words: str) -> None:
        deadline = time.monotonic() + 60
        while words not in self.text:
            assert time.monotonic() < deadline, f"{self.text!r} never became {words!r}"
            time.sleep(0.02)

    def ended(self) -> str:
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self.text


def test_who_waits_is_told_the_place_and_can_be_stopped(tmp_path, model_cache, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    worker = make_worker(tmp_path, model_cache)
    first = Visitor(worker, worker.store.create(request(2000)))
    first.until("Step")
    second = Visitor(worker, worker.store.create(request(2000)))
    second.until("Waiting in line: 1 run before this one.")
    third = Visitor(worker, worker.store.create(request(4)))
    third.until("Waiting in line: 2 runs before this one.")
    assert third.states[-1].working and third.states[-1].record.status == "waiting"
    # Stop of one that waits, while another works on.
    second.folder.request_stop()
    asked = time.monotonic()
    assert "Stopped before the first step" in second.ended()
    assert time.monotonic() - asked < 2 and first.states[-1].record.status == "running"
    third.until("Waiting in line: 1 run before this one.")
    first.folder.request_stop()
    assert "Stopped at step" in first.ended() and "Finished 4 steps" in third.ended()


def test_the_mesh_of_a_stopped_run_is_there_in_two_seconds(tmp_path, model_cache, monkeypatch):
    monkeypatch.setattr(lease, "PREVIEW_SECONDS", 0.0)
    worker = make_worker(tmp_path, model_cache)
    folder = worker.store.create(request(2000))
    asked = None
    for state in worker.advance(folder):
        if state.record.step == 5 and asked is None:
            folder.request_stop()
            asked = time.monotonic()
        if "glb" in state.files:
            break
    assert time.monotonic() - asked < 2


@pytest.mark.parametrize("in_turn", [True, False])
def test_where_files_are_made_beside_the_next_run_works_meanwhile(tmp_path, tiny_prior, in_turn):
    worker = make_worker(tmp_path, tiny_model_cache(tiny_prior, BallPipeline), export_in_turn=in_turn)
    first = worker.advance(worker.store.create(request(4)))
    assert any("Finding the surface" in state.text for state in first)
    second = worker.advance(worker.store.create(request(4)))
    assert ("1 run before" in next(second).text) == in_turn
    if in_turn:
        first.close()
    assert any("Step 4" in state.text or "Finished 4" in state.text for state in second)
    first.close()


def test_who_leaves_the_line_makes_room(tmp_path, model_cache):
    worker = make_worker(tmp_path, model_cache)
    folder = worker.store.create(request(4))
    with worker.line.joined("another"):
        stream = worker.advance(folder)
        assert "1 run before" in next(stream).text
        stream.close()
    assert not folder.busy and folder.read().status == "waiting"
    assert [state.text for state in worker.advance(folder)][-1].startswith("Finished 4 steps")
