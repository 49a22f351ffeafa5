"""SyncDreamer on stock diffusers and transformers: consistent views of an object from one image."""

from .architecture import Architecture
from .cameras import ViewRing
from .consistency import consistency, input_agreement
from .pipeline_syncdreamer import SyncDreamerPipeline, SyncDreamerPipelineOutput, sheet
from .selection import best_of_seeds, sweep_elevation


__all__ = [
    "Architecture",
    "SyncDreamerPipeline",
    "SyncDreamerPipelineOutput",
    "ViewRing",
    "best_of_seeds",
    "consistency",
    "input_agreement",
    "sheet",
    "sweep_elevation",
]
