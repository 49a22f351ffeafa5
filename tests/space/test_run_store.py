"""Runs on disk: ids, locks, what survives, and what is cleaned up."""

import json
import multiprocessing
import os
import shutil
import threading
import time

import pytest

from hifa.space.jobs.run_store import BusyRunError, Record, Request, RunFolder, RunStore, UnknownRunError
from hifa.space.ui.history import History


REQUEST = Request("image", "a red mushroom", "toybox", 3, "blue", {"num_inference_steps": 5}, view_seeds=(3, 4))


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(tmp_path / "runs")


def test_a_record_comes_back_as_it_was(store):
    folder = store.create(REQUEST)
    record = folder.write(folder.read(), step=4, files={"glb": "a.glb"}, metadata={"faces": 7})
    again = store.open(folder.id).read()
    assert again == record and again.request == REQUEST and isinstance(again.request.view_seeds, tuple)


def test_ids_cannot_be_guessed_and_folders_not_be_listed_by_others(store):
    ids = {store.create(REQUEST).id for _ in range(50)}
    assert len(ids) == 50 and all(len(run_id) == 22 for run_id in ids)
    assert os.stat(store.root).st_mode & 0o077 == 0
    assert os.stat(store.root / ids.pop()).st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "evil", ["..", "../../etc/passwd", "/etc", "", None, 5, ["x"], "a" * 22, "x" * 21 + "/", "\0" * 22]
)
def test_no_path_gets_in_as_an_id(store, evil):
    (store.root.parent / "record.json").write_text(json.dumps({"request": {}}))
    with pytest.raises(UnknownRunError, match="no run with this address"):
        store.open(evil)


def test_one_works_on_a_run_at_a_time_and_a_killed_process_lets_go(store):
    folder = store.create(REQUEST)
    fork = multiprocessing.get_context("fork")
    held = fork.Event()
    holder = fork.Process(target=hold, args=(folder, held))
    holder.start()
    try:
        assert held.wait(30)
        assert folder.busy
        with pytest.raises(BusyRunError, match="another window"), folder.locked(0.2):
            pass
    finally:
        holder.kill()
        holder.join()
    assert not folder.busy
    with folder.locked(0):
        assert folder.busy


def hold(folder: RunFolder, held) -> None:
    with folder.locked():
        held.set()
        time.sleep(60)


def test_old_runs_go_but_not_those_in_use(store):
    old, used, new = (store.create(REQUEST) for _ in range(3))
    past = time.time() - store.max_age - 10
    for folder in (old, used):
        os.utime(folder.path / "record.json", (past, past))
    with used.locked():
        assert store.sweep(now=True) == [old.id]
    assert not old.path.exists() and used.path.exists() and new.path.exists()
    with pytest.raises(UnknownRunError, match="kept for 7 days"):
        store.open(old.id)
    assert old.stop_requested  # whoever still works on it ends


def test_too_much_in_all_drops_what_was_touched_longest_ago(store):
    folders = [store.create(REQUEST) for _ in range(4)]
    for age, folder in enumerate(folders):
        (folder.path / "big").write_bytes(bytes(1000))
        os.utime(folder.path / "record.json", (time.time() - age, time.time() - age))
    store.max_bytes = folders[0].size() + folders[1].size()
    assert set(store.sweep(now=True)) == {folders[2].id, folders[3].id}


def test_a_record_is_never_half_written(store):
    folder = store.create(REQUEST)
    (folder.path / "record.json").write_text('{"request": {"kind"')
    with pytest.raises(UnknownRunError, match="damaged"):
        folder.read()
    folder.write(Record(REQUEST))
    assert folder.read().request == REQUEST
    assert [path.name for path in folder.path.iterdir()] == ["record.json"]


def test_history_is_of_a_name_that_the_browser_keeps(store):
    folder, other = store.create(REQUEST), store.create(REQUEST)
    history = History(store)
    for anything in ("", None, ["x" * 22], "../../etc/passwd", 5):
        assert len(history.name(anything)) == 22 and history.runs(anything) == []
    visitor = history.remember("", folder.id)
    # Two windows of one browser know of the same name, and neither takes away what the other one made.
    assert history.remember(visitor, other.id) == history.remember(visitor, "x" * 22) == visitor
    assert history.runs(visitor) == ["x" * 22, other.id, folder.id]
    assert history.remember(visitor, folder.id) == visitor
    assert history.runs(visitor) == [folder.id, "x" * 22, other.id]
    assert [entry.run.id for entry in history.entries(visitor)] == [folder.id, other.id], "one is gone"
    assert "a red mushroom" in history.html(visitor)
    assert other.id not in history.html(history.remember("", folder.id)), "nothing of another visitor"


@pytest.mark.parametrize("content", ["5", "{}", '["a", 5]', "no json"])
def test_a_damaged_list_and_a_full_disk_keep_nobody_from_a_run(store, content, monkeypatch):
    history = History(store)
    visitor = history.remember("", "a")
    (store.root / "visitors" / visitor).write_text(content)
    assert history.runs(visitor) in ([], ["a"]) and "Nothing yet" in history.html(visitor)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("hifa.space.ui.history.write_text_atomically", full)
    assert history.remember(visitor, "b") == visitor


def test_a_name_is_forgotten_with_its_runs(store):
    history, folder = History(store), store.create(REQUEST)
    visitor = history.remember("", folder.id)
    path = store.root / "visitors" / visitor
    old = time.time() - store.max_age - 1
    os.utime(path, (old, old))
    history.remember("", store.create(REQUEST).id)
    assert history.runs(visitor) == [folder.id], "a run that was touched later keeps its place in the list"
    shutil.rmtree(folder.path)
    history.remember("", store.create(REQUEST).id)
    assert not path.exists() and history.runs(visitor) == []
    assert store.sweep(now=True) == [], "what is kept of visitors is no run"


def test_resume_takes_back_a_stop_but_not_one_of_a_run_that_is_going_on(store):
    folder = store.create(REQUEST)
    folder.request_stop()
    folder.clear_stop()
    assert not folder.stop_requested
    with folder.locked():
        folder.request_stop()
        with pytest.raises(BusyRunError, match="here or in another window"):
            folder.clear_stop(0.1)
        assert folder.stop_requested


def test_another_thread_can_release_the_lock(tmp_path):
    """Gradio runs the steps of a generator in different threads."""
    folder = RunStore(tmp_path).create(REQUEST)
    holding = folder.locked()
    holding.__enter__()
    assert folder.busy
    thread = threading.Thread(target=holding.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert not folder.busy
