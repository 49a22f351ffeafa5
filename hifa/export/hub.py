"""The card of an asset, and its way to the Hub: a model repository, and a row in a dataset of meshes.

Uploads need the scope `contribute-repos` only: they create repositories and write to those they created.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    DatasetCard,
    DatasetCardData,
    DatasetInfo,
    HfApi,
    ModelCard,
    ModelCardData,
    ModelInfo,
    constants,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError


# What a person may give an asset away under; Hub identifiers.
LICENCES = ("cc-by-4.0", "cc0-1.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "apache-2.0", "openrail", "other")
REPO_ID = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}")
METADATA = "train/metadata.jsonl"
# By name: huggingface_hub has changed the library that it speaks HTTP with before.
UNREACHABLE = {"TransportError", "ConnectionError", "TimeoutException"}


class HubError(ValueError):
    """The Hub refused; the message says why and what to do, and never holds a token."""


def model_card(
    facts: dict[str, Any], repo_id: str | None = None, licence: str | None = None, endpoint: str | None = None
) -> str:
    """README of an asset: what it is, what made it, how to load it.

    Args:
        facts: As in `HiFAAsset`, and `prior_licence` if it is known.
        repo_id: Where it is going, with a turntable, `front.png` and `mesh.glb`; `None` for the card of a folder that
            holds the asset alone, which shows none of them.
        licence: Of the asset, one of `LICENCES`.
    """
    views = facts.get("given_views")
    prompt = " ".join(str(facts.get("prompt", "")).split()) or ("from pictures" if views else "no prompt")
    prior = str(facts.get("prior", "unknown") or "none")
    data = ModelCardData(
        library_name="hifa",
        license=licence,
        pipeline_tag="image-to-3d" if views else "text-to-3d",
        tags=["text-to-3d", "nerf", "hifa"],
        base_model=prior if re.fullmatch(r"[\w.-]+/[\w.-]+", prior) and not Path(prior).exists() else None,
        widget=[{"text": prompt, "output": {"url": "front.png"}}] if repo_id else None,
    )
    config = facts.get("config", {})
    video = ""
    if repo_id:
        turntable = f"{endpoint or constants.ENDPOINT}/{repo_id}/resolve/main/turntable.mp4"
        video = f'<video src="{turntable}" controls autoplay loop muted width="384"></video>\n\n'
    text = f"""---
{data.to_yaml()}
---

# {_escaped(prompt)}

{video}A 3D asset made with HiFA ({"from given views" if views else "text-to-3D by score distillation"}).

| | |
|---|---|
| prompt | {_escaped(prompt)} |
| negative prompt | {_escaped(facts.get("negative_prompt", "")) or "none"} |
| prior | {_escaped(Path(prior).name)} |
| licence of the prior | {_escaped(facts.get("prior_licence", "see its own card"))} |
| given views | {views or "none"} |
| seed | {facts.get("seed", "unknown")} |
| steps | {facts.get("steps", "unknown")} of {config.get("num_inference_steps", "unknown")} |
| guidance scale | {config.get("guidance_scale", "unknown")} |
| denoising stride | {config.get("denoising_stride", "unknown")} |
| size | {config.get("render_size", "unknown")} pixels |
| time | {facts.get("seconds", "unknown")} s |

```bash
pip install -e .  # in a checkout of HiFA
```

```python
from hifa import HiFAAsset

asset = HiFAAsset.from_pretrained("{repo_id or "."}"){"" if repo_id else "  # this folder"}
asset.export_mesh("mesh.glb")
asset.render(asset.camera(azimuth_deg=30)).colour  # (256, 256, 3)
```

A GLB has +Y up and its front along +Z. Made by optimisation against a 2D model: sides that the model drew alike
may look alike.
"""
    return str(ModelCard(text))


def _escaped(text: Any) -> str:
    """A prompt may hold anything; in a card it is text and nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def check_repo_id(repo_id: str) -> str:
    """
    Raises:
        HubError: If it is no `user/name`.
    """
    repo_id = str(repo_id or "").strip()
    if not REPO_ID.fullmatch(repo_id):
        raise HubError(f"A repository is named user/name, such as me/red-mushroom; got {repo_id!r}.")
    return repo_id


def push_folder(
    repo_id: str,
    write_files: Callable[[Path], None],
    *,
    private: bool,
    token: str | None,
    endpoint: str | None,
    overwrite: bool = True,
) -> str:
    """Create a model repository and upload what `write_files` writes into an empty folder; returns its address.

    Raises:
        HubError: If the Hub refuses, or the repository holds something and must not be overwritten. One that is empty,
            such as an upload leaves that failed, is filled.
    """
    api = HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory() as folder, telling(repo_id):
        write_files(Path(folder))
        url = api.create_repo(check_repo_id(repo_id), private=private, exist_ok=True)
        if not overwrite:
            _check_empty(api, repo_id, private)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add a HiFA asset")
    return str(url)


def _check_empty(api: HfApi, repo_id: str, private: bool) -> None:
    """
    Raises:
        HubError: If somebody's files are there, or everybody could see what is to be private.
    """
    info = api.repo_info(repo_id)
    if {file.rfilename for file in info.siblings} - {".gitattributes"}:
        raise HubError(f"{repo_id} is there already. Choose another name; nothing was overwritten.")
    _check_private(info, repo_id, private)


def _check_private(info: ModelInfo | DatasetInfo, repo_id: str, private: bool) -> None:
    if private and not info.private:
        raise HubError(f"{repo_id} is there already, and public. Choose another name, or push without Private.")


def add_mesh_row(
    repo_id: str,
    glb: Path,
    name: str,
    facts: dict[str, Any],
    *,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Append a mesh to a dataset, a `meshfolder` to `datasets`, made if it is not there; returns its address.

    Nothing that is there is replaced: a mesh is named after its contents too, and only a dataset without a card gets
    one. The commit is on top of the one that was read: if somebody adds a row meanwhile, the Hub refuses.

    Args:
        name: Of the mesh in the dataset, without suffix, before a few digits of its hash.
        facts: Columns of the row.

    Raises:
        HubError: If the Hub refuses, or everybody could see in the dataset what is to be private.
    """
    api = HfApi(endpoint=endpoint, token=token)
    name = f"{name}-{hashlib.sha256(glb.read_bytes()).hexdigest()[:8]}"
    with telling(repo_id):
        url = api.create_repo(check_repo_id(repo_id), repo_type="dataset", private=private, exist_ok=True)
        info = api.repo_info(repo_id, repo_type="dataset")
        _check_private(info, repo_id, private)
        rows = [row for row in _rows(api, repo_id) if row.get("file_name") != f"{name}.glb"]
        rows.append({"file_name": f"{name}.glb", **facts})
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        operations = [
            CommitOperationAdd(f"train/{name}.glb", glb),
            CommitOperationAdd(METADATA, lines.encode()),
        ]
        if "README.md" not in {file.rfilename for file in info.siblings}:
            operations.append(CommitOperationAdd("README.md", _dataset_card().encode()))
        message = f"Add {name}.glb"
        api.create_commit(repo_id, operations, commit_message=message, repo_type="dataset", parent_commit=info.sha)
    return str(url)


def _rows(api: HfApi, repo_id: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as cache:
        try:
            path = api.hf_hub_download(repo_id, METADATA, repo_type="dataset", cache_dir=cache)
        except EntryNotFoundError:
            return []
        return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


def _dataset_card() -> str:
    data = DatasetCardData(tags=["3d", "mesh", "hifa"], pretty_name="Meshes made with HiFA")
    text = f"---\n{data.to_yaml()}\n---\n\n# Meshes made with HiFA\n\nGLB files, each with prompt, seed and prior.\n"
    return str(DatasetCard(text))


class telling:
    """Errors of the Hub in words, without anything of the request.

    Args:
        repo_id: For the message.
    """

    def __init__(self, repo_id: str):
        self.repo_id = repo_id

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, HfHubHTTPError):
            raise HubError(_explained(error, self.repo_id)) from None
        if UNREACHABLE & {kind.__name__ for kind in type(error).__mro__}:
            raise HubError("The Hub cannot be reached from this server. Try again later.") from None


def _explained(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    reasons = {
        401: "The token is not valid. Make a new one with write access at hf.co/settings/tokens.",
        403: f"The token may not write to {repo_id}. Is the name before the slash yours, and may the token write?",
        404: f"There is no place for {repo_id}. Is the name before the slash yours?",
        409: f"{repo_id} is there already. Choose another name; nothing was overwritten.",
        412: f"Somebody else added to {repo_id} at the same moment. Try again.",
        429: "The Hub asks to wait: too many requests. Try again in a few minutes.",
    }
    return reasons.get(status, f"The Hub answered with an error ({status}). Try again later; the run is kept.")
