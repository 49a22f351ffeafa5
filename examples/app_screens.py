"""Take screenshots of the app for the README.

    python -m examples.app_screens [--steps 480] [--others DIR]

The script starts `app.py` with Toybox, on a free port and with a temporary folder for runs. The script controls the
app in Chromium (playwright) and writes `examples/pictures/app_*.jpg`. Each file shows the page in one state:

    empty, running, stopped, done    a text run. In `stopped`, the run can be resumed
    error                            a prompt that the app rejects
    dark, phone                      the finished run in the dark theme; the finished run on a phone
    tools                            the finished run with its mesh options and the form for the Hub
    paused                           a run that paused because its window was closed, in a new window
    image, hallucination             the image tabs with a picture, its views and the result

`--others` also writes these states to DIR, for inspection only:

    example                          an opened example of the gallery
    waiting                          a run in the queue
    views, bad_picture               the image tab during the generation of views; the tab with an invalid picture
    extraction, wide                 the mesh during a new extraction; the finished run on a large screen
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from benchmarks.app_server import Server
from hifa import HiFAConfig
from hifa.toybox.render import orbit_pose, render
from hifa.toybox.world import make_scene


FOLDER = Path(__file__).parent / "pictures"
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE = 600_000  # milliseconds
WIDTH, HEIGHT = 1280, 860


def visit(browser: Browser, url: str, width: int = WIDTH, height: int = HEIGHT) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.locator("#prompt textarea, #prompt input").first.wait_for()
    page.wait_for_timeout(2000)  # wait until the page has attached its event handlers
    return page


def shoot(page: Page, name: str, whole: bool = True, folder: Path = FOLDER, wait: int = 1500) -> None:
    """Save a screenshot of the page as a JPEG.

    Args:
        page: Page to save.
        name: Name of the state.
        whole: Save the whole page instead of the visible part.
        folder: Folder for the file.
        wait: Milliseconds to wait before the screenshot.
    """
    page.wait_for_timeout(wait)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    picture.save(folder / f"app_{name}.jpg", quality=80, optimize=True)
    print(folder / f"app_{name}.jpg", flush=True)


def prepare(page: Page, prompt: str, steps: int) -> None:
    """Enter the prompt and the number of steps, without clicking Generate."""
    page.locator("#prompt textarea, #prompt input").first.fill(prompt)
    page.locator("#text-advanced button").first.click()
    page.locator("#text-steps input").fill(str(steps))
    page.locator("#text-steps input").blur()
    page.locator("#text-advanced button").first.click()


def all_files(page: Page) -> None:
    """Wait until all files are exported and the viewer shows the mesh.

    The viewer renders in software here, which takes seconds.
    """
    page.wait_for_timeout(2000)
    expect(page.locator("#progress")).not_to_contain_text("…", timeout=PATIENCE)
    for kind in ("glb", "obj", "ply", "mp4", "asset", "run"):
        expect(page.locator(f"#download-{kind}")).to_be_enabled(timeout=PATIENCE)
    viewer = page.locator("#model canvas")
    viewer.wait_for()
    for _ in range(60):
        page.wait_for_timeout(1000)
        if np.asarray(Image.open(io.BytesIO(viewer.screenshot())).convert("L")).std() > 5:  # more than the background
            break
    page.wait_for_timeout(4000)


def text_screens(browser: Browser, url: str, steps: int) -> str:
    """Take screenshots of a text run. Return the address of the finished run."""
    page = visit(browser, url)
    shoot(page, "empty")
    prepare(page, "a red mushroom", steps)
    page.get_by_role("button", name="Generate").click()
    progress = page.locator("#progress")
    page.wait_for_function("document.querySelector('#progress progress').value > 0.33")
    shoot(page, "running")
    page.locator("#stop").click()
    expect(progress).to_contain_text("Stopped at step", timeout=PATIENCE)
    all_files(page)
    shoot(page, "stopped")
    page.locator("#resume").click()
    expect(progress).to_contain_text("Finished", timeout=PATIENCE)
    all_files(page)
    shoot(page, "done")
    address = page.url
    page.close()
    return address


def error_screen(browser: Browser, url: str) -> None:
    page = visit(browser, url)
    prepare(page, "a red xylophone", 100)
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("does not know the word").first.wait_for()
    shoot(page, "error")
    page.close()


def duck(folder: Path) -> Path:
    """Write an input picture with transparency for the image tabs."""
    picture = render(make_scene("duck", "yellow").shape, orbit_pose(30, 20, 2.5), 256, 40.0)
    rgba = np.concatenate([picture.color, picture.mask[..., None]], axis=-1)
    Image.fromarray((rgba * 255).round().astype(np.uint8), "RGBA").save(folder / "duck.png")
    return folder / "duck.png"


def result_screens(browser: Browser, address: str) -> None:
    """Take screenshots of the finished run: in the dark theme, on a phone, and with its tools.

    On a phone, the page scrolls to the result.
    """
    page = visit(browser, f"{address}&__theme=dark")
    all_files(page)
    shoot(page, "dark")
    page.close()
    page = visit(browser, address, 390, 844)
    all_files(page)
    shoot(page, "phone", whole=False)
    page.close()
    page = visit(browser, address)
    all_files(page)
    for form in ("mesh-step", "hub-form"):
        page.locator(f"#{form} button").first.click()
    shoot(page, "tools")
    page.close()


def paused_screen(browser: Browser, url: str) -> None:
    page = visit(browser, url)
    prepare(page, "a green sailboat", 800)
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function("document.querySelector('#progress progress').value > 0.1")
    address = page.url
    page.close()
    page = visit(browser, address)
    expect(page.locator("#progress")).to_contain_text("Paused", timeout=PATIENCE)
    shoot(page, "paused")
    page.close()


def picture_screen(browser: Browser, url: str, picture: Path, steps: int, name: str, prompt: str) -> None:
    """Take a screenshot of a result in the image tab. With a prompt, use the hallucination tab instead."""
    prefix, tab, button = (
        ("guided", "Image-guided", "Hallucinate") if prompt else ("image", "Image to 3D", "Reconstruct")
    )
    page = visit(browser, url)
    page.get_by_role("tab", name=tab).click()
    if prompt:
        page.locator("#guided-prompt textarea, #guided-prompt input").first.fill(prompt)
    page.locator(f"#{prefix}-photo input[type=file]").set_input_files(picture)
    page.locator(f"#{prefix}-matte img").wait_for()
    page.locator(f"#{prefix}-advanced button").first.click()
    page.locator(f"#{prefix}-steps input").fill(str(steps))
    page.locator(f"#{prefix}-steps input").blur()
    page.locator(f"#{prefix}-advanced button").first.click()
    page.get_by_role("button", name=button).click()
    expect(page.locator("#progress")).to_contain_text("Finished", timeout=PATIENCE)
    page.locator("#views img").first.wait_for()
    all_files(page)
    shoot(page, name)
    page.close()


def other_screens(browser: Browser, url: str, address: str, folder: Path) -> None:
    page = visit(browser, url)
    page.locator("#text-examples button").nth(1).click()
    page.locator("#model canvas").wait_for()
    shoot(page, "example", folder=folder, wait=12_000)
    prepare(page, "a green sailboat", 800)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#progress")).to_contain_text("Step")
    second = visit(browser, url)
    prepare(second, "a blue car", 100)
    second.get_by_role("button", name="Generate").click()
    expect(second.locator("#progress")).to_contain_text("line")
    shoot(second, "waiting", folder=folder)
    for left in (second, page):
        left.close()
    picture_states(browser, url, folder)
    page = visit(browser, address)
    all_files(page)
    page.locator("#mesh-step button").first.click()
    page.locator("#extract").click()
    expect(page.locator("#progress")).to_contain_text("Coloring")
    shoot(page, "extraction", folder=folder, wait=200)
    expect(page.locator("#progress")).not_to_contain_text("…")
    page.close()
    page = visit(browser, address, 1920, 1080)
    all_files(page)
    shoot(page, "wide", folder=folder)
    page.close()


def picture_states(browser: Browser, url: str, folder: Path) -> None:
    page = visit(browser, url)
    page.get_by_role("tab", name="Image to 3D").click()
    blank = folder / "blank.png"
    Image.new("RGB", (256, 256), "white").save(blank)
    page.locator("#image-photo input[type=file]").set_input_files(blank)
    page.locator("[role=alert]").first.wait_for()
    shoot(page, "bad_picture", folder=folder)
    page.close()
    page = visit(browser, url)
    page.get_by_role("tab", name="Image to 3D").click()
    page.locator("#image-samples button").first.click()
    page.locator("#image-matte img").wait_for()
    page.get_by_role("button", name="Reconstruct").click()
    expect(page.locator("#progress")).to_contain_text("denoising")
    shoot(page, "views", folder=folder, wait=0)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=HiFAConfig.fast().num_inference_steps)
    parser.add_argument("--others", type=Path)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, Server(Path(root) / "runs") as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=FLAGS)
        address = text_screens(browser, server.url, arguments.steps)
        error_screen(browser, server.url)
        result_screens(browser, address)
        paused_screen(browser, server.url)
        picture = duck(Path(root))
        picture_screen(browser, server.url, picture, arguments.steps, "image", prompt="")
        picture_screen(browser, server.url, picture, arguments.steps, "hallucination", prompt="a red duck")
        if arguments.others is not None:
            arguments.others.mkdir(parents=True, exist_ok=True)
            other_screens(browser, server.url, address, arguments.others)
        browser.close()


if __name__ == "__main__":
    main()
