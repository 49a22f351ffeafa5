"""The app on a free port of this machine, used by programs: endpoints, stop, resume, and what strangers can reach."""

import time
from pathlib import Path

import gradio as gr
import gradio_client
import httpx
import pytest
import trimesh
from gradio_client.exceptions import AppError
from PIL import Image
from starlette.requests import Request

from hifa import HiFARun
from hifa.space.ui.hub_form import own_token
from tests.helpers.space import PATIENCE, TOO_MANY, AppServer


@pytest.fixture(scope="module")
def served(tiny_prior, tmp_path_factory):
    with AppServer(tmp_path_factory.mktemp("app"), tiny_prior) as server:
        yield server


@pytest.fixture(scope="module")
def client(served):
    return served.client()


def test_a_run_streams_its_status_and_ends_with_the_files(client):
    job = client.submit("a red mushroom", 3, 30, api_name="/text_to_3d")
    status, model, *files = job.result(timeout=PATIENCE)
    stream = [state[0] for state in job.outputs()]
    working = [state for state in stream if state["status"] == "running" and state["steps"]]
    assert working[0]["step"] == 0 and working[-1]["step"] == 30
    assert status["status"] == "finished" and status["seed"] == 3 and status["faces"] > 100
    names = ["a-red-mushroom.glb", "a-red-mushroom-obj.zip", "a-red-mushroom.ply", "a-red-mushroom.mp4"]
    assert [Path(file).name for file in (model, *files)][:4] == names and len(files) == 5
    assert len(trimesh.load(model, force="mesh").faces) == status["faces"]
    assert all(Path(file).stat().st_size > 1000 for file in files)


def test_stop_exports_what_is_there_and_resume_goes_on(served, client):
    job = client.submit("a red mushroom", 0, TOO_MANY, api_name="/text_to_3d")
    run_id = wait_for_steps(job, 3)
    began = time.monotonic()
    assert client.predict(run_id, api_name="/stop")["run_id"] == run_id
    assert time.monotonic() - began < 2
    status, model, *_ = job.result(timeout=PATIENCE)
    assert status["status"] == "stopped" and 0 < status["step"] < TOO_MANY and Path(model).suffix == ".glb"
    again = client.submit(run_id, api_name="/resume")
    wait_for_steps(again, status["step"] + 1)
    client.predict(run_id, api_name="/stop")
    assert again.result(timeout=PATIENCE)[0]["step"] > status["step"]
    assert client.predict(run_id, api_name="/status")["status"] == "stopped"
    # The run that is downloaded is one that goes on anywhere.
    with served.store.open(run_id).locked():
        assert HiFARun.load(served.store.open(run_id).run).prompt == "a red mushroom"


def test_what_is_wrong_is_refused_while_another_run_works_and_who_waits_can_be_stopped(client):
    first = client.submit("a red mushroom", 0, TOO_MANY, api_name="/text_to_3d")
    run_id = wait_for_steps(first, 1)
    try:
        with pytest.raises(AppError, match="the word 'xylophone'"):
            client.submit("a red xylophone", 0, 20, api_name="/text_to_3d").result(timeout=PATIENCE)
        second = client.submit("a blue car", 0, TOO_MANY, api_name="/text_to_3d")
        while not second.outputs():
            time.sleep(0.05)
        waiting = second.outputs()[-1][0]
        assert waiting["status"] == "waiting" and "1 run before this one" in waiting["text"]
        asked = time.monotonic()
        client.predict(waiting["run_id"], api_name="/stop")
        assert "Stopped before the first step" in second.result(timeout=PATIENCE)[0]["text"]
        assert time.monotonic() - asked < 5
        assert client.predict(run_id, api_name="/status")["status"] == "running"
    finally:
        client.predict(run_id, api_name="/stop")
    assert first.result(timeout=PATIENCE)[0]["status"] == "stopped"


def test_resume_makes_the_missing_files_of_a_finished_run(client, served):
    run_id = served.finished(client)
    folder = served.store.open(run_id)
    (folder.files / folder.read().files["mp4"]).unlink()
    status, *files = client.predict(run_id, api_name="/resume")
    assert status["status"] == "finished" and all(files)


def test_a_caller_who_leaves_pauses_the_run(served, client):
    job = client.submit("a red mushroom", 0, TOO_MANY, api_name="/text_to_3d")
    run_id = wait_for_steps(job, 3)
    job.cancel()
    deadline = time.monotonic() + PATIENCE
    while served.store.open(run_id).busy:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert client.predict(run_id, api_name="/status")["status"] == "paused"


def test_the_mesh_can_be_made_again(client, served):
    run_id = served.finished(client)
    status, model, *_ = client.predict(run_id, 300, 64, api_name="/extract_mesh")
    assert status["faces"] <= 300 and status["texture_size"] == 64
    assert len(trimesh.load(model, force="mesh").faces) <= 300
    with pytest.raises(AppError, match="texture_size must be a whole number from 64 to 2048, got 5000"):
        client.predict(run_id, 300, 5000, api_name="/extract_mesh")


@pytest.mark.parametrize("arguments, message", [
    (("a red xylophone", 0, 20), "the word 'xylophone'"),
    ((" ", 0, 20), "empty"),
    (("a red mushroom " * 60, 0, 20), "characters"),
    (("a red mushroom", -4, 20), "seed must be a whole number"),
    (("a red mushroom", 0, 10**6), "Steps must be"),
    (("a red mushroom", 0, 20, "lost2"), "lost2"),
])  # fmt: skip
def test_bad_text_is_refused_before_any_work(served, client, arguments, message):
    before = len(list(served.store.root.iterdir()))
    with pytest.raises(AppError, match=message):
        client.predict(*arguments, api_name="/text_to_3d")
    assert len(list(served.store.root.iterdir())) == before


def picture_file(folder: Path, kind: str) -> Path:
    """A bad picture."""
    path = folder / f"{kind}.png"
    if kind == "text":
        path.write_text("no picture")
    elif kind == "cut":
        Image.new("RGB", (300, 300), "white").save(path)
        path.write_bytes(path.read_bytes()[:60])
    elif kind == "bomb":
        Image.new("1", (8000, 8000)).save(path)
    elif kind == "disguised":
        Image.new("RGB", (64, 64), "red").save(path, "PPM")
    else:
        Image.new("RGBA", {"tiny": (3, 3), "empty": (64, 64), "narrow": (64, 64)}[kind]).save(path)
    return path


@pytest.mark.parametrize("kind, message", [
    ("text", "cannot be read as a picture"), ("cut", "Cannot read|cannot be read"), ("bomb", "8000x8000 pixels"),
    ("disguised", "cannot be read as a picture"), ("tiny", "3x3 pixels"), ("empty", "shows no object"),
])  # fmt: skip
def test_bad_pictures_are_refused_in_words(client, tmp_path, kind, message):
    with pytest.raises(AppError, match=message):
        client.predict(
            gradio_client.handle_file(picture_file(tmp_path, kind)), 20, 0, 20, None, api_name="/image_to_3d"
        )


def test_a_bad_sheet_is_refused_in_words(client, tmp_path):
    sheet = gradio_client.handle_file(picture_file(tmp_path, "narrow"))
    with pytest.raises(AppError, match="sixteen|16 square views"):
        client.predict(None, 20, 0, 20, sheet, api_name="/image_to_3d")


def test_a_prior_that_is_not_there_is_replaced_and_this_is_said(client):
    status, *_ = client.predict("a red mug", 0, 10, "lost", api_name="/text_to_3d")
    assert status["prior"] == "toybox" and "Lost prior cannot be loaded" in status["notice"]


@pytest.mark.parametrize("evil", ["../../etc", "/etc/passwd", "", "A" * 22])
@pytest.mark.parametrize("endpoint", ["/status", "/stop", "/resume"])
def test_an_id_that_is_none_reaches_nothing(client, evil, endpoint):
    with pytest.raises(AppError, match="no run with this address"):
        client.predict(evil, api_name=endpoint)


def test_files_of_the_store_are_not_served_by_path(served, client):
    run_id = served.finished(client)
    glb = f"files/{served.store.open(run_id).read().files['glb']}"
    for name in ("record.json", "run/run.safetensors", glb, "../timings.json"):
        path = served.store.root / run_id / name
        assert path.is_file()
        assert httpx.get(f"{served.url}/gradio_api/file={path}").status_code in (403, 404), name


def test_no_event_lowers_the_limit_of_others(served):
    """Of events with one id Gradio takes the lowest limit, which is 1 where none is given."""
    limits = {}
    for function in served.functions():
        limits.setdefault(function.concurrency_id, set()).add(function.concurrency_limit)
    assert {"gpu", "export", "hub"} <= set(limits)
    assert all(len(values) == 1 for values in limits.values()), limits


def test_the_endpoints_are_named_typed_and_documented(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {
        "/text_to_3d", "/image_to_3d", "/hallucinate", "/resume", "/extract_mesh", "/status", "/stop",
    }  # fmt: skip
    made = endpoints["/text_to_3d"]
    names = [parameter["parameter_name"] for parameter in made["parameters"]]
    assert names == ["prompt", "seed", "steps", "prior", "negative_prompt"]
    assert [value["label"] for value in made["returns"]] == ["Status", "GLB", "obj", "ply", "mp4", "asset", "run"]
    assert "Optimize a 3D object for a prompt" in made["description"]


def wait_for_steps(job, step: int) -> str:
    """Until a run has made some steps; returns its id."""
    deadline = time.monotonic() + PATIENCE
    while True:
        outputs = job.outputs()
        if outputs and outputs[-1][0]["step"] >= step:
            return outputs[-1][0]["run_id"]
        assert not job.done() and time.monotonic() < deadline, "the job ended before, or nothing happened"
        time.sleep(0.05)


HOME = "http://127.0.0.1:7860"


@pytest.mark.parametrize("host, origin, client, more, allowed", [
    ("127.0.0.1:7860", HOME, "127.0.0.1", {}, True),
    ("localhost:7860", "http://localhost:7860", "::1", {}, True),
    ("[::1]:7860", "http://[::1]:7860", "::1", {}, True),
    ("192.168.0.2:7860", "http://192.168.0.2:7860", "192.168.0.9", {}, False),
    ("abc.gradio.live", "https://abc.gradio.live", "127.0.0.1", {}, False),
    ("localhost:7860", HOME, "127.0.0.1", {"x-forwarded-for": "8.8.8.8"}, False),
    ("localhost:7860", HOME, "127.0.0.1", {"x-real-ip": "8.8.8.8"}, False),
    # nginx with nothing but `proxy_pass http://127.0.0.1:7860`
    ("127.0.0.1:7860", "https://hifa.example.org", "127.0.0.1", {}, False),
    ("127.0.0.1:7860", None, "127.0.0.1", {}, False),
])  # fmt: skip
def test_the_token_of_the_server_is_for_who_sits_at_it(monkeypatch, host, origin, client, more, allowed):
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    monkeypatch.delenv("SPACE_ID", raising=False)
    named = {"host": host} | ({"origin": origin} if origin else {}) | more
    headers = [(name.encode(), value.encode()) for name, value in named.items()]
    scope = {"type": "http", "headers": headers, "client": (client, 1), "path": "/", "query_string": b""}
    assert own_token(gr.Request(Request(scope))) == ("hf_owner" if allowed else "")
