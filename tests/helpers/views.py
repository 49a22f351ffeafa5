"""Small pictures and views of objects."""

import numpy as np
import PIL.Image
import PIL.ImageDraw


def disc(size: int = 32, color=(200, 30, 20), radius: float = 0.3, alpha: bool = True) -> PIL.Image.Image:
    """Draw a disc in the middle, on white; `radius` in image widths."""
    axis = (np.arange(size) + 0.5) / size - 0.5
    inside = axis[:, None] ** 2 + axis**2 < radius**2
    rgb = np.where(inside[..., None], color, 255).astype(np.uint8)
    return PIL.Image.fromarray(np.dstack([rgb, np.where(inside, 255, 0).astype(np.uint8)]) if alpha else rgb)


def shades(count: int = 16, **options) -> list[PIL.Image.Image]:
    return [disc(color=(10 * index, 30, 20), **options) for index in range(count)]


def picture(size=(40, 20), box=(10, 5, 29, 14), color=(255, 0, 0, 255)) -> PIL.Image.Image:
    """Draw a rectangle, both corners included, on a transparent background."""
    image = PIL.Image.new("RGBA", size, 0)
    PIL.ImageDraw.Draw(image).rectangle(box, fill=color)
    return image
