"""Model card of an asset, and uploads to the Hub: to a model repository, and as a row of a dataset of meshes.

Uploads need only the scope `contribute-repos`: they create repositories and write to repositories that they created.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

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


# Licenses that can be selected for an asset, as Hub identifiers.
LICENSES = ("cc-by-4.0", "cc0-1.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "apache-2.0", "openrail", "other")
REPO_ID = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}")
METADATA = "train/metadata.jsonl"
# Class names of connection errors. Names do not depend on the HTTP library, which huggingface_hub has changed before.
UNREACHABLE = {"TransportError", "ConnectionError", "TimeoutException"}


class HubError(ValueError):
    """The Hub rejected a request. The message gives the reason and a remedy, and never contains a token."""


def model_card(
    metadata: dict[str, Any], repo_id: str | None = None, license: str | None = None, endpoint: str | None = None
) -> str:
    """Return the README of an asset, with its description, its metadata and code to load the asset.

    Args:
        metadata: Metadata as in `HiFAAsset`, and `prior_license` if the license is known.
        repo_id: Repository of the card, which also has a turntable, `front.png` and `mesh.glb`. `None` makes a card
            for a folder that contains only the asset, without links to these files.
        license: License of the asset, one of `LICENSES`.
        endpoint: URL of the Hub. The default is the public Hub.
    """
    views = metadata.get("given_views")
    prompt = " ".join(str(metadata.get("prompt", "")).split()) or ("from pictures" if views else "no prompt")
    prior = str(metadata.get("prior", "unknown") or "none")
    data = ModelCardData(
        library_name="hifa",
        license=license,
        pipeline_tag="image-to-3d" if views else "text-to-3d",
        tags=["text-to-3d", "nerf", "hifa"],
        base_model=prior if re.fullmatch(r"[\w.-]+/[\w.-]+", prior) and not Path(prior).exists() else None,
        widget=[{"text": prompt, "output": {"url": "front.png"}}] if repo_id else None,
    )
    config = metadata.get("config", {})
    video = ""
    if repo_id:
        turntable = f"{endpoint or constants.ENDPOINT}/{repo_id}/resolve/main/turntable.mp4"
        video = f'<video src="{turntable}" controls autoplay loop muted width="384"></video>\n\n'
    text = f"""---
{data.to_yaml()}
---

# {_escaped(prompt)}

{video}A 3D asset made with HiFA ({"image-to-3D from given views" if views else "text-to-3D by score distillation"}).

| | |
|---|---|
| prompt | {_escaped(prompt)} |
| negative prompt | {_escaped(metadata.get("negative_prompt", "")) or "none"} |
| prior | {_escaped(Path(prior).name)} |
| license of the prior | {_escaped(metadata.get("prior_license", "see the card of the prior"))} |
| given views | {views or "none"} |
| seed | {metadata.get("seed", "unknown")} |
| steps | {metadata.get("steps", "unknown")} of {config.get("num_inference_steps", "unknown")} |
| guidance scale | {config.get("guidance_scale", "unknown")} |
| denoising stride | {config.get("denoising_stride", "unknown")} |
| render size | {config.get("render_size", "unknown")} pixels |
| time | {metadata.get("seconds", "unknown")} s |

```bash
pip install -e .  # in a checkout of HiFA
```

```python
from hifa import HiFAAsset

asset = HiFAAsset.from_pretrained("{repo_id or "."}"){"" if repo_id else "  # this folder"}
asset.export_mesh("mesh.glb")
asset.render(asset.camera(azimuth_deg=30)).color  # (256, 256, 3)
```

GLB files have +Y up and the front along +Z. The asset was optimized against a 2D diffusion model, so different sides
of the object may look alike.
"""
    return str(ModelCard(text))


def _escaped(text: Any) -> str:
    """Escape text for Markdown, because a prompt may contain any characters."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def check_repo_id(repo_id: str) -> str:
    """Check a repository name and return the name without surrounding whitespace.

    Raises:
        HubError: If the name does not have the form `user/name`.
    """
    repo_id = str(repo_id or "").strip()
    if not REPO_ID.fullmatch(repo_id):
        raise HubError(f"A repository name must have the form user/name, such as me/red-mushroom, got {repo_id!r}.")
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
    """Create a model repository and upload the files that `write_files` writes to an empty folder.

    Args:
        repo_id: Repository name, `user/name`.
        write_files: Function that writes the files to a folder.
        private: Whether to create the repository as private.
        token: Token with write access.
        endpoint: URL of the Hub. The default is the public Hub.
        overwrite: Whether a repository with files may be overwritten. A repository without files, for
            example after a failed upload, is always filled.

    Returns:
        URL of the repository.

    Raises:
        HubError: If the Hub rejects the request, or if `overwrite` is false and the repository contains files or is
            public although it must be private.
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
    """Check that a repository contains no files and, if required, is private.

    Raises:
        HubError: If the repository contains files, or is public although it must be private.
    """
    info = cast(ModelInfo, api.repo_info(repo_id))
    if {file.rfilename for file in info.siblings or []} - {".gitattributes"}:
        raise HubError(f"{repo_id} already exists. Choose another name. Nothing was overwritten.")
    _check_private(info, repo_id, private)


def _check_private(info: ModelInfo | DatasetInfo, repo_id: str, private: bool) -> None:
    if private and not info.private:
        raise HubError(f"{repo_id} already exists and is public. Choose another name, or push without Private.")


def add_mesh_row(
    repo_id: str,
    glb: Path,
    name: str,
    metadata: dict[str, Any],
    *,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Append a mesh to a dataset in the `meshfolder` layout of `datasets`. Create the dataset if necessary.

    No existing mesh or card is replaced: file names of meshes contain a hash of the mesh, and a card is written only
    to a dataset without a card. The commit is based on the revision that was read. If another row is added in the
    meantime, the Hub rejects the commit.

    Args:
        repo_id: Name of the dataset, `user/name`.
        glb: GLB file of the mesh.
        name: Name of the mesh in the dataset, without suffix. The first digits of the hash are appended.
        metadata: Columns of the row.
        private: Whether the dataset must be private.
        token: Token with write access.
        endpoint: URL of the Hub. The default is the public Hub.

    Returns:
        URL of the dataset.

    Raises:
        HubError: If the Hub rejects the request, or the dataset is public although it must be private.
    """
    api = HfApi(endpoint=endpoint, token=token)
    name = f"{name}-{hashlib.sha256(glb.read_bytes()).hexdigest()[:8]}"
    with telling(repo_id):
        url = api.create_repo(check_repo_id(repo_id), repo_type="dataset", private=private, exist_ok=True)
        info = cast(DatasetInfo, api.repo_info(repo_id, repo_type="dataset"))
        _check_private(info, repo_id, private)
        rows = [row for row in _rows(api, repo_id) if row.get("file_name") != f"{name}.glb"]
        rows.append({"file_name": f"{name}.glb", **metadata})
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        operations = [
            CommitOperationAdd(f"train/{name}.glb", glb),
            CommitOperationAdd(METADATA, lines.encode()),
        ]
        if "README.md" not in {file.rfilename for file in info.siblings or []}:
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
        return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines() if line.strip()]


def _dataset_card() -> str:
    data = DatasetCardData(tags=["3d", "mesh", "hifa"], pretty_name="Meshes made with HiFA")
    text = f"---\n{data.to_yaml()}\n---\n\n# Meshes made with HiFA\n\nGLB files, each with prompt, seed and prior.\n"
    return str(DatasetCard(text))


class telling:
    """Context manager that turns errors of the Hub into `HubError`, without details of the request.

    Args:
        repo_id: Repository name in the message.
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
        401: "The token is not valid. Create a new token with write access at hf.co/settings/tokens.",
        403: f"The token may not write to {repo_id}. Check the name before the slash and the scopes of the token.",
        404: f"{repo_id} was not found and cannot be created. Check the name before the slash.",
        409: f"{repo_id} already exists. Choose another name. Nothing was overwritten.",
        412: f"Another upload changed {repo_id} at the same moment. Try again.",
        429: "The Hub received too many requests. Try again in a few minutes.",
    }
    return reasons.get(status, f"The Hub returned an error ({status}). Try again later. The run is kept.")
