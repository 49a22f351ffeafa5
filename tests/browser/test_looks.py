"""What the page looks like, and whether it is reached without a mouse."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, expect

from hifa.export import export_mesh
from hifa.space.jobs.run_store import FINISHED, Request
from hifa.space.ui.result_panel import DOWNLOADS

from .driving import canvas_pixels, no_sideways_scrolling, visit


TABS = ("Text to 3D", "Image to 3D", "Image-guided hallucination")
# What can be used has a name of its own: by a label, or by the text in it. A placeholder is none, for it goes when
# something is typed, and neither is what only tests see. A picture is described, or part of something that has a name.
NAMELESS = r"""() => {
  const text = element => [...element.childNodes].map(node =>
    node.nodeType === Node.TEXT_NODE ? node.data
    : node.nodeType !== Node.ELEMENT_NODE || node.ariaHidden === 'true' || node.localName === 'style' ? ''
    : node.localName === 'img' ? node.alt
    : node.ariaLabel || text(node)
  ).join(' ').trim();
  const pointed = element => (element.getAttribute('aria-labelledby') || '').split(/\s+/).map(
    id => id && document.getElementById(id)).filter(Boolean).map(text).join(' ').trim();
  const name = element => pointed(element) || element.ariaLabel?.trim()
    || [...(element.labels || [])].map(text).join(' ').trim()
    || (element.matches('button, a, [role=button], [role=tab]') && text(element)) || element.title?.trim();
  // The bar of the video player is Gradio's.
  const used = 'button, input, textarea, select, a[href], [role=button], [role=tab], [role=combobox], '
    + 'progress:not(#turntable *)';
  const named = element => element.matches('img')
    ? element.alt.trim() || [element.closest('button, a')].filter(Boolean).some(name)
    : name(element);
  return [...document.querySelectorAll(`${used}, img`)]
    .filter(element => element.checkVisibility({visibilityProperty: true}) && !named(element))
    .map(element => element.outerHTML.slice(0, 200));
}"""


def choose_tab(page: Page, tab: str) -> None:
    if page.get_by_role("tab", name=tab).is_visible():
        page.get_by_role("tab", name=tab).click()
    else:
        page.get_by_role("button", name="More tabs").click()
        page.locator(".overflow-dropdown button", has_text=tab).click()
    expect(page.get_by_role("tabpanel").filter(visible=True)).to_have_count(1)


def unfold(page: Page) -> None:
    """Open all accordions that are in sight."""
    closed = page.locator("button.label-wrap:not(.open)").filter(visible=True)
    while closed.count():
        before = closed.count()
        closed.first.click()
        expect(closed).to_have_count(before - 1)


def test_the_model_stands_upright_faces_you_and_has_its_colors(browser, served):
    """A box that is red above and green below, with a blue left half at its front, opened as the result of a run."""
    folder = served.store.create(Request("text", "a box", "toybox", 0))

    def density(points):
        return 100.0 * (points.abs() < torch.tensor([0.4, 0.4, 0.6])).all(-1)

    def color(points, directions):
        red, green, blue = (torch.tensor(c) for c in ((0.8, 0.15, 0.1), (0.1, 0.6, 0.15), (0.1, 0.2, 0.8)))
        x, y, z = points[:, :1], points[:, 1:2], points[:, 2:]
        return torch.where((x > 0.3) & (y < 0), blue, torch.where(z > 0, red, green))

    export_mesh(folder.files / "box.glb", density, color, 1.0, resolution=64, texture_size=256)
    metadata = {"faces": 1, "texture_size": 256, "glb_megabytes": 0.1}
    folder.write(folder.read(), status=FINISHED, steps=1, step=1, files={"glb": "box.glb"}, metadata=metadata)
    page = visit(browser, f"{served.url}/?run={folder.id}")
    pixels = canvas_pixels(page)
    height, width = pixels.shape[:2]

    def at(x: float, y: float) -> np.ndarray:
        row, column = int(height * y), int(width * x)
        return pixels[row - 4 : row + 4, column - 4 : column + 4].reshape(-1, 3).mean(0)

    # Seen from the front, +y, which is where the box is not blue, is to the right.
    assert np.abs(at(0.6, 0.4) - np.array([204, 38, 26])).max() < 45, at(0.6, 0.4)
    assert np.abs(at(0.6, 0.6) - np.array([26, 153, 38])).max() < 45, at(0.6, 0.6)
    assert np.abs(at(0.4, 0.5) - np.array([26, 51, 204])).max() < 45, at(0.4, 0.5)
    page.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_in_any_tab(browser, served, theme):
    page = visit(browser, f"{served.url}/?__theme={theme}", 390, 844)
    for tab in TABS:
        choose_tab(page, tab)
        no_sideways_scrolling(page)
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
    assert (np.median(pixels) < 80) == (theme == "dark")
    page.context.close()


def test_a_phone_needs_no_sideways_scrolling_with_a_finished_run_and_everything_unfolded(browser, served):
    page = visit(browser, f"{served.url}/?run={served.finished(served.client())}", 390, 844)
    expect(page.locator("#download-run")).to_be_enabled()
    expect(page.locator("#model canvas")).to_be_visible()
    expect(page.locator("#turntable video")).to_be_visible()
    for tab in TABS:
        choose_tab(page, tab)
        unfold(page)
        no_sideways_scrolling(page)
    # Nothing is cut off either, which no scrolling would tell.
    parts = ["preview", "mode", "model", "turntable", "facts", "share", "extract", "mesh-step", "hub-form", "hub-push"]
    for part in parts + [f"download-{kind}" for kind in DOWNLOADS]:
        box = page.locator(f"#{part}").bounding_box()
        assert box and box["width"] and box["x"] >= 0 and box["x"] + box["width"] <= 390, (part, box)
    assert page.locator("#facts").evaluate("facts => facts.scrollWidth <= facts.clientWidth")
    page.context.close()


def test_a_fresh_page_says_what_will_be_where(page):
    page.wait_for_timeout(1500)  # until what the page begins with has come, which could empty it
    expect(page.locator("#progress")).to_have_text("Ready.")
    expect(page.locator("#preview")).to_contain_text("The preview appears here")


def test_everything_is_reached_by_keyboard(page):
    page.locator("#prompt input, #prompt textarea").first.focus()
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.closest('[id]')?.id || document.activeElement.tagName"))
    assert reached.index("generate") < next(i for i, name in enumerate(reached) if name.startswith("text-"))


def test_what_can_be_used_and_what_is_shown_has_a_name_in_every_tab(page, served):
    page.goto(f"{served.url}/?run={served.finished(served.client())}")
    expect(page.locator("#download-run")).to_be_enabled()
    expect(page.locator("#turntable video")).to_be_visible()
    for tab in TABS:
        choose_tab(page, tab)
        unfold(page)
        assert page.evaluate(NAMELESS) == [], tab
    # That it sees what has none.
    nameless = "<input placeholder='a'><button data-testid='b'></button><img alt='' width=9 height=9>"
    page.locator("#facts").evaluate("(metadata, inside) => { metadata.innerHTML = inside; }", nameless)
    assert len(page.evaluate(NAMELESS)) == 3
