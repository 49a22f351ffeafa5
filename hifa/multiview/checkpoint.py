"""Download and loading of the published checkpoint, with little memory and without running code from the file."""

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor

from .architecture import Architecture, build_models
from .conversion import load_published


# The author's copy (5.57 GB, float32), in the repository of a Space.
PUBLISHED = "spaces/liuyuan-pal/SyncDreamer/ckpt/syncdreamer-pretrain.ckpt"


def find_checkpoint(path_or_id: str | Path, **hub: Any) -> Path:
    """Return a local file, or download a file from the Hub into its cache.

    Args:
        path_or_id: A file, or `owner/name/path/in/the/repository.ckpt`; `spaces/` in front denotes a Space.
        hub: Arguments of `huggingface_hub.hf_hub_download`.

    Raises:
        ValueError: If `path_or_id` is not a file and does not have this form.
    """
    if Path(path_or_id).is_file():
        return Path(path_or_id)
    name = str(path_or_id)
    repo_type = "space" if name.startswith("spaces/") else "model"
    parts = name.removeprefix("spaces/").split("/", 2)
    if len(parts) < 3 or name.startswith(("/", ".")):
        raise ValueError(f"{name!r} is neither a file nor owner/name/path/to/file.ckpt on the Hub.")
    return Path(hf_hub_download("/".join(parts[:2]), parts[2], repo_type=repo_type, **hub))


def read_checkpoint(path: str | Path, architecture: Architecture | None = None) -> dict[str, Any]:
    """Load the models of a published checkpoint, or of its tensors as safetensors, in evaluation mode.

    Args:
        path: Checkpoint file.
        architecture: Sizes of the models; by default the published sizes.

    Returns:
        Models by their names in the pipeline.

    Raises:
        ValueError: If the file is not such a checkpoint.
    """
    published = read_tensors(path)
    # Buffers that are not in the file, such as CLIP's position IDs, are created with values.
    with init_empty_weights(include_buffers=False):
        models = build_models(architecture)
    load_published(models, published)
    return {name: model.eval() for name, model in models.items()}


def read_tensors(path: str | Path, key: str | None = "state_dict") -> dict[str, Tensor]:
    """Load the tensors of a checkpoint by their published names.

    The file is memory-mapped: weights are read when they are used. Only tensors are unpickled.

    Args:
        path: Checkpoint file.
        key: Key of the tensors; `None` if the file holds only the tensors.

    Returns:
        Tensors by name.

    Raises:
        ValueError: If the file cannot be parsed, or holds anything but plain tensors.
        OSError: If the file cannot be opened.
    """
    safe = Path(path).suffix == ".safetensors"
    try:
        content = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # zip, pickle and safetensors raise different errors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{str(path)!r} is damaged or not a checkpoint ({reason[0]}). No code was run.") from error
    if safe:
        return content
    tensors = content.get(key) if isinstance(content, dict) and key is not None else content
    if not isinstance(tensors, dict):
        raise ValueError(f"{str(path)!r} has no {key or 'tensors'!r}. Give a published checkpoint.")
    others = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor) or value.is_sparse]
    if others:
        raise ValueError(f"{str(path)!r} has more than plain tensors: {', '.join(others[:3])}. No code was run.")
    return tensors
