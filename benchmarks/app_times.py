"""How long a person waits at the app: the first preview, something new, Stop. In Chromium, on Toybox.

    python -m benchmarks.app_times

The app runs in a process of its own with default settings. The last line printed is one JSON object, in seconds:

    first_preview    from the click on Generate until a picture is seen; the app is up, its first run ever
    second_preview   the same for the next run of the same app
    longest_wait     between two changes of the preview or of the progress line, over `--watch` seconds of a run
    stop_told        from the click on Stop until the page says that it stops
    stop_files       from the click on Stop until the mesh can be downloaded
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from examples.app_screens import FLAGS, PATIENCE, prepare, visit

from .app_server import Server


# Milliseconds between changes of what the visitor sees, noted by the page itself: asking it from outside would add to
# the time. Reading starts with the first preview.
WATCH = """seconds => new Promise(done => {
    const gaps = [];
    let last = performance.now();
    const note = () => { const now = performance.now(); gaps.push(now - last); last = now; };
    const watcher = new MutationObserver(note);
    for (const id of ['#preview', '#progress'])
        watcher.observe(
            document.querySelector(id), {subtree: true, childList: true, attributes: true, characterData: true});
    setTimeout(() => { watcher.disconnect(); note(); done(Math.max(...gaps)); }, 1000 * seconds);
})"""


def first_preview(page: Page, steps: int) -> float:
    prepare(page, "a red mushroom", steps)
    clock = time.perf_counter()
    page.get_by_role("button", name="Generate").click()
    page.locator("#preview img.colour").wait_for()
    return time.perf_counter() - clock


def stop(page: Page) -> tuple[float, float]:
    """Seconds until Stop is told, and until there is a mesh."""
    clock = time.perf_counter()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopp").first).to_be_visible(timeout=PATIENCE)
    told = time.perf_counter() - clock
    page.locator("#download-glb").wait_for()
    return told, time.perf_counter() - clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watch", type=float, default=20, help="seconds")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, Server(Path(root) / "runs") as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=FLAGS)
        result = {}
        for name in ("first_preview", "second_preview"):
            page = visit(browser, server.url)
            result[name] = first_preview(page, 2000)
            if name == "second_preview":
                result["longest_wait"] = page.evaluate(WATCH, arguments.watch) / 1000
            result["stop_told"], result["stop_files"] = stop(page)
            page.close()
        browser.close()
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))


if __name__ == "__main__":
    main()
