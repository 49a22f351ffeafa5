"""ZeroGPU, where the app runs on it; elsewhere its package need not be installed."""

import os
from collections.abc import Callable


def zero_gpu() -> Callable[..., Callable] | None:
    """`spaces.GPU` on a ZeroGPU Space, else `None`. Call it before anything touches CUDA, which that package wants."""
    if not os.environ.get("SPACES_ZERO_GPU"):
        return None
    import spaces

    return spaces.GPU
