"""What a person chooses: a finished example, one of several sheets of views, and how the mesh is made."""

import io
import re
import threading
import time

import numpy as np
import trimesh
from PIL import Image
from playwright.sync_api import Page, expect

from hifa.space.jobs import exports as files
from hifa.space.jobs.view_sheets import GIVEN, MADE, Sheets
from hifa.space.ui.gallery import Example, examples
from hifa.space.ui.result_panel import size_hint
from tests.helpers.space import PATIENCE

from .driving import CHICKEN, downloaded, open_page, progress, run_id, set_slider, set_steps, start_text


def choose_example(page: Page, tab: str, kind: str, name: str) -> Example:
    """Click at a finished example of a tab that is open."""
    names = [example.path.name for example in examples(kind)]
    page.locator(f"#{tab}-examples button").nth(names.index(name)).click()
    return examples(kind)[names.index(name)]


def other_glb(page: Page, before: bytes) -> bytes:
    """What GLB downloads, as soon as it is another one."""
    deadline = time.monotonic() + PATIENCE
    while (now := downloaded(page, "glb").read_bytes()) == before:
        assert time.monotonic() < deadline, "the GLB stays the same"
        page.wait_for_timeout(300)
    return now


def test_a_finished_example_shows_what_it_is_and_can_be_downloaded(page, served):
    prompt = page.get_by_label("Prompt", exact=True).first
    mushroom = choose_example(page, "text", "text", "red-mushroom")
    expect(progress(page)).to_contain_text(f"An example: a red mushroom, seed {mushroom.record.request.seed}")
    expect(prompt).to_have_value("a red mushroom")
    expect(page.locator("#text-seed input")).to_have_value(str(mushroom.record.request.seed))
    expect(page.locator("#preview img.color")).to_be_visible()
    expect(page.locator("#model canvas")).to_be_visible()
    expect(page.locator("#facts")).to_contain_text(f"{mushroom.record.metadata['faces']:,}")
    expect(page.locator("#facts")).to_contain_text("finished")
    expect(page.locator("#download-glb")).to_be_enabled()
    assert downloaded(page, "glb").read_bytes() == (mushroom.path / "mesh.glb").read_bytes()
    # There is no run of it: nothing to go on with, to make again, or to open by an address.
    for button in ("#resume", "#stop", "#make-files", "#mesh-step"):
        expect(page.locator(button)).to_be_hidden()
    for kind in ("obj", "ply", "asset", "run"):
        expect(page.locator(f"#download-{kind}")).to_be_disabled()
    assert not run_id(page)
    # Another one takes its place. What was made of a picture alone has no prompt.
    page.get_by_role("tab", name="Image to 3D").click()
    chicken = choose_example(page, "image", "image", "chicken")
    expect(progress(page)).to_contain_text("An example: chicken, from a picture")
    expect(page.locator("#facts")).to_contain_text("reconstruction alone")
    assert other_glb(page, (mushroom.path / "mesh.glb").read_bytes()) == (chicken.path / "mesh.glb").read_bytes()
    page.locator("#mode").get_by_label("Normals").check()
    expect(page.locator("#preview img.normals")).to_be_visible()
    page.get_by_role("tab", name="Image-guided").click()
    duck = choose_example(page, "guided", "hallucination", "red-duck")
    expect(progress(page)).to_contain_text("An example: a red duck, from a picture")
    expect(page.locator("#guided-prompt input, #guided-prompt textarea").first).to_have_value("a red duck")
    expect(prompt).to_have_value("a red mushroom")
    assert other_glb(page, (chicken.path / "mesh.glb").read_bytes()) == (duck.path / "mesh.glb").read_bytes()


def test_the_sheet_that_is_chosen_is_what_the_object_is_made_of(page, served):
    page.get_by_role("tab", name="Image to 3D").click()
    page.locator("#image-photo input[type=file]").set_input_files(CHICKEN / "truth" / "000.png")
    expect(page.locator("#image-matte img")).to_be_visible()
    page.locator("#image-views button").first.click()
    set_slider(page, "image-seeds", "2")
    set_slider(page, "image-view-steps", "5")
    page.get_by_role("button", name="Make views").click()
    expect(progress(page)).to_contain_text("The views are made")
    expect(page.locator("#image-gallery img")).to_have_count(2)
    views = served.store.open(run_id(page))
    best, other = Sheets(views.path).scores()
    expect(page.locator("#image-used")).to_contain_text(f"The views of seed {best} are used.")
    page.locator("#image-gallery button").nth(1).click()
    expect(page.locator("#image-used")).to_contain_text(f"The views of seed {other} are used.")
    set_steps(page, "image", 10)
    page.get_by_role("button", name="Reconstruct").click()
    page.wait_for_function("made => !window.location.search.includes(made)", arg=views.id)
    expect(progress(page)).to_contain_text("10 steps")
    made = [np.asarray(Image.open(views.path / MADE / f"{seed}.png")) for seed in (best, other)]
    used = np.asarray(Image.open(served.store.open(run_id(page)).path / GIVEN))
    assert not np.array_equal(*made), "with two sheets that are alike this test shows nothing"
    assert np.array_equal(used, made[1])
    expect(page.locator("#views img")).to_have_count(1)


def choose_mesh(page: Page, faces: int, side: int) -> float:
    """Set the options of a mesh; returns the megabytes that are predicted for them."""
    page.locator("#mesh-step").get_by_label(str(side), exact=True).check()
    set_slider(page, "mesh-step", str(faces))
    hint = page.locator("#mesh-step .hint")
    expect(hint).to_have_text(re.sub("<.*?>", "", size_hint(faces, side)))
    return float(hint.locator("b").inner_text().split()[0])


def test_a_mesh_can_be_made_again_and_one_that_is_cancelled_leaves_the_old_one(page, served, monkeypatch):
    start_text(page, 10)
    expect(progress(page)).to_contain_text("Finished 10 steps")
    expect(page.locator("#download-run")).to_be_enabled()
    metadata, glb = page.locator("#facts").inner_text(), downloaded(page, "glb").read_bytes()
    page.locator("#mesh-step button").first.click()
    few, many = choose_mesh(page, 3000, 256), choose_mesh(page, 20_000, 1024)
    assert many > 3 * few
    # One that takes long, until it is given up.
    coloring, go_on, bake = threading.Event(), threading.Event(), files.bake_texture

    def slow(*arguments):
        coloring.set()
        assert go_on.wait(PATIENCE)
        return bake(*arguments)

    monkeypatch.setattr(files, "bake_texture", slow)
    choose_mesh(page, 3000, 256)
    page.locator("#extract").click()
    expect(page.locator("#cancel-extract")).to_be_visible()
    expect(page.locator("#extract")).to_be_hidden()
    expect(progress(page)).to_contain_text("Coloring")
    assert coloring.is_set()
    page.locator("#cancel-extract").click()
    expect(page.locator("#cancel-extract")).to_be_hidden()
    expect(page.locator("#extract")).to_be_visible()
    expect(progress(page)).to_contain_text("Finished 10 steps")
    go_on.set()
    monkeypatch.undo()
    page.wait_for_timeout(2000)  # in which what was given up could still take the place of what is there
    assert page.locator("#facts").inner_text() == metadata
    assert downloaded(page, "glb").read_bytes() == glb
    # And now to its end.
    page.locator("#extract").click()
    expect(page.locator("#facts")).to_contain_text("256 × 256")
    expect(page.locator("#extract")).to_be_visible()
    said = re.search(r"Faces\s+([\d,]+)", page.locator("#facts").inner_text())[1]
    other = other_glb(page, glb)
    mesh = trimesh.load(io.BytesIO(other), file_type="glb", force="mesh")
    assert 1000 < len(mesh.faces) == int(said.replace(",", "")) <= 3000
    assert mesh.visual.material.baseColorTexture.size == (256, 256)
    # It is the mesh of the run from now on.
    open_page(page, page.url)
    expect(page.locator("#facts")).to_contain_text("256 × 256")
    assert downloaded(page, "glb").read_bytes() == other
