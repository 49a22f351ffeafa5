"""Nothing is lost: stop and resume, reload, two at once, a killed server."""

import signal
import time

from playwright.sync_api import expect

from hifa.space.jobs import exports as files
from hifa.space.ui.result_panel import DOWNLOADS
from hifa.storage.run_folder import read_metadata
from tests.helpers.space import PATIENCE, TOO_MANY, AppServer, LeasedGPU, free_port, grids_as_on_a_gpu

from .driving import canvas_pixels, downloaded, open_page, progress, run_id, serving, start_text, visit, wait_for


def test_the_preview_switches_while_it_runs_and_stop_and_resume(page, served):
    start_text(page, TOO_MANY)
    expect(progress(page)).to_contain_text("left")
    for mode in ("normals", "depth", "opacity", "color"):
        page.get_by_label(mode.capitalize(), exact=True).click()
        expect(page.locator(f"#preview img.{mode}")).to_be_visible()
        assert page.locator("#preview img:visible").count() == 1
    # It turns. With some seeds the ball has one color all around, but its normals always turn with it.
    before = page.locator("#preview img.normals").get_attribute("src")
    page.wait_for_function(
        "before => document.querySelector('#preview img.normals').src !== before", arg=before, timeout=5000
    )
    page.get_by_role("button", name="Stop").click()
    began = time.monotonic()
    expect(page.get_by_text("Stopp").first).to_be_visible()
    assert time.monotonic() - began < 2
    expect(progress(page)).to_contain_text("Stopped at step")
    canvas_pixels(page)
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    stopped_at = served.store.open(run_id(page)).read().step
    page.get_by_role("button", name="Resume").click()
    expect(progress(page)).to_contain_text("left")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    assert served.store.open(run_id(page)).read().step > stopped_at


def test_a_reload_brings_the_run_back(page, served):
    start_text(page, TOO_MANY)
    expect(progress(page)).to_contain_text("left")
    open_page(page, page.url)
    assert run_id(page)
    expect(progress(page)).to_contain_text("The browser window was closed")
    expect(page.locator("#preview img.color")).to_be_visible()
    expect(page.locator("#history ul a").first).to_contain_text("a red mushroom")
    # From the list of own runs, which lies in this browser, without the address.
    open_page(page, served.url)
    page.locator("#history ul a").first.click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(progress(page)).to_contain_text("left")
    page.get_by_role("button", name="Stop").click()
    expect(progress(page)).to_contain_text("Stopped at step")


def test_a_new_run_is_not_overwritten_by_one_that_was_followed(page, served):
    """It was opened by its address while another window works on it."""
    client = served.client()
    job = client.submit("a blue car", 0, TOO_MANY, api_name="/text_to_3d")
    while not (job.outputs() and job.outputs()[-1][0]["step"]):
        time.sleep(0.1)
    other = job.outputs()[-1][0]["run_id"]
    open_page(page, f"{served.url}/?run={other}")
    expect(progress(page)).to_contain_text("in progress in another window")
    start_text(page, TOO_MANY)
    expect(progress(page)).to_contain_text("1 run before this one")
    assert run_id(page) != other
    page.wait_for_timeout(3000)  # in which the other one would be looked at thrice
    expect(progress(page)).to_contain_text("1 run before this one")
    assert not page.locator("#preview img").count()
    client.predict(other, api_name="/stop")
    expect(progress(page)).to_contain_text("left")
    page.get_by_role("button", name="Stop").click()
    expect(progress(page)).to_contain_text("Stopped at step")
    expect(page.locator("#facts")).to_contain_text("a red mushroom")


def test_stop_lives_again_for_the_next_run_and_files_that_are_missing_can_be_made(page, served):
    start_text(page, TOO_MANY)
    expect(progress(page)).to_contain_text("left")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_enabled()
    expect(progress(page)).to_contain_text("left")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    folder = served.store.open(run_id(page))
    (folder.files / folder.read().files["run"]).unlink()
    open_page(page, page.url)
    page.get_by_role("button", name="Make the files").click()
    expect(page.get_by_role("button", name="Make the files")).to_be_hidden()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()  # nothing goes on any more
    assert (folder.files / folder.read().files["run"]).is_file()


def test_making_files_can_be_cancelled_to_go_on_at_once(page, served, monkeypatch):
    monkeypatch.setattr(files, "STOPPED_TURNTABLE", files.TurntableOptions(2000, 64))
    start_text(page, TOO_MANY)
    expect(progress(page)).to_contain_text("left")
    page.get_by_role("button", name="Stop").click()
    expect(progress(page)).to_contain_text("Making the turntable")
    page.locator("#cancel-files").click()
    expect(progress(page)).to_contain_text("Export canceled.")
    expect(page.locator("#cancel-files")).to_be_hidden()
    expect(page.get_by_role("button", name="Make the files")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(progress(page)).to_contain_text("left")
    monkeypatch.setattr(files, "STOPPED_TURNTABLE", files.TurntableOptions(2, 32))
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#download-mp4")).to_be_enabled()


def test_two_at_once_get_each_their_own(browser, served):
    first, second = visit(browser, served.url), visit(browser, served.url)
    start_text(first, 25, "a blue car")
    start_text(second, 15, "a yellow duck")
    expect(progress(second)).to_contain_text("Finished 15 steps")
    expect(progress(first)).to_contain_text("Finished 25 steps")
    for page, prompt in ((first, "a blue car"), (second, "a yellow duck")):
        expect(page.locator("#facts")).to_contain_text(prompt)
        assert served.store.open(run_id(page)).read().request.prompt == prompt
        history = page.locator("#history ul")
        expect(history).to_contain_text(prompt)
        assert history.locator("a").count() == 1
        page.context.close()


def test_a_slow_browser_misses_nothing(page, served):
    """Gradio's client loses what is sent once and skipped afterwards, when messages wait for a busy browser."""
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 4})
    start_text(page, 15)
    expect(page.locator("#facts")).to_contain_text("finished")
    expect(progress(page)).to_contain_text("Finished 15 steps", timeout=5000)
    expect(page.locator("#model canvas")).to_be_visible()
    for kind in DOWNLOADS:
        expect(page.locator(f"#download-{kind}")).to_be_enabled()
    assert downloaded(page, "run").stat().st_size


def test_resume_after_a_killed_server(browser, tiny_prior, tmp_path):
    port = free_port()
    with serving(tmp_path, tiny_prior, port) as process:
        page = visit(browser, f"http://127.0.0.1:{port}")
        start_text(page, 400)
        expect(progress(page)).to_contain_text("left")
        folder = tmp_path / "runs" / run_id(page) / "run"
        deadline = time.monotonic() + PATIENCE
        while not (folder / "run.safetensors").exists() or read_metadata(folder)["step"] < 1:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    saved = read_metadata(folder)["step"]
    with serving(tmp_path, tiny_prior, port):
        open_page(page, page.url)
        expect(progress(page)).to_contain_text("The server was restarted during the run")
        page.get_by_role("button", name="Resume").click()
        expect(progress(page)).to_contain_text("left")
        page.get_by_role("button", name="Stop").click()
        expect(progress(page)).to_contain_text("Stopped at step")
        assert read_metadata(folder)["step"] > saved > 0
        page.context.close()


def test_two_windows_of_one_browser_that_are_opened_at_once_have_one_list(browser, served):
    context = browser.new_context()
    context.set_default_timeout(1000 * PATIENCE)
    first, second = context.new_page(), context.new_page()
    for window in (first, second):
        window.goto(served.url, wait_until="commit")
    for window in (first, second):
        wait_for(window)
    for window, prompt in ((first, "a red mushroom"), (second, "a blue cube")):
        start_text(window, 10, prompt)
        expect(progress(window)).to_contain_text("Finished 10 steps")
    open_page(first, served.url)
    assert first.locator("#history ul a").count() == 2
    context.close()


def test_used_up_quota_pauses_a_run_that_resume_finishes(browser, tiny_prior, tmp_path):
    quota = "You have exceeded your free ZeroGPU quota (45s requested vs. 3s left). Try again in 1:02"
    gpu = LeasedGPU(refusals=(("ZeroGPU quota exceeded", quota),))
    with grids_as_on_a_gpu(), AppServer(tmp_path, tiny_prior, gpu=gpu) as server:
        page = visit(browser, server.url)
        start_text(page, 10)
        expect(progress(page)).to_contain_text("The GPU time of today is used up")
        page.get_by_role("button", name="Resume").click()
        expect(progress(page)).to_contain_text("Finished 10 steps")
        assert downloaded(page, "glb").read_bytes()[:4] == b"glTF"
        page.context.close()
