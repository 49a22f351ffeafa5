"""HiFA: text to 3D by optimising a radiance field against a 2D diffusion prior."""

from .asset import HiFAAsset
from .cameras import Camera
from .config import HiFAConfig
from .pipeline_hifa import TOYBOX, HiFAPipeline, HiFAPipelineOutput
from .run import HiFARun


__all__ = ["TOYBOX", "Camera", "HiFAAsset", "HiFAConfig", "HiFAPipeline", "HiFAPipelineOutput", "HiFARun"]
__version__ = "0.1.0"
