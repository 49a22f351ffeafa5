"""Paths that a client names, over HTTP: no file of the server but uploads is read, or told to exist."""

import json
import os
import time

import gradio as gr
import httpx
import pytest
from gradio.components import Component
from gradio.utils import get_upload_folder
from PIL import Image

from hifa.space.ui.uploads import REFUSED, uploaded
from hifa.space.ui.validation import PhotoInput
from tests.helpers.space import AppServer


META = {"_type": "gradio.FileData"}
SECONDS = 60  # for an answer; a path of a device never gave one
# What carries paths in Gradio, as an input. Of the other inputs of the app none has files.
PLAIN = (
    gr.Textbox, gr.Number, gr.Slider, gr.Dropdown, gr.Radio, gr.Checkbox, gr.State, gr.HTML, gr.JSON, gr.Markdown,
)  # fmt: skip


@pytest.fixture(scope="module")
def served(tiny_prior, tmp_path_factory):
    with AppServer(tmp_path_factory.mktemp("app"), tiny_prior) as server:
        yield server


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """A picture of the server that nobody uploaded."""
    path = tmp_path_factory.mktemp("secret") / "secret.png"
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste("red", (16, 16, 48, 48))
    picture.save(path)
    return path


def upload(served, content: bytes) -> str:
    files = {"files": ("picture.png", content)}
    (path,) = httpx.post(f"{served.url}/gradio_api/upload", files=files, timeout=SECONDS).json()
    return path


def answer(served, endpoint: str, data: list) -> str:
    """The first event of a call that is its end, or its first news: what it is and what it says."""
    address = f"{served.url}/gradio_api/call/{endpoint}"
    call = httpx.post(address, json={"data": data}, timeout=SECONDS).json()["event_id"]
    with httpx.stream("GET", f"{address}/{call}", timeout=SECONDS) as lines:
        for line in lines.iter_lines():
            if line.startswith("event: ") and line != "event: heartbeat":
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and line != "data: null":
                return f"{kind} {line.removeprefix('data: ')}"
    return kind


def calls(payload: dict) -> list[tuple[str, list]]:
    """Every endpoint that takes a picture or a sheet, given this payload for one of them."""
    return [
        ("image_to_3d", [payload, 20, 0, 20, None]),
        ("image_to_3d", [None, 20, 0, 20, payload]),
        ("hallucinate", ["a red ball", payload, 20, 0.5, 0, 20, "toybox", None]),
        ("hallucinate", ["a red ball", None, 20, 0.5, 0, 20, "toybox", payload]),
    ]


def assert_refused(served, payload: dict) -> None:
    before = set(served.store.root.iterdir())
    for endpoint, data in calls(payload):
        said = answer(served, endpoint, data)
        assert said.startswith("error ") and REFUSED in json.loads(said.removeprefix("error "))["error"], said
    assert set(served.store.root.iterdir()) == before, "no run was begun"


def test_a_picture_of_the_server_is_not_read(served, secret):
    assert_refused(served, {"path": str(secret)})


@pytest.mark.parametrize("path", ["/no/such/picture.png", "/etc/passwd", "/", "", ".", "\0", "a" * 5000, "~/x.png"])
def test_whether_a_path_exists_is_not_told(served, path):
    assert_refused(served, {"path": path})


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/tty", "/dev/stdin", "/proc/self/fd/0"])
def test_a_device_blocks_nobody(served, path):
    began = time.monotonic()
    assert_refused(served, {"path": path})
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("path", ["http://127.0.0.1:1/x.png", "file:///etc/passwd", "data:image/png;base64,AAAA"])
def test_an_address_is_no_path(served, path):
    assert_refused(served, {"path": path})


def test_ways_out_of_the_upload_folder(served, secret, tmp_path):
    folder = get_upload_folder()
    os.makedirs(folder, exist_ok=True)
    inside = os.path.join(folder, f"{os.getpid()}")
    os.makedirs(inside)
    os.symlink(secret, os.path.join(inside, "link.png"))
    os.symlink(secret.parent, os.path.join(inside, "folder"))
    os.symlink("loop.png", os.path.join(inside, "loop.png"))
    os.mkfifo(os.path.join(inside, "pipe.png"))
    up = os.path.relpath(secret, inside)
    for name in ("link.png", "folder/secret.png", "loop.png", "pipe.png", up, "../..", "", "missing.png"):
        assert_refused(served, {"path": os.path.join(inside, name)})
    # A neighbor of the folder, whose name begins alike.
    beside = f"{folder}-beside"
    os.makedirs(beside, exist_ok=True)
    Image.open(secret).save(os.path.join(beside, "picture.png"))
    assert_refused(served, {"path": os.path.join(beside, "picture.png")})


def test_a_payload_that_says_it_is_a_file_is_no_way_in_either(served, secret):
    for path in (str(secret), "/no/such/picture.png", "/dev/zero"):
        for endpoint, data in calls({"path": path, "meta": META}):
            assert answer(served, endpoint, data).startswith("error ")


def test_an_upload_is_taken_with_and_without_the_mark(served, secret):
    path = upload(served, secret.read_bytes())
    for payload in ({"path": path, "meta": META}, {"path": path}):
        said = answer(served, "image_to_3d", [payload, 20, 0, 20, None])
        assert not said.startswith("error"), said
        served.client().predict(json.loads(said.split(" ", 1)[1])[0]["run_id"], api_name="/stop")


def test_no_other_input_of_any_endpoint_takes_a_file(served):
    """A new component that does has to say here why its paths are safe."""
    inputs = {block for function in served.functions() for block in function.inputs if isinstance(block, Component)}
    assert any(isinstance(block, PhotoInput) for block in inputs)
    others = [block for block in inputs if not isinstance(block, PhotoInput)]
    assert {type(block) for block in others if type(block) not in PLAIN} == set()


def test_the_folder_may_itself_be_reached_by_a_link(tmp_path, monkeypatch, secret):
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "a").mkdir(parents=True)
    link.symlink_to(real)
    (real / "a" / "picture.png").write_bytes(secret.read_bytes())
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(link))
    for base in (real, link):
        assert uploaded(str(base / "a" / "picture.png")) == str(real.resolve() / "a" / "picture.png")
    with pytest.raises(gr.Error):
        uploaded(7)
