"""The card of an asset, and its way to the Hub."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData


def model_card(facts: dict[str, Any]) -> str:
    """README of an asset: what it is, what made it, how to load it. `facts` as in `HiFAAsset`."""
    views = facts.get("given_views")
    prompt = " ".join(str(facts.get("prompt", "")).split()) or ("from pictures" if views else "no prompt")
    data = ModelCardData(library_name="hifa", pipeline_tag="text-to-3d", tags=["text-to-3d", "nerf", "hifa"])
    config = facts.get("config", {})
    text = f"""---
{data.to_yaml()}
---

# {prompt}

A 3D asset made with HiFA ({"from given views" if views else "text-to-3D by score distillation"}).

| | |
|---|---|
| prompt | {prompt} |
| prior | {Path(str(facts.get("prior", "unknown") or "none")).name} |
| given views | {views or "none"} |
| seed | {facts.get("seed", "unknown")} |
| steps | {facts.get("steps", "unknown")} of {config.get("num_inference_steps", "unknown")} |
| guidance scale | {config.get("guidance_scale", "unknown")} |
| time | {facts.get("seconds", "unknown")} s |

```python
from hifa import HiFAAsset

asset = HiFAAsset.from_pretrained("this/repository")
asset.export_mesh("mesh.glb")
asset.render(asset.camera(azimuth_deg=30)).colour  # (256, 256, 3)
```
"""
    return str(ModelCard(text))


def push_folder(
    repo_id: str, write_files: Callable[[Path], None], *, private: bool, token: str | None, endpoint: str | None
) -> str:
    """Create a model repository and upload what `write_files` writes into an empty folder; returns its address."""
    api = HfApi(endpoint=endpoint, token=token)
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add a HiFA asset")
    return str(url)
