"""HiFA: text-to-3D by optimization of a radiance field against a 2D diffusion prior."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .asset import HiFAAsset
    from .cameras import Camera
    from .config import HiFAConfig
    from .multiview.hallucination import Photo
    from .optimization.run import HiFARun
    from .pipeline_hifa import HiFAPipeline
    from .pipeline_output import HiFAPipelineOutput
    from .priors.prompt_embeddings import PromptEmbeddings
    from .toybox import TOYBOX


__all__ = [
    "TOYBOX", "Camera", "HiFAAsset", "HiFAConfig", "HiFAPipeline", "HiFAPipelineOutput", "HiFARun", "Photo",
    "PromptEmbeddings",
]  # fmt: skip
__version__ = "0.2.0"

# Imported on first access, because torch, diffusers and transformers take seconds to import. The CLI prints its help
# and rejects wrong options before that.
_MODULES = {
    "HiFAAsset": "asset",
    "Camera": "cameras",
    "TOYBOX": "toybox",
    "HiFAConfig": "config",
    "HiFAPipeline": "pipeline_hifa",
    "HiFAPipelineOutput": "pipeline_output",
    "Photo": "multiview.hallucination",
    "PromptEmbeddings": "priors.prompt_embeddings",
    "HiFARun": "optimization.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
