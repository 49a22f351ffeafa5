"""Optional support for ZeroGPU. The `spaces` package is required on ZeroGPU only."""

import os
from collections.abc import Callable


def zero_gpu() -> Callable[..., Callable] | None:
    """Return `spaces.GPU` on a ZeroGPU Space, else `None`. Call this before any use of CUDA, as `spaces` requires."""
    if not os.environ.get("SPACES_ZERO_GPU"):
        return None
    import spaces  # pyright: ignore[reportMissingImports]

    return spaces.GPU
