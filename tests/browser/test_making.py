"""From click to downloaded GLB, in each tab; pictures that are refused; push to the Hub."""

import time

import pytest
import trimesh
from PIL import Image
from playwright.sync_api import expect

from hifa.optimization.run import HiFARun

from .driving import (
    CHICKEN,
    canvas_pixels,
    chicken_sheet,
    downloaded,
    open_page,
    progress,
    run_id,
    set_slider,
    set_steps,
    start_text,
)


def test_text_to_a_downloaded_glb(page, served):
    page.get_by_label("Prompt", exact=True).first.fill("a red xylophone ")
    expect(page.locator("#prompt-hint")).to_contain_text("xylophone is not in Toybox's vocabulary")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_text("does not know the word 'xylophone'").first).to_be_visible()
    start_text(page, 20)
    began = time.monotonic()
    expect(page.locator("#preview img.color")).to_be_visible()
    assert time.monotonic() - began < 5
    expect(page.locator("#model")).to_be_hidden()  # there is no model yet
    expect(progress(page)).to_contain_text("Finished 20 steps")
    canvas_pixels(page)
    glb = downloaded(page, "glb")
    assert len(trimesh.load(glb, file_type="glb", force="mesh").faces) > 100
    expect(page.locator("#facts")).to_contain_text("MB")
    expect(page.locator("#turntable video")).to_be_visible()
    for kind in ("obj", "ply", "mp4", "asset", "run"):
        assert downloaded(page, kind).stat().st_size > 1000
    # The seed that was drawn is shown back.
    seed = page.locator("#text-seed input").input_value()
    assert int(seed) == served.store.open(run_id(page)).read().request.seed > 0


def test_image_to_a_downloaded_glb(page, tmp_path):
    page.get_by_role("tab", name="Image to 3D").click()
    page.locator("#image-photo input[type=file]").set_input_files(CHICKEN / "truth" / "000.png")
    expect(page.locator("#image-matte img")).to_be_visible()
    expect(page.locator("#image-matte-note")).to_contain_text("Cut out by its transparency")
    page.locator("#image-views button").first.click()
    # Views of two seeds, the better one marked.
    set_slider(page, "image-seeds", "2")
    set_slider(page, "image-view-steps", "5")
    page.get_by_role("button", name="Make views").click()
    expect(page.locator("#image-gallery img")).to_have_count(2)
    expect(progress(page)).to_contain_text("The views are made")
    expect(page.locator("#views img")).to_have_count(2)
    expect(page.locator("#image-used")).to_contain_text("views of seed")
    # A number that is typed counts like one that is dragged: these are views of another framing now.
    set_slider(page, "image-share", "0.6")
    expect(page.locator("#image-gallery img")).to_have_count(0)
    expect(page.locator("#image-used")).to_contain_text("Views of the picture are made first")
    # What random weights imagine is no object; a sheet from elsewhere takes its place.
    page.locator("#image-photo").get_by_label("Remove Image").click()
    page.locator("#image-sheet input[type=file]").set_input_files(chicken_sheet(tmp_path))
    expect(page.locator("#image-sheet img")).to_be_visible()
    expect(page.locator("#image-used")).to_contain_text("uploaded sheet")
    set_steps(page, "image", 12)
    page.get_by_role("button", name="Reconstruct").click()
    expect(progress(page)).to_contain_text("Finished 12 steps")
    assert downloaded(page, "glb").read_bytes()[:4] == b"glTF"
    expect(page.locator("#facts")).to_contain_text("reconstruction alone")
    # Opened again, the tab, the sheet and the steps are as they were.
    open_page(page, page.url)
    expect(page.locator("#image-used")).to_contain_text("uploaded sheet")
    page.locator("#image-views button").first.click()
    expect(page.locator("#image-sheet img")).to_be_visible()
    expect(page.locator("#views img")).to_have_count(1)


def test_hallucination_to_a_downloaded_glb(page, tmp_path, served):
    page.get_by_role("tab", name="Image-guided hallucination").click()
    page.locator("#guided-prompt input, #guided-prompt textarea").first.fill("a yellow duck")
    page.locator("#guided-views button").first.click()
    page.locator("#guided-sheet input[type=file]").set_input_files(chicken_sheet(tmp_path))
    expect(page.locator("#guided-sheet img")).to_be_visible()
    page.locator("#guidance-end input[type=number]").fill("0.25")
    set_steps(page, "guided", 12)
    page.get_by_role("button", name="Hallucinate").click()
    expect(progress(page)).to_contain_text("Finished 12 steps")
    assert downloaded(page, "glb").read_bytes()[:4] == b"glTF"
    losses = HiFARun.load(served.store.open(run_id(page)).run).losses
    assert "given_image" in losses[0] and "given_image" not in losses[4]


@pytest.mark.parametrize("kind, message", [("text", "cannot be read as a picture"), ("white", "shows no object")])
def test_bad_pictures_are_refused_and_the_page_lives_on(page, tmp_path, kind, message):
    page.get_by_role("tab", name="Image to 3D").click()
    bad = tmp_path / "bad.png"
    if kind == "text":
        bad.write_text("this is no picture")
    else:
        Image.new("RGB", (100, 100), "white").save(bad)
    page.locator("#image-samples button").first.click()
    expect(page.locator("#image-matte img")).to_be_visible()
    page.locator("#image-photo").get_by_label("Remove Image").click()
    page.locator("#image-photo input[type=file]").set_input_files(bad)
    expect(page.get_by_text(message).first).to_be_visible()
    expect(page.locator("#image-matte-note")).to_contain_text(message)
    expect(page.locator("#image-matte img")).to_have_count(0)
    page.get_by_role("button", name="Reconstruct").click()
    expect(page.get_by_text(message).nth(1)).to_be_visible()
    expect(page.get_by_role("button", name="Reconstruct")).to_be_enabled()


def test_push_to_the_hub(page, hub, served, monkeypatch):
    start_text(page, 10)
    expect(progress(page)).to_contain_text("Finished 10 steps")
    page.locator("#hub-form button").first.click()
    page.locator("#hub-repo input, #hub-repo textarea").first.fill("you/mushroom")
    page.locator("#hub-token input").fill("hf_me")
    page.locator("#hub-push").click()
    expect(page.get_by_text("may not write to you/mushroom").first).to_be_visible()
    expect(page.locator("#hub-token input")).to_have_value("")  # a token does not stay in the page
    page.locator("#hub-repo input, #hub-repo textarea").first.fill("me/mushroom")
    page.locator("#hub-dataset input, #hub-dataset textarea").first.fill("me/meshes")
    page.locator("#hub-token input").fill("hf_me")
    page.locator("#hub-push").click()
    expect(page.locator("#hub-result")).to_contain_text("/me/mushroom")
    repo = hub.repo("me/mushroom")
    assert repo.visibility == "private" and repo.files["mesh.glb"][:4] == b"glTF"
    assert b"| license of the prior | Apache-2.0" in repo.files["README.md"]
    assert len(hub.repo("me/meshes", "dataset").files) == 3
    assert "hf_me" not in page.content()
    # A second time it is there already; who sits at the machine need not type a token that it has.
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    page.locator("#hub-push").click()
    expect(page.get_by_text("me/mushroom already exists").first).to_be_visible()
    # It is nowhere on the disk of the server.
    files = [path for path in served.store.root.parent.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"hf_me" in path.read_bytes()]
