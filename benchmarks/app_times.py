"""Waiting times in the app, with Toybox in Chromium: first preview, time between updates, Stop.

    python -m benchmarks.app_times

The app runs in a separate process with default settings. The last line printed is one JSON object, in seconds:

    first_preview    from the click on Generate until a picture is visible, for the first run of the app process
    second_preview   the same for the second run of the app process
    longest_wait     longest time without a change of the preview or the progress line, over a whole run of default
                     length
    longest_wait_files
                     the same, from the last step of this run until all files are exported
    stop_told        from the click on Stop until the page shows "Stopping" or "Stopped". This is the maximum of two
                     stops: one early in a run, and one in the last quarter of a run, where renders are larger
    stop_files       from the click on Stop until the mesh can be downloaded. This is the maximum of the same two stops
    image_longest_wait, image_longest_wait_files
                     like `longest_wait` and `longest_wait_files`, from the click on Reconstruct. A reconstruction
                     starts with the generation of views
    views_stopped    from a click on Stop during the generation of views until the page shows "Stopped"
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from examples.app_screens import FLAGS, PATIENCE, prepare, visit
from hifa import HiFAConfig

from .app_server import Server


STEPS = HiFAConfig.fast().num_inference_steps
# Return the longest time between visible changes in milliseconds, starting at the first preview. This code runs in the
# page, because polling from outside would add time.
WATCH = """() => new Promise(done => {
    const gaps = {steps: 0, files: 0};
    let last = performance.now();
    const said = () => document.querySelector('#progress').innerText;
    const note = () => {
        const now = performance.now(), what = said().includes('Finished') ? 'files' : 'steps';
        gaps[what] = Math.max(gaps[what], now - last);
        last = now;
    };
    const watcher = new MutationObserver(note);
    for (const id of ['#preview', '#progress'])
        watcher.observe(
            document.querySelector(id), {subtree: true, childList: true, attributes: true, characterData: true});
    const looker = setInterval(() => {
        if (!said().includes('Finished') || said().includes('\u2026')) return;
        clearInterval(looker); watcher.disconnect(); done(gaps);
    }, 200);
})"""

# Measure milliseconds since the click on Stop. This code runs in the page, because polling from outside would slow
# down to once a second.
WATCH_STOP = """() => {
    let began, told;
    document.querySelector('#stop').addEventListener('click', () => { began = performance.now(); }, {once: true});
    const looker = setInterval(() => {
        if (began === undefined) return;
        const now = performance.now() - began, mesh = document.querySelector('#download-glb');
        const said = ['#stop', '#progress'].map(id => document.querySelector(id)?.innerText ?? '');
        if (told === undefined && said.join().includes('Stopp')) told = now;
        if (told === undefined || !mesh || mesh.disabled || !mesh.offsetParent) return;
        clearInterval(looker);
        window.stopped = [told, now];
    }, 10);
}"""


def first_preview(page: Page, steps: int = STEPS) -> float:
    prepare(page, "a red mushroom", steps)
    clock = time.perf_counter()
    page.get_by_role("button", name="Generate").click()
    page.locator("#preview img.color").wait_for()
    return time.perf_counter() - clock


def stop(page: Page) -> tuple[float, float]:
    """Click Stop. Return the seconds until the page confirms the stop, and until the mesh can be downloaded."""
    page.evaluate(WATCH_STOP)
    page.get_by_role("button", name="Stop").click()
    told, files = page.wait_for_function("() => window.stopped", timeout=PATIENCE).json_value()
    return told / 1000, files / 1000


def reconstruct(page: Page) -> None:
    """Reconstruct the first sample picture of the image tab with default settings."""
    page.get_by_role("tab", name="Image to 3D").click()
    page.locator("#image-samples button").first.click()
    page.locator("#image-matte img").wait_for()
    page.get_by_role("button", name="Reconstruct").click()


def stop_views(page: Page) -> float:
    reconstruct(page)
    expect(page.locator("#progress")).to_contain_text("iews", timeout=PATIENCE)
    clock = time.perf_counter()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#progress")).to_contain_text("Stopped", timeout=PATIENCE)
    return time.perf_counter() - clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, Server(Path(root) / "runs") as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=FLAGS)
        page, stops = visit(browser, server.url), []
        result = {"first_preview": first_preview(page)}
        stops.append(stop(page))
        page.close()
        page = visit(browser, server.url)
        result["second_preview"] = first_preview(page)
        gaps = page.evaluate(WATCH)
        result |= {"longest_wait": gaps["steps"] / 1000, "longest_wait_files": gaps["files"] / 1000}
        page.close()
        page = visit(browser, server.url)
        first_preview(page)
        page.wait_for_function("document.querySelector('#progress progress').value > 0.8")
        stops.append(stop(page))
        page.close()
        page = visit(browser, server.url)
        result["views_stopped"] = stop_views(page)
        page.close()
        page = visit(browser, server.url)
        reconstruct(page)
        gaps = page.evaluate(WATCH)
        result |= {"image_longest_wait": gaps["steps"] / 1000, "image_longest_wait_files": gaps["files"] / 1000}
        page.close()
        browser.close()
    told, files = zip(*stops, strict=True)
    result |= {"stop_told": max(told), "stop_files": max(files)}
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))


if __name__ == "__main__":
    main()
