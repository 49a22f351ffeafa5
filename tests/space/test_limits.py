"""What the app takes at most: files of 25 MB, and as many who wait as its queue has places."""

import gradio_client
import httpx
import pytest
from gradio.queueing import Queue
from gradio_client.utils import QueueError

from hifa.space.ui.page import QUEUE_SIZE
from hifa.space.ui.validation import MAX_UPLOAD
from tests.helpers.space import PATIENCE, AppServer


MEGABYTE = 2**20


@pytest.fixture(scope="module")
def served(tiny_prior, tmp_path_factory):
    with AppServer(tmp_path_factory.mktemp("app"), tiny_prior) as server:
        yield server


def upload(served, megabytes: int) -> httpx.Response:
    files = {"files": ("picture.png", bytes(megabytes * MEGABYTE))}
    return httpx.post(f"{served.url}/gradio_api/upload", files=files, timeout=PATIENCE)


def test_an_upload_is_taken_up_to_the_limit_and_refused_above_it(served):
    assert MAX_UPLOAD == "25mb"
    assert upload(served, 24).status_code == 200
    refused = upload(served, 26)
    assert refused.status_code == 413 and "File size exceeded" in refused.text


def test_a_program_is_told_that_its_picture_is_too_large(served, tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(bytes(26 * MEGABYTE))
    with pytest.raises(ValueError, match="exceeds the maximum file size"):
        served.client().predict(gradio_client.handle_file(picture), 20, 0, 20, None, api_name="/image_to_3d")


def test_a_full_queue_says_so_and_leaves_nothing_behind(served, monkeypatch):
    client, before = served.client(), len(list(served.store.root.iterdir()))
    with monkeypatch.context() as patch:
        patch.setattr(Queue, "__len__", lambda _: QUEUE_SIZE)
        with pytest.raises(QueueError, match="Queue is full"):
            client.predict("a red mushroom", 0, 10, api_name="/text_to_3d")
    assert len(list(served.store.root.iterdir())) == before
    assert client.predict("a red mushroom", 0, 10, api_name="/text_to_3d")[0]["status"] == "finished"
