"""Full-size models as published, without weights: their real classes on the meta device.

`published/*.json` lists the class and configuration of each component, the size of its file where known, and the
sources.
"""

import json
from pathlib import Path

import diffusers
import torch
import transformers

from hifa import HiFAPipeline


FOLDER = Path(__file__).with_name("published")
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def read_parts(name: str) -> dict[str, dict]:
    """Return the components of one of `NAMES`: `class`, `config`, and `file` where its size is known."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["components"]


def build_part(part: dict):
    """Build a component of `read_parts`, without memory for its weights."""
    library, kind = part["class"]
    cls = getattr(LIBRARIES[library], kind)
    if not issubclass(cls, torch.nn.Module):  # a scheduler, which needs real values
        return cls.from_config(part["config"])
    with torch.device("meta"):
        if library == "transformers":
            return cls(cls.config_class(**part["config"])).eval()
        return cls.from_config(part["config"]).eval()


def build_pipeline(name: str) -> HiFAPipeline:
    """Build the pipeline of one of `NAMES`, without tokenizers."""
    components = {key: build_part(part) for key, part in read_parts(name).items()}
    return HiFAPipeline(**{"vae": None, "tokenizer": None} | components)
