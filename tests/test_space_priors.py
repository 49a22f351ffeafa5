"""The shelf of priors: nobody waits for the download of another, failures are remembered for a while and said."""

import threading
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

import app
from hifa.space.settings import about

from .space_setup import BallPipeline, tiny_pipeline, tiny_shelf


class Loads:
    """Loads the tiny prior; the other one waits until it is told to go on, and then cannot be loaded."""

    def __init__(self):
        self.calls, self.begun, self.go_on = [], threading.Event(), threading.Event()

    def __call__(self, model, **options):
        self.calls.append(model)
        if not isinstance(model, Path):
            self.begun.set()
            assert self.go_on.wait(60)
            raise OSError(f"{model} is not on this disk")
        return BallPipeline.from_pretrained(model, **options)


@pytest.fixture
def shelf(tiny_prior):
    shelf = tiny_shelf(tiny_prior)
    shelf._load = Loads()
    return shelf


def test_a_slow_download_keeps_nobody_from_another_prior(shelf):
    slow = threading.Thread(target=shelf.get_or_fall_back, args=("lost",))
    slow.start()
    assert shelf._load.begun.wait(60)
    try:
        key, _, notice = shelf.get_or_fall_back("toybox")
        assert key == "toybox" and not notice and slow.is_alive()
    finally:
        shelf._load.go_on.set()
        slow.join(60)


def test_a_failure_is_remembered_for_a_while(shelf):
    shelf._load.go_on.set()
    notices = [shelf.get_or_fall_back("lost")[2] for _ in range(3)]
    assert shelf._load.calls.count("no/where") == 1
    assert len(set(notices)) == 1 and "Lost prior cannot be loaded: no/where is not on this disk" in notices[0]
    shelf.forget_failures = 0.0
    shelf.get_or_fall_back("lost")
    assert shelf._load.calls.count("no/where") == 2


def test_a_default_that_cannot_be_loaded_is_no_default_and_this_is_said(shelf, tmp_path):
    shelf.priors["lost"] = replace(shelf.priors["lost"], needs_gpu=True)
    shelf.get("toybox")
    shelf.device = type(shelf.device)("cuda")
    assert shelf.default.key == "lost"
    shelf._load.go_on.set()
    _, _, notice = shelf.get_or_fall_back(shelf.default.key)
    assert shelf.default.key == "toybox"
    assert "cannot be loaded now: no/where is not on this disk" in about(shelf, shelf.priors["lost"])
    demo = app.build_demo(tmp_path, shelf, tiny_pipeline, notice=notice)
    chosen = next(block for block in demo.blocks.values() if getattr(block, "elem_id", "") == "text-prior")
    assert chosen.value == "toybox"
    assert [b.value for b in demo.blocks.values() if isinstance(b, gr.Markdown) and b.elem_id == "notice"] == [notice]
