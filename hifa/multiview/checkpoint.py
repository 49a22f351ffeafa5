"""The published checkpoint: where it is, and how it is read with little memory and without running anything."""

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn

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
    """The models of a published checkpoint file, or of its tensors as safetensors, in evaluation mode.

    Raises:
        ValueError: If the file holds something else.
    """
    published = read_tensors(path)
    # Buffers that no file holds, such as CLIP's position ids, are made for real.
    with init_empty_weights(include_buffers=False):
        models = build_models(architecture)
    load_published(models, published)
    return {name: model.eval() for name, model in models.items()}


def read_tensors(path: str | Path, key: str | None = "state_dict") -> dict[str, Tensor]:
    """The tensors of a checkpoint by their published names.

    The file is mapped into memory and only tensors are unpickled: weights are read when they are used.

    Args:
        key: What the tensors are stored under; `None` if the file holds nothing else.

    Raises:
        ValueError: If the file cannot be read, or holds something else.
    """
    safe = Path(path).suffix == ".safetensors"
    try:
        content = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # zip, pickle and safetensors each have their own for a damaged or a foreign file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{str(path)!r} is damaged or no checkpoint ({reason[0]}). Nothing in it was run.") from error
    if safe:
        return content
    tensors = content.get(key) if isinstance(content, dict) and key is not None else content
    if not isinstance(tensors, dict):
        raise ValueError(f"{str(path)!r} has no {key or 'tensors'!r}; it is another checkpoint.")
    others = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor) or value.is_sparse]
    if others:
        raise ValueError(f"{str(path)!r} has more than plain tensors: {', '.join(others[:3])}. Nothing in it was run.")
    return tensors
