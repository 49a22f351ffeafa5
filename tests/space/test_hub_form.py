"""Push to the Hub from the app: what is asked for, retries, and signing in."""

import gradio as gr
import pytest

from hifa import HiFAAsset
from hifa.space.ui.hub_form import HubForm
from tests.helpers.hub_server import hub_server
from tests.helpers.space import BallPipeline, make_worker, request, tiny_model_cache


@pytest.fixture
def hub():
    with hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def worker(tiny_prior, tmp_path_factory):
    return make_worker(tmp_path_factory.mktemp("runs"), tiny_model_cache(tiny_prior, BallPipeline))


@pytest.fixture
def run_id(worker, light_files, monkeypatch) -> str:
    monkeypatch.setattr(HiFAAsset.export_stills, "__defaults__", (16,))
    folder = worker.store.create(request(4))
    list(worker.advance(folder))
    return folder.id


def form(worker, hub) -> HubForm:
    with gr.Blocks():
        return HubForm(worker.store, tiny_model_cache("no/where"), gr.Column(), hub.address)


def test_who_signed_in_pushes_in_the_own_name_and_who_did_not_is_told(worker, hub, run_id):
    built = form(worker, hub)
    asked = (run_id, "me/mushroom", True, "cc-by-4.0", "me/meshes", "hf_typed_token_is_not_used")
    with pytest.raises(gr.Error, match="Sign in to Hugging Face first"):
        built.push_signed_in(*asked, None)
    assert not hub.repos
    visitor = gr.OAuthToken(token="hf_me", scope="contribute-repos", expires_at=0)
    shown = built.push_signed_in(*asked, visitor)
    assert f"{hub.address}/me/mushroom" in shown and f"{hub.address}/datasets/me/meshes" in shown
    assert hub.repo("me/mushroom").files["mesh.glb"][:4] == b"glTF" and "hf_me" not in shown
    with pytest.raises(gr.Error, match="may not write to you/mushroom"):
        built.push_signed_in(run_id, "you/mushroom", True, "cc-by-4.0", "", "", visitor)


def test_a_row_that_was_refused_is_told_and_added_without_pushing_again(worker, hub, run_id):
    built = form(worker, hub)
    shown = built._push(run_id, "me/mushroom", True, "cc-by-4.0", "you/meshes", "hf_me")
    assert "a red mushroom is at" in shown and "me/mushroom" in shown
    assert "not in you/meshes yet" in shown and "leave Repository empty" in shown
    shown = built._push(run_id, "", True, "cc-by-4.0", "me/meshes", "hf_me")
    assert "datasets/me/meshes" in shown and len(hub.repo("me/mushroom").commits) == 2
    with pytest.raises(gr.Error, match="Name a repository"):
        built._push(run_id, " ", True, "cc-by-4.0", "", "hf_me")


def test_files_of_another_step_than_the_run_are_not_pushed_with_it(worker, hub, run_id):
    built, folder = form(worker, hub), worker.store.open(run_id)
    record = folder.read()
    for files, made_at in (
        (record.files, record.made_at | {"glb": 2}),
        ({kind: name for kind, name in record.files.items() if kind != "mp4"}, record.made_at),
    ):
        folder.write(record, files=files, made_at=made_at)
        with pytest.raises(gr.Error, match="do not match step 4 of the run. Make the files first"):
            built._push(run_id, "me/mushroom", True, "cc-by-4.0", "me/meshes", "hf_me")
    folder.write(record)
    with folder.locked(), pytest.raises(gr.Error, match="here or in another window"):
        built._push(run_id, "me/mushroom", True, "cc-by-4.0", "", "hf_me")
    assert not hub.repos
    assert "me/mushroom" in built._push(run_id, "me/mushroom", True, "cc-by-4.0", "", "hf_me")


def test_a_push_that_failed_can_be_tried_again(worker, hub, run_id):
    built = form(worker, hub)
    hub.failing.append(500)
    with pytest.raises(gr.Error, match="error .500."):
        built._push(run_id, "me/mushroom", True, "cc-by-4.0", "", "hf_me")
    assert "me/mushroom" in built._push(run_id, "me/mushroom", True, "cc-by-4.0", "", "hf_me")
    with pytest.raises(gr.Error, match="already exists"):
        built._push(run_id, "me/mushroom", True, "cc-by-4.0", "", "hf_me")
