"""What Gradio keeps on disk: where, and how much of it."""

import os
import tempfile
import time
from pathlib import Path

import gradio as gr
import httpx
import pytest
from gradio.utils import get_upload_folder
from PIL import Image

import app
from hifa.space.jobs.run_store import Request, RunStore
from hifa.space.jobs.upload_cache import VARIABLE, Served, folder_for, serve_from
from tests.helpers.space import free_port, tiny_model_cache, tiny_pipeline


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Gradio keeps its files below here, and what a test changes about that is taken back."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


def copies(folder, number):
    """Files as Gradio puts them there: each in a folder of its own, with the time of what it is a copy of."""
    paths = [folder / f"{i}" / "mesh.glb" for i in range(number)]
    for age, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100))
        os.utime(path, (0, 100 - age))
        time.sleep(0.02)
    return paths


def test_what_was_put_there_longest_ago_goes_when_a_run_is_made_and_there_is_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    store = RunStore(tmp_path / "runs")
    store.served.max_bytes = 250
    paths = copies(store.served.path, 4)
    run = store.create(Request("text", "a red mushroom", "toybox", 3))
    assert all(path.exists() for path in paths), "somebody may be about to use what is young"
    store.served.young = 0.0
    store.sweep(now=True)
    assert [path.exists() for path in paths] == [False, False, True, True] and run.path.exists()
    assert store.served.sweep() == Served(tmp_path / "nowhere").sweep() == []
    assert not paths[0].parent.exists() and paths[2].parent.exists(), "an empty folder goes the next time"


def test_what_every_visitor_gets_is_kept_wherever_the_server_was_started(elsewhere, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "picture.png")
    with gr.Blocks() as demo:
        gr.Gallery([(str(tmp_path / "picture.png"), "red")])
    (shown,) = elsewhere.rglob("*.*")
    others = copies(elsewhere, 2)
    monkeypatch.chdir(tmp_path)
    served = Served(Path("elsewhere"), max_bytes=0, young=0.0)
    served.keep(demo)
    assert served.sweep() == others and shown.exists()


def test_a_disk_that_refuses_keeps_nobody_from_a_run(tmp_path, monkeypatch):
    store = RunStore(tmp_path)

    def refuse():
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.served, "sweep", refuse)
    assert store.create(Request("text", "a red mushroom", "toybox", 3)).path.exists()


def test_each_server_has_a_folder_of_its_own_unless_somebody_chose_one(elsewhere, tmp_path, monkeypatch):
    serve_from(tmp_path)
    assert get_upload_folder() == str(elsewhere)
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    serve_from(tmp_path)
    assert get_upload_folder() == str(RunStore(tmp_path).served.path) != str(RunStore(tmp_path / "other").served.path)


def test_an_upload_is_given_back_as_a_download_alone(elsewhere, tiny_prior, tmp_path, monkeypatch):
    """It could be a page with a script in it, which would act for whoever opens it. As `main` launches the app, with
    its runs out of the working folder.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv(VARIABLE)
    root = tmp_path / "runs"
    serve_from(root)
    demo = app.build_demo(root, tiny_model_cache(tiny_prior), tiny_pipeline)
    app.launch(demo, allowed_paths=app.given_away(root), prevent_thread_lock=True, server_port=free_port(), quiet=True)
    try:
        page = {"files": ("page.html", b"<script>alert(1)</script>", "text/html")}
        (path,) = httpx.post(f"{demo.local_url}gradio_api/upload", files=page).json()
        assert Path(path).is_relative_to(RunStore(root).served.path) and root in map(Path, app.given_away(root))
        answer = httpx.get(f"{demo.local_url}gradio_api/file={path}")
        assert answer.status_code == 200 and answer.headers["content-disposition"].startswith("attachment")
        assert "html" not in answer.headers["content-type"]
    finally:
        demo.close()


@pytest.fixture
def shared(tmp_path, elsewhere, monkeypatch):
    """The temporary directory of several users, and nobody has chosen a place."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


def test_nobody_else_can_look_into_the_folder(shared, tmp_path, monkeypatch):
    serve_from(tmp_path)
    folder = Path(get_upload_folder())
    assert folder == folder_for(tmp_path) and mode(folder) == 0o700
    folder.chmod(0o755)  # as an earlier version left it
    monkeypatch.delenv(VARIABLE)
    serve_from(tmp_path)
    assert Path(get_upload_folder()) == folder and mode(folder) == 0o700


@pytest.mark.parametrize("squatter", ["link", "dangling", "file", "folder"])
def test_a_neighbor_who_makes_the_folder_first_gets_nothing(shared, tmp_path, monkeypatch, squatter):
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("mine")
    taken = folder_for(tmp_path)
    if squatter in ("link", "dangling"):
        taken.symlink_to(home if squatter == "link" else tmp_path / "nowhere")
    elif squatter == "file":
        taken.touch()
    else:  # of another user
        taken.mkdir(mode=0o777)
        monkeypatch.setattr(os, "getuid", lambda: taken.stat().st_uid + 1)
    serve_from(tmp_path)
    folder = Path(get_upload_folder())
    assert folder != taken and folder.parent == shared and not folder.is_symlink() and mode(folder) == 0o700
    assert RunStore(tmp_path).served.path == folder, "and it is the one that is kept small"
    # What was taken is not swept either, by whoever did not ask for another place.
    monkeypatch.delenv(VARIABLE)
    store = RunStore(tmp_path)
    store.served.max_bytes, store.served.young = 0, 0.0
    assert store.served.path == taken and store.served.sweep() == [] and (home / "letter.txt").exists()


def test_links_in_the_folder_are_not_followed(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("mine")
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "home").symlink_to(tmp_path / "home")
    (folder / "letter.txt").symlink_to(tmp_path / "home" / "letter.txt")
    assert Served(folder, max_bytes=0, young=0.0).sweep() == [] and (tmp_path / "home" / "letter.txt").exists()
