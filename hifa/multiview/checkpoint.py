"""The published checkpoint: where it is, and how it is read with little memory and without running anything."""

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download
from torch import nn

from .architecture import Architecture, build_models
from .conversion import load_published


# The author's own copy (5.57 GB, float32), in the repository of a Space.
PUBLISHED = "spaces/liuyuan-pal/SyncDreamer/ckpt/syncdreamer-pretrain.ckpt"


def find_checkpoint(path_or_id: str | Path, **hub: Any) -> Path:
    """A local file, or one that is downloaded from the hub and kept in its cache.

    Args:
        path_or_id: A file, or `owner/name/path/in/the/repository.ckpt`, with `spaces/` in front for a Space.
        hub: For `huggingface_hub.hf_hub_download`.

    Raises:
        ValueError: If it is neither.
    """
    if Path(path_or_id).is_file():
        return Path(path_or_id)
    name = str(path_or_id)
    repo_type = "space" if name.startswith("spaces/") else "model"
    parts = name.removeprefix("spaces/").split("/", 2)
    if len(parts) < 3 or name.startswith(("/", ".")):
        raise ValueError(f"{name!r} is neither a file nor owner/name/path/to/file.ckpt on the hub.")
    return Path(hf_hub_download("/".join(parts[:2]), parts[2], repo_type=repo_type, **hub))


def read_checkpoint(path: str | Path, architecture: Architecture | None = None) -> dict[str, nn.Module]:
    """The models of a published checkpoint file, in evaluation mode.

    The file is mapped into memory and only tensors are unpickled: weights are read when they are used.

    Raises:
        ValueError: If the file holds something else.
    """
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"{str(path)!r} has no 'state_dict'; it is not syncdreamer-pretrain.ckpt.")
    # Buffers that no file holds, such as CLIP's position ids, are made for real.
    with init_empty_weights(include_buffers=False):
        models = build_models(architecture)
    load_published(models, content["state_dict"])
    return {name: model.eval() for name, model in models.items()}
