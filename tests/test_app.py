"""The app on a free port of this machine, used through its API and in a real browser."""

import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

import pytest
import trimesh


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio_client  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402
from playwright.sync_api import Locator, Page, expect, sync_playwright  # noqa: E402

import app  # noqa: E402
from hifa import HiFAConfig, HiFAPipeline  # noqa: E402


CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"  # without it the browser test fails; it does not skip
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-background-networking", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip
TOO_MANY = 2000  # steps, for a run that only Stop ends
PATIENCE = 120  # seconds; all of this takes a few on a free machine


class Served:
    """A running app.

    Args:
        url: Its address.
        pipe: Its pipeline; `steps_done` of it counts the optimisation steps of everybody.
    """

    def __init__(self, url: str, pipe: "BallPipeline"):
        self.url, self.pipe = url, pipe

    def client(self) -> gradio_client.Client:
        return gradio_client.Client(self.url, verbose=False, analytics_enabled=False)


class BallPipeline(HiFAPipeline):
    """Runs on small pictures, in which the field stays the ball it starts as: what the prior thinks is not tested."""

    steps_done = 0
    blob_density = 6.0

    def default_config(self, views: bool = False):
        return HiFAConfig.fast(
            num_inference_steps=400, start_render_size=16, render_size=16, n_coarse=16, n_fine=8, grid_lr=0.0,
            network_lr=0.0, blob_density=self.blob_density,
        )  # fmt: skip

    def advance(self, run, steps=None):
        for step in super().advance(run, steps):
            self.steps_done += 1
            yield step


@pytest.fixture(scope="module")
def served(tiny_prior, tmp_path_factory):
    pipe = BallPipeline.from_pretrained(tiny_prior)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("app")))
        patch.setattr(app, "PREVIEW_SECONDS", 0.1)
        patch.setattr(app, "PREVIEW_SIZE", 32)
        patch.setattr(app, "MESH", app.STOPPED_MESH)
        patch.setattr(app, "TURNTABLE", {"num_frames": 4, "size": 64})
        patch.setattr(app, "STOPPED_TURNTABLE", app.TURNTABLE)
        demo = app.build_demo(pipe)
        demo.launch(prevent_thread_lock=True, server_port=free_port(), quiet=True, ssr_mode=False)
        yield Served(demo.local_url, pipe)
        demo.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_run_streams_previews_and_ends_with_the_files(served):
    job = served.client().submit("a red mushroom", 3, 40, api_name="/text_to_3d")
    progress, preview, model, turntable, *files = job.result(timeout=PATIENCE)
    stream = [state[0] for state in job.outputs()]
    assert stream[0]["step"] == 0  # there is something to see before the first step
    previews = [state for state in stream if "left" in state]
    assert len(previews) >= 2 and previews[0]["step"] < previews[-1]["step"] <= 40
    assert "loss" in previews[0] and "about" in previews[0]["text"]
    assert progress["text"].startswith("Finished 40 steps")
    assert [Path(file).name for file in files] == [f"a-red-mushroom.{suffix}" for suffix in ("glb", "ply", "mp4")]
    assert len(trimesh.load(model, force="mesh").faces) > 100
    assert all(Path(file).stat().st_size > 1000 for file in (preview, turntable, *files))


def test_stop_ends_the_own_run_only_and_exports_it(served):
    client, stranger = served.client(), served.client()
    job = client.submit("a red mushroom", 0, TOO_MANY, api_name="/text_to_3d")
    wait_for(job, lambda: len(job.outputs()) > 1)
    stranger.predict(api_name="/stop")
    seen = len(job.outputs())
    wait_for(job, lambda: len(job.outputs()) > seen + 1)
    client.predict(api_name="/stop")
    progress, _, model, _, *files = job.result(timeout=PATIENCE)
    assert progress["text"].startswith("Stopped at step") and 0 < progress["step"] < TOO_MANY
    assert Path(model).suffix == ".glb" and all(files)
    assert_idle(served)
    # The same session can go on with another run, which the old Stop does not end.
    assert client.predict("a red mushroom", 0, 10, api_name="/text_to_3d")[0]["step"] == 10


def test_a_caller_who_leaves_ends_the_work(served):
    job = served.client().submit("a red mushroom", 0, TOO_MANY, api_name="/text_to_3d")
    wait_for(job, lambda: len(job.outputs()) > 1)
    job.cancel()
    assert_idle(served)


def test_an_empty_field_is_no_crash(served, monkeypatch):
    monkeypatch.setattr(served.pipe, "blob_density", 0.0)
    progress, preview, *files = served.client().predict("a red mug", 0, 10, api_name="/text_to_3d")
    assert "no surface yet" in progress["text"] and preview
    assert files == [None] * 5


@pytest.mark.parametrize("prompt, message", [("a red xylophone", "the word 'xylophone'"), (" ", "empty")])
def test_a_bad_prompt_is_refused_before_any_work(served, prompt, message):
    before = served.pipe.steps_done
    with pytest.raises(AppError, match=message):
        served.client().predict(prompt, 0, 10, api_name="/text_to_3d")
    assert served.pipe.steps_done == before


def test_the_endpoints_are_named_and_documented(served):
    endpoints = served.client().view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/text_to_3d", "/stop"}
    made = endpoints["/text_to_3d"]
    assert [parameter["parameter_name"] for parameter in made["parameters"]] == ["prompt", "seed", "steps"]
    assert [value["label"] for value in made["returns"]][1:] == [
        "Preview", "3D model", "Turntable: colour and normals", "Download GLB", "Download PLY", "Download MP4",
    ]  # fmt: skip


def test_in_a_browser(served):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(1000 * PATIENCE)
        expect.set_options(timeout=1000 * PATIENCE)
        page.goto(served.url)
        no_sideways_scrolling(page)
        page.get_by_label("Prompt").fill("a red xylophone")
        click_until_visible(
            page.get_by_role("button", name="Generate"), page.get_by_text("does not know the word 'xylophone'").first
        )
        assert page.get_by_role("button", name="Stop").is_disabled()

        page.get_by_label("Prompt").fill("a red mushroom")
        page.locator("#steps input[type=number]").fill(str(TOO_MANY))
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#preview img")).to_be_visible()
        expect(page.locator("#progress")).to_contain_text("left")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#model canvas")).to_be_visible()
        expect(page.locator("#progress")).to_contain_text("Stopped at step")
        expect(page.get_by_role("button", name="Download PLY")).to_be_visible()
        expect(page.get_by_role("button", name="Generate")).to_be_enabled()
        no_sideways_scrolling(page)
        browser.close()


def click_until_visible(button: Locator, wanted: Locator) -> None:
    """Click again while nothing happens: a page that has just loaded shows its buttons before it listens to them."""
    deadline = time.monotonic() + PATIENCE
    while not wanted.is_visible():
        assert time.monotonic() < deadline, f"clicking did not show {wanted}"
        button.click()
        time.sleep(2)


def wait_for(job, condition) -> None:
    """Until the condition holds, while the job is running."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert not job.done() and time.monotonic() < deadline, "the job ended before, or nothing happened"
        time.sleep(0.05)


def assert_idle(served: Served) -> None:
    """No step is made any more, after the one that may be under way."""
    time.sleep(1.5)
    before = served.pipe.steps_done
    time.sleep(1)
    assert served.pipe.steps_done == before


def no_sideways_scrolling(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
