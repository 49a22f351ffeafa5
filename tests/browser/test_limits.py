"""What is too much is refused in words, and the page lives on."""

from gradio.queueing import Queue
from playwright.sync_api import expect

from hifa.space.ui.page import QUEUE_SIZE

from .driving import CHICKEN, progress, run_id, start_text


def test_a_picture_that_is_too_large_is_refused_in_words(page, tmp_path):
    page.get_by_role("tab", name="Image to 3D").click()
    picture = page.locator("#image-photo input[type=file]")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(26 * 2**20))
    picture.set_input_files(large)
    expect(page.get_by_text("exceed the maximum allowed size").first).to_be_visible()
    expect(page.locator("#image-matte img")).to_have_count(0)
    picture.set_input_files(CHICKEN / "truth" / "000.png")
    expect(page.locator("#image-matte img")).to_be_visible()


def test_who_finds_the_queue_full_is_told_so_and_can_try_again(page, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Queue, "__len__", lambda _: QUEUE_SIZE)
        start_text(page, 10)
        expect(page.get_by_text("currently busy. Please try again").first).to_be_visible()
        assert not run_id(page)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    page.get_by_role("button", name="Generate").click()
    expect(progress(page)).to_contain_text("Finished 10 steps")
