"""What Gradio keeps on disk: where, and how much of it."""

import os
import time

import gradio as gr
import pytest
from gradio.utils import get_upload_folder
from PIL import Image

from hifa.space.served import VARIABLE, Served, served_beside
from hifa.space.store import Request, RunStore


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


def test_what_was_put_there_longest_ago_goes_when_a_run_is_made_and_there_is_too_much(tmp_path):
    store = RunStore(tmp_path)
    store.served.max_bytes = 250
    paths = copies(store.served.path, 4)
    run = store.create(Request("text", "a red mushroom", "toybox", 3))
    assert [path.exists() for path in paths] == [False, False, True, True]
    assert not paths[0].parent.exists() and run.path.exists()
    assert store.served.sweep() == Served(tmp_path / "nowhere").sweep() == []


def test_what_every_visitor_gets_is_kept(elsewhere, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "picture.png")
    with gr.Blocks() as demo:
        gr.Gallery([(str(tmp_path / "picture.png"), "red")])
    (shown,) = elsewhere.rglob("*.*")
    others, served = copies(elsewhere, 2), Served(elsewhere, max_bytes=0)
    served.keep(demo)
    assert served.sweep() == others and shown.exists()


def test_it_is_beside_the_runs_unless_somebody_chose_another_place(elsewhere, tmp_path, monkeypatch):
    served_beside(tmp_path)
    assert get_upload_folder() == str(elsewhere)
    monkeypatch.delenv(VARIABLE)
    served_beside(tmp_path)
    assert get_upload_folder() == str(RunStore(tmp_path).served.path)
