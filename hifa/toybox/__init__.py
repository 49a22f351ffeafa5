"""Toybox: a synthetic world of objects, and the models that were trained on the world."""

from pathlib import Path


# Name of the embedded prior in runs and assets. New weights get a new name, because a run cannot be resumed with other
# weights.
TOYBOX_NAME = "toybox-2"
TOYBOX = Path(__file__).parent / "weights"  # the embedded prior, in the layout of Stable Diffusion
MULTIVIEW_WEIGHTS = Path(__file__).parent / "multiview_weights"  # the embedded SyncDreamer
SURFACE_WEIGHTS = Path(__file__).parent / "surface_weights"  # the embedded model of normals and disparity
