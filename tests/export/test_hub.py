"""Assets on their way to the Hub and back, over HTTP, with the real client."""

import json
import re
import socket

import pytest
import torch
import yaml

from hifa import HiFAAsset, HiFAConfig
from hifa.export.hub import HubError, add_mesh_row, check_repo_id, model_card, push_folder
from hifa.field import RadianceField
from tests.helpers.hub_server import Repo, hub_server


METADATA = {
    "prompt": "a *red* | mushroom\n<script>", "seed": 7, "prior": "some/prior", "steps": 40, "seconds": 12.5,
    "config": HiFAConfig.fast(num_inference_steps=50).to_dict(), "prior_license": "CreativeML Open RAIL-M",
}  # fmt: skip


@pytest.fixture
def hub():
    with hub_server() as server:
        yield server


class SmallAsset(HiFAAsset):
    """Writes what any asset writes, in a small size."""

    def export(self, folder):
        small = {"mesh_resolution": 32, "max_faces": 500, "texture_size": 64}
        super().export(folder, num_frames=2, frame_size=32, still_size=32, **small)


@pytest.fixture(scope="module")
def ball() -> HiFAAsset:
    return SmallAsset(RadianceField(blob_density=8.0, log2_hashmap_size=10, levels=4), METADATA)


def test_a_card_says_what_made_the_asset_and_how_to_load_it():
    card = model_card(METADATA, "me/mushroom", "cc-by-4.0", "https://hub")
    data = yaml.safe_load(card.split("---")[1])
    assert data["license"] == "cc-by-4.0" and data["base_model"] == "some/prior" and data["library_name"] == "hifa"
    assert data["pipeline_tag"] == "text-to-3d" and data["widget"][0]["output"]["url"] == "front.png"
    for part in ("| 40 of 50 |", "| 7 |", "| 12.5 s |", "Open RAIL-M", 'from_pretrained("me/mushroom")'):
        assert part in card
    assert "https://hub/me/mushroom/resolve/main/turntable.mp4" in card
    assert "pip install -e ." in card
    assert "<script>" not in card.split("---", 2)[2] and r"\*red\* \| mushroom" in card


def test_an_asset_goes_there_and_comes_back(hub, ball, tmp_path):
    url = ball.push_to_hub("me/mushroom", token="hf_me", endpoint=hub.address, license="cc0-1.0")
    assert url == f"{hub.address}/me/mushroom"
    repo = hub.repo("me/mushroom")
    assert repo.visibility == "private"
    assert {"README.md", "asset.json", "mesh.glb", "turntable.mp4", "front.png"} <= set(repo.files)
    assert repo.files["mesh.glb"][:4] == b"glTF" and "mesh.glb" in hub.large
    assert b"license: cc0-1.0" in repo.files["README.md"]
    again = HiFAAsset.from_pretrained("me/mushroom", token="hf_me", endpoint=hub.address, cache_dir=tmp_path)
    assert again.metadata == json.loads(json.dumps(METADATA))
    for name, value in ball.radiance_field.state_dict().items():
        assert torch.equal(again.radiance_field.state_dict()[name], value), name


@pytest.mark.parametrize("repo_id, token, message", [
    ("me/x", "hf_wrong", "token is not valid"),
    ("you/x", "hf_me", "may not write to you/x"),
    ("mushroom", "hf_me", "user/name"),
    ("../etc/x", "hf_me", "user/name"),
])  # fmt: skip
def test_refusals_are_explained_and_never_hold_the_token(hub, ball, monkeypatch, repo_id, token, message):
    monkeypatch.setattr(SmallAsset, "export", lambda self, folder: None)
    with pytest.raises(HubError, match=message) as caught:
        ball.push_to_hub(repo_id, token=token, endpoint=hub.address)
    assert token not in str(caught.value) and not hub.repos


def test_a_hub_that_cannot_be_reached_is_said(ball, monkeypatch):
    monkeypatch.setattr(SmallAsset, "export", lambda self, folder: None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(HubError, match="cannot be reached"):
        ball.push_to_hub("me/x", token="hf_me", endpoint=nobody)


def test_an_upload_that_failed_can_be_tried_again_but_nothing_is_overwritten(hub):
    options = {"private": True, "token": "hf_me", "endpoint": hub.address, "overwrite": False}

    def write(folder):
        (folder / "mesh.glb").write_bytes(b"glTF")

    hub.failing.append(500)
    with pytest.raises(HubError, match="error .500."):
        push_folder("me/mushroom", write, **options)
    assert not hub.repo("me/mushroom").files
    assert push_folder("me/mushroom", write, **options) == f"{hub.address}/me/mushroom"
    with pytest.raises(HubError, match="me/mushroom already exists"):
        push_folder("me/mushroom", lambda folder: (folder / "mesh.glb").write_bytes(b"other"), **options)
    assert hub.repo("me/mushroom").files["mesh.glb"] == b"glTF"


def test_nothing_private_goes_into_a_public_repository(hub):
    hub.repos["model", "me/open"] = Repo("public")
    with pytest.raises(HubError, match="already exists and is public"):
        push_folder(
            "me/open", lambda folder: (folder / "x").touch(), private=True, token="hf_me", endpoint=hub.address,
            overwrite=False,
        )  # fmt: skip
    assert not hub.repo("me/open").files


def test_meshes_become_rows_of_a_dataset_and_none_replaces_another(hub, tmp_path):
    glb = tmp_path / "mesh.glb"
    glb.write_bytes(b"glTF0")
    options = {"token": "hf_me", "endpoint": hub.address}
    assert add_mesh_row("me/meshes", glb, "one", {"prompt": "a"}, **options) == f"{hub.address}/datasets/me/meshes"
    repo = hub.repo("me/meshes", "dataset")
    assert repo.visibility == "private" and b"Meshes made with HiFA" in repo.files["README.md"]
    add_mesh_row("me/meshes", glb, "one", {"prompt": "the same mesh"}, **options)
    glb.write_bytes(b"glTF1")
    add_mesh_row("me/meshes", glb, "one", {"prompt": "another of the same name"}, **options)
    rows = [json.loads(line) for line in repo.files["train/metadata.jsonl"].splitlines()]
    assert [row["prompt"] for row in rows] == ["the same mesh", "another of the same name"]
    assert [repo.files[f"train/{row['file_name']}"] for row in rows] == [b"glTF0", b"glTF1"]
    assert all(re.fullmatch(r"one-[0-9a-f]{8}\.glb", row["file_name"]) for row in rows)


def test_no_private_row_goes_into_a_public_dataset(hub, tmp_path):
    glb = tmp_path / "mesh.glb"
    glb.write_bytes(b"glTF0")
    hub.repos["dataset", "me/open"] = Repo("public")
    with pytest.raises(HubError, match="already exists and is public"):
        add_mesh_row("me/open", glb, "one", {}, private=True, token="hf_me", endpoint=hub.address)
    assert not hub.repo("me/open", "dataset").files
    add_mesh_row("me/open", glb, "one", {}, private=False, token="hf_me", endpoint=hub.address)
    assert len(hub.repo("me/open", "dataset").files) == 3


def test_the_card_of_somebodys_dataset_stays(hub, tmp_path):
    glb = tmp_path / "mesh.glb"
    glb.write_bytes(b"glTF0")
    hub.repos["dataset", "me/chairs"] = Repo("private", {"README.md": b"My chairs"})
    add_mesh_row("me/chairs", glb, "one", {}, token="hf_me", endpoint=hub.address)
    repo = hub.repo("me/chairs", "dataset")
    assert repo.files["README.md"] == b"My chairs" and len(repo.files) == 3


def test_a_row_that_somebody_adds_meanwhile_is_not_lost(hub, tmp_path, monkeypatch):
    glb = tmp_path / "mesh.glb"
    glb.write_bytes(b"glTF0")
    options = {"token": "hf_me", "endpoint": hub.address}
    add_mesh_row("me/meshes", glb, "one", {}, **options)
    repo = hub.repo("me/meshes", "dataset")
    from hifa.export import hub as module

    read = module._rows

    def read_slowly(api, repo_id):
        rows = read(api, repo_id)
        repo.commits.append("f" * 40)  # of somebody else
        return rows

    monkeypatch.setattr(module, "_rows", read_slowly)
    with pytest.raises(HubError, match="at the same moment"):
        add_mesh_row("me/meshes", glb, "two", {}, **options)
    assert not any("two" in path for path in repo.files)


def test_names_are_checked():
    assert check_repo_id(" me/a-b.c_1 ") == "me/a-b.c_1"
