"""Published full-size models without weights. The models have their real classes, on the meta device.

Each file in `published/` describes one model: the class and configuration of each component, the file size of each
component where known, and the sources.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from hifa import HiFAPipeline


FOLDER = Path(__file__).with_name("published")
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def read_parts(name: str) -> dict[str, dict]:
    """Return the components of a model in `NAMES`: `class`, `config`, and `file` if the file size is known."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["components"]


def build_part(part: dict) -> Any:
    """Build a component returned by `read_parts`, without memory for the weights."""
    library, kind = part["class"]
    cls = getattr(LIBRARIES[library], kind)
    if not issubclass(cls, torch.nn.Module):  # a scheduler needs real values
        return cls.from_config(part["config"])
    with torch.device("meta"):
        if library == "transformers":
            return cls(cls.config_class(**part["config"])).eval()  # pyright: ignore[reportAttributeAccessIssue]
        return cls.from_config(part["config"]).eval()  # pyright: ignore[reportAttributeAccessIssue]


def build_pipeline(name: str) -> HiFAPipeline:
    """Build the pipeline of a model in `NAMES`, without tokenizers."""
    components: dict[str, Any] = {"vae": None, "tokenizer": None}
    components |= {key: build_part(part) for key, part in read_parts(name).items()}
    return HiFAPipeline(**components)
