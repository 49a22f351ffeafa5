"""What a person does at the app, and what they see."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Error, Locator, Page, expect

from hifa.multiview import sheet
from tests.helpers.space import PATIENCE


CHICKEN = Path(__file__).parents[2] / "examples" / "chicken"


def visit(browser: Browser, url: str, width: int = 1280, height: int = 900, **options) -> Page:
    """A page of a new visitor, when it listens to its buttons: the list of runs is filled by then."""
    page = browser.new_page(viewport={"width": width, "height": height}, **options)
    page.set_default_timeout(1000 * PATIENCE)
    open_page(page, url)
    return page


def open_page(page: Page, url: str) -> None:
    try:
        page.goto(url)
    except Error as error:
        # A page whose server comes back reloads itself, which may be at the same moment.
        if "interrupted by another navigation" not in str(error):
            raise
        page.wait_for_load_state()
    wait_for(page)


def wait_for(page: Page) -> None:
    """Until a page that is being loaded can be used."""
    page.locator("#history button").first.click()
    page.locator("#history .hint, #history ul").first.wait_for()


def set_steps(page: Page, name: str, steps: int) -> None:
    page.locator(f"#{name}-advanced button").first.click()
    page.locator(f"#{name}-steps input").fill(str(steps))
    page.locator(f"#{name}-steps input").blur()


def set_slider(page: Page, name: str, value: str) -> None:
    """Type the number of a slider. One that has just been unfolded takes back what is typed before it is ready."""
    deadline = time.monotonic() + PATIENCE
    while page.locator(f"#{name} input[type=range]").input_value() != value:
        assert time.monotonic() < deadline, f"{name} does not take {value}"
        page.locator(f"#{name} input[type=number]").fill(value)
        page.locator(f"#{name} input[type=number]").press("Enter")
        page.wait_for_timeout(300)


def start_text(page: Page, steps: int, prompt: str = "a red mushroom") -> None:
    page.get_by_label("Prompt", exact=True).first.fill(prompt)
    set_steps(page, "text", steps)
    page.get_by_role("button", name="Generate").click()


def progress(page: Page) -> Locator:
    return page.locator("#progress")


def run_id(page: Page) -> str:
    return page.url.partition("run=")[2].partition("&")[0]


def downloaded(page: Page, kind: str) -> Path:
    with page.expect_download() as download:
        page.locator(f"#download-{kind}").click()
    return Path(download.value.path())


def canvas_pixels(page: Page) -> np.ndarray:
    """The 3D viewer `(H, W, 3)` when it shows something, not its gray background alone, and no longer changes: the
    first frames have not all of the light.
    """
    canvas = page.locator("#model canvas")
    expect(canvas).to_be_visible()
    deadline, last = time.monotonic() + PATIENCE, None
    while True:
        pixels = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)
        height, width = pixels.shape[:2]
        middle = pixels[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3]
        corner = pixels[-20:-10, 10:20]  # where no label lies over it; white until something is drawn
        if (np.abs(corner - 204) < 12).all() and (np.abs(middle - 204).max(-1) > 8).mean() > 0.5:
            if last is not None and np.array_equal(pixels, last):
                return pixels
            last = pixels
        assert time.monotonic() < deadline, "the viewer shows nothing, or never comes to rest"
        time.sleep(1)


def no_sideways_scrolling(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def chicken_sheet(folder: Path) -> Path:
    views = [
        Image.open(path).convert("RGB").resize((32, 32)) for path in sorted((CHICKEN / "syncdreamer").glob("*.png"))
    ]
    sheet(views).save(folder / "sheet.png")
    return folder / "sheet.png"


class serving:
    """The app as a process of its own, until the end of the block.

    Args:
        more: Arguments of `tests.helpers.serve_app`.
        environment: Beside that of the tests.
    """

    def __init__(self, root: Path, model: Path, port: int, *more: str, **environment: str):
        self.command = [sys.executable, "-m", "tests.helpers.serve_app", str(root), str(model), str(port), *more]
        self.environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> subprocess.Popen:
        import httpx

        self.process = subprocess.Popen(self.command, env=self.environment)
        deadline = time.monotonic() + PATIENCE
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, "the server did not come up"
            try:
                httpx.get(self.url, timeout=5)
                return self.process
            except httpx.TransportError:
                time.sleep(0.2)

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
