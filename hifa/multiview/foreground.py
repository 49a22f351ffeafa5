"""What belongs to the object in an opaque view on white."""

import numpy as np
from scipy import ndimage


WHITE_LEVEL = 0.95  # a pixel with a channel below this belongs to the object
# A region of white inside of the object is a hole only if it is larger than what a highlight or an eye covers, and as
# white as the background. Of the regions of that size on four sheets of SyncDreamer's, the holes (through the handle
# of a teapot, between a dragon's legs) have a median of 250 to 253 of 255, the white parts of the dragon and of a
# clownfish 244 to 248.
HOLE_SHARE, HOLE_PIXELS = 0.01, 8  # of the object's pixels, holes included, and in a small picture pixels
HOLE_LEVEL = 250 / 255  # that half of the pixels of a hole reach in every channel


def foreground(colour: np.ndarray) -> np.ndarray:
    """Mask `(H, W)` bool of the object in `(H, W, 3)` in [0, 1]: what is not white, and what white is part of it.

    White that hangs together with the border is background. White inside of the object is a highlight, an eye or a
    label, which belong to it, unless it is a large region of pure background: what is seen through a donut or the
    handle of a mug.
    """
    darkest = colour.min(-1)
    solid = ndimage.binary_fill_holes(darkest < WHITE_LEVEL)
    regions, count = ndimage.label(solid & (darkest >= WHITE_LEVEL))
    if not count:
        return solid
    index = np.arange(1, count + 1)
    sizes, levels = ndimage.sum_labels(solid, regions, index), ndimage.median(darkest, regions, index)
    # To the half of an 8-bit step, since the same level is rounded otherwise as float32.
    smallest = max(HOLE_SHARE * solid.sum(), HOLE_PIXELS)
    holes = index[(sizes > smallest) & (levels > HOLE_LEVEL - 0.5 / 255)]
    return solid & ~np.isin(regions, holes)
