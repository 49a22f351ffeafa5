"""Runs of the app that begin with a picture: views, whose they are, and what is made of them."""

import math
import threading
import time
from contextlib import closing

import pytest
import torch
from PIL import Image

import app
from hifa import HiFAConfig, HiFAPipeline, HiFARun
from hifa.multiview import sheet
from hifa.optimization.run import FILE
from hifa.space.jobs import gpu_lease as lease
from hifa.space.jobs.run_store import Request, RunStore
from hifa.space.jobs.view_sheets import Sheets
from hifa.space.ui.requests import Actions, Guided
from hifa.storage.checkpoint import read
from tests.helpers.space import LearningPipeline, finished_run, make_worker, tiny_model_cache
from tests.helpers.syncdreamer import tiny_pipeline
from tests.helpers.views import shades


pytestmark = pytest.mark.usefixtures("light_files")


@pytest.fixture(scope="module")
def model_cache(tiny_prior):
    return tiny_model_cache(tiny_prior, LearningPipeline)


@pytest.fixture(scope="module")
def reference(model_cache):
    return finished_run(model_cache, torch.get_num_threads())


def test_a_picture_becomes_views_and_the_best_ones_are_reconstructed(tmp_path, model_cache):
    worker = make_worker(tmp_path, model_cache)
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
        assert "only background" in states[-1].text


def test_views_are_made_in_as_many_steps_as_their_model_is_made_for(tmp_path, model_cache):
    multiview = tiny_pipeline()
    multiview.register_to_config(num_inference_steps=3)
    folder = RunStore(tmp_path).create(Request("image", "", "toybox", 3, view_seeds=(3,), views_only=True))
    picture = Image.new("RGBA", (64, 64))
    picture.paste((200, 30, 30, 255), (16, 16, 48, 48))
    picture.save(folder.path / "picture.png")
    news = list(lease.begin(lease.Models(model_cache, lambda: multiview), model_cache.get("toybox"), folder, math.inf))
    told = [item.text.split(": ")[-1].split(",")[0] for item in news if "denoising" in item.text]
    assert list(dict.fromkeys(told)) == [f"denoising step {step} of 3" for step in (1, 2, 3)]
    assert news[-1].share == 1


def test_a_score_is_said_where_there_is_something_to_compare(tmp_path):
    sheets = Sheets(tmp_path)
    sheets.add(3, sheet([image.convert("RGB") for image in shades()]), 0.226)
    assert [said for _, said in sheets.pictures()] == ["seed 3"]
    sheets.add(4, sheet([image.convert("RGB") for image in shades()]), 0.9)
    assert [said for _, said in sheets.pictures()] == ["seed 4 · views agree 90%", "seed 3 · views agree 23%"]


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


def pictured(store: RunStore, color: tuple[int, int, int], seed: int, view_steps: int = 2):
    """A waiting run that wants views of a square."""
    request = Request("image", "", "toybox", seed, view_seeds=(seed,), view_steps=view_steps, views_only=True)
    folder = store.create(request)
    picture = Image.new("RGBA", (64, 64))
    picture.paste((*color, 255), (16, 16, 48, 48))
    picture.save(folder.path / "picture.png")
    return folder


def views_by(models: lease.Models, folder):
    return lease.begin(models, models.model_cache.get("toybox"), folder, math.inf)


def test_who_leaves_while_views_are_made_is_not_in_the_way_of_the_next(tmp_path, model_cache):
    store, pausing = RunStore(tmp_path), Pausing()
    left, other = pictured(store, (200, 30, 30), 1), pictured(store, (30, 30, 200), 2)
    models = lease.Models(model_cache, lambda: pausing.pipe)
    with closing(views_by(models, left)) as news:
        for _ in news:
            if pausing.reached.is_set():
                break
    threading.Timer(1.0, pausing.may_go_on.set).start()  # until then the model is not free
    texts = [item.text for item in views_by(models, other)]
    assert any(text.startswith("Views of seed 2, ") for text in texts), "something new while it waits"
    alone = pictured(store, (30, 30, 200), 2)
    list(views_by(lease.Models(model_cache, tiny_pipeline), alone))
    made, expected = (Sheets(folder.path).open(2).tobytes() for folder in (other, alone))
    assert made == expected and not Sheets(left.path).scores()


def test_stop_need_not_wait_for_a_step_and_keeps_the_last_one(tmp_path, model_cache):
    store, pausing = RunStore(tmp_path), Pausing()
    folder, models = pictured(store, (200, 30, 30), 1, view_steps=1), lease.Models(model_cache, lambda: pausing.pipe)
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
def test_a_model_made_for_one_step_leaves_little_to_choose_and_says_so(tmp_path, model_cache, view_steps, one_step):
    """Without a number it is the embedded model, which is made for one."""
    demo = app.build_demo(tmp_path, model_cache, tiny_pipeline, view_steps=view_steps)
    parts = {block.elem_id: block for block in demo.blocks.values()}
    for name in ("image", "guided"):
        assert parts[f"{name}-seeds"].visible and parts[f"{name}-view-steps"].visible
        assert ("makes its views in one step" in parts[f"{name}-seeds"].info) is one_step
        assert parts[f"{name}-view-steps"].value == (view_steps or 1)


def test_views_that_a_model_made_are_reconstructed_as_such(tmp_path, tiny_prior):
    model_cache = tiny_model_cache(tiny_prior, HiFAPipeline)
    folder = RunStore(tmp_path).create(Request("image", "", "toybox", 3, settings={"num_inference_steps": 1}))
    Sheets(folder.path).give(sheet([image.convert("RGB") for image in shades()]))
    list(lease.begin(lease.Models(model_cache, tiny_pipeline), model_cache.get("toybox"), folder, math.inf))
    config = HiFARun.load(folder.run).config
    assert config == HiFAConfig.hallucinated(num_inference_steps=1, max_resolution=32, lambda_image_normal=0.0)


def test_a_prompt_that_cannot_be_read_beside_views_is_told_as_the_pipeline_does(tmp_path, tiny_prior):
    """Where the views guide to the end, they are reconstructed alone; where they do not, there is nothing to go on."""
    model_cache, store = tiny_model_cache(tiny_prior, HiFAPipeline), RunStore(tmp_path)
    sheet([image.convert("RGB") for image in shades()]).save(path := tmp_path / "sheet.png")
    given = Guided(None, 0.8, 20.0, str(path))

    def ask(end: float):
        settings = {"num_inference_steps": 1, "image_guidance_end": end}
        return Actions(store, model_cache, 1).guided(
            "hallucination", given, "a zebra", "", "toybox", 3, False, settings
        )

    folder, notice = ask(1.0)
    assert "reconstructed from the views only" in notice and "'zebra'" in notice
    list(lease.begin(lease.Models(model_cache, tiny_pipeline), model_cache.get("toybox"), folder, math.inf))
    assert read(folder.run / FILE)[1]["note"] == notice
    with pytest.raises(ValueError, match="'zebra'"):
        ask(0.5)
