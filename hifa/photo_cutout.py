"""Preparation of a picture for a multi-view model: background removal, and centering of the object in a square.

    open_picture -> as_rgba -> cut_out -> frame

`prepare_picture` does all steps and collects warnings.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from scipy import ndimage


MAX_PIXELS = 100_000_000  # 0.4 GB when decoded; larger pictures are rejected before decoding
MIN_SIDE = 8
WORKING_SIDE = 2048  # larger pictures are downscaled first, because no model has a larger input
FAINT_ALPHA = 12  # of 255; lower values are invisible residue of background removal
NEAR_WHITE = 235  # a pixel with all channels above this value may be background
TRANSPARENT_SHARE = 0.005  # smallest transparent fraction of a cutout; a photo may have a few transparent pixels
WHITE_BORDER_SHARE = 0.6  # smallest near-white fraction of the border; below 1, because objects may touch an edge
FEW_PIXELS = 32
# Common picture formats. Pillow decodes many more formats, which untrusted uploads must not reach.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
LANCZOS = PIL.Image.Resampling.LANCZOS


class PictureError(ValueError):
    """Error for a picture that cannot be used. The message has the reason and a remedy."""


@dataclass(frozen=True)
class PreparedPicture:
    """Picture of an object without background, ready for a multi-view model.

    Args:
        image: Square RGBA image with the object in the center.
        background: How the background was detected: `"alpha"`, `"white"` or `"rembg"`.
        warnings: Warnings about the quality of the picture, one sentence each; may be empty.
    """

    image: PIL.Image.Image
    background: str
    warnings: tuple[str, ...] = ()

    def preview(self) -> PIL.Image.Image:
        """Return the picture in RGB on white, as the multi-view model receives the picture."""
        white = PIL.Image.new("RGBA", self.image.size, "white")
        return PIL.Image.alpha_composite(white, self.image).convert("RGB")


def prepare_picture(
    picture: PIL.Image.Image | str | Path,
    size: int = 256,
    object_size: int | None = None,
    faint_alpha: int = FAINT_ALPHA,
) -> PreparedPicture:
    """Remove the background of a picture and center the object in a square.

    A transparent background is kept as is. In an opaque picture, this function removes a plain white background. Any
    other background is removed by rembg, if rembg is installed.

    Args:
        picture: PIL image of any mode, or a path.
        size: Height and width of the result, pixels.
        object_size: Longer side of the object in the result, pixels. Defaults to 200/256 of `size`, as in
            SyncDreamer's examples.
        faint_alpha: Alpha from 0 to 255 below which a pixel is background.

    Returns:
        The prepared picture.

    Raises:
        PictureError: If the picture cannot be read, is too large or too small, or shows no object.
        ValueError: If `object_size` is outside of [1, size].
    """
    object_size = round(size * 200 / 256) if object_size is None else object_size
    if not 1 <= object_size <= size:
        raise ValueError(f"object_size must be from 1 to {size} pixels, got {object_size}.")
    rgba = as_rgba(open_picture(picture))
    cut, background = cut_out(rgba)
    alpha = np.asarray(cut.getchannel("A"))
    solid = np.where(alpha < faint_alpha, 0, alpha).astype(np.uint8)
    if not solid.any():
        raise PictureError(
            f"The picture shows no object: its largest alpha is {alpha.max()} of 255 after background removal "
            f"({background}). Use a picture of one object, or remove the background by hand."
        )
    cut.putalpha(PIL.Image.fromarray(solid))
    return PreparedPicture(frame(cut, size, object_size), background, tuple(_warnings(solid)))


def open_picture(picture: PIL.Image.Image | str | Path) -> PIL.Image.Image:
    """Decode a picture and apply its EXIF orientation. Only the first frame of an animation is decoded.

    Raises:
        PictureError: If the file is no picture or is damaged, or if the picture is too large or too small.
    """
    try:
        image = picture if isinstance(picture, PIL.Image.Image) else open_file(picture)
        # Only the header has been read, so that a decompression bomb is rejected before decoding.
        if image.width * image.height > MAX_PIXELS:
            raise PictureError(
                f"The picture has {image.width}x{image.height} pixels, but the limit is {MAX_PIXELS:,}. Downscale it."
            )
        if min(image.size) < MIN_SIDE:
            raise PictureError(
                f"The picture has only {image.width}x{image.height} pixels. Use a picture of 256x256 or more."
            )
        upright = PIL.ImageOps.exif_transpose(image)
    except PIL.Image.DecompressionBombError as error:
        raise PictureError(f"The picture is too large: {error} Downscale it.") from error
    except (OSError, AttributeError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG.
        # Only the file name, so that the app does not reveal the server's upload folder.
        name = repr(Path(picture).name) if isinstance(picture, str | Path) else f"a {type(picture).__name__}"
        raise PictureError(f"Cannot read {name} as a picture ({error}). Use a PNG or JPEG.") from error
    return upright


def open_file(path: str | Path) -> PIL.Image.Image:
    """Open a picture file in one of the `FORMATS` that the installed Pillow supports. Only the header is read.

    Raises:
        OSError: If the file has another format.
        PIL.Image.DecompressionBombError: If the picture has far too many pixels.
    """
    PIL.Image.init()
    return PIL.Image.open(path, formats=[name for name in FORMATS if name in PIL.Image.OPEN])


def as_rgba(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert a picture of any Pillow mode to RGBA with 8 bits per channel, downscaled to `WORKING_SIDE`.

    Values of more than 8 bits are scaled, not clipped.

    Raises:
        PictureError: If a value is not finite.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    # `convert` handles palettes with transparent entries, and RGB and gray images with a transparent color.
    via = {"La": "LA", "LAB": "RGB"}.get(image.mode)  # A direct conversion would lose alpha.
    rgba = (image.convert(via) if via else image).convert("RGBA")
    if max(rgba.size) > WORKING_SIDE:
        rgba.thumbnail((WORKING_SIDE, WORKING_SIDE), LANCZOS)
    return rgba


def _eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert a gray image of 16 or 32 bits or floats to 8 bits.

    The full range of 32-bit integers is taken to be [0, 255], or [0, 65535] if a value exceeds 255. The full range of
    floats is taken to be [0, 1], or [0, 255] if a value exceeds 1.
    """
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise PictureError("The picture has NaN or infinite values. Save the picture as a PNG.")
    full = {"I": 65535 if values.max() > 255 else 255, "F": 255 if values.max() > 1 else 1}.get(image.mode, 65535)
    return PIL.Image.fromarray((values / full * 255).round().clip(0, 255).astype(np.uint8))


def cut_out(rgba: PIL.Image.Image) -> tuple[PIL.Image.Image, str]:
    """Remove the background of a picture.

    Returns:
        The object on a transparent background, and how the background was detected: `"alpha"`, `"white"` or
        `"rembg"`.

    Raises:
        PictureError: If the background is neither transparent nor plain white, and rembg is not installed.
    """
    if (np.asarray(rgba.getchannel("A")) < 128).mean() > TRANSPARENT_SHARE:
        return rgba, "alpha"
    background = white_background(np.asarray(rgba.convert("RGB")))
    if background is not None:
        cut = rgba.copy()
        cut.putalpha(PIL.Image.fromarray(np.where(background, 0, 255).astype(np.uint8)))
        return cut, "white"
    try:
        import rembg  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PictureError(
            "The background of the picture is neither transparent nor plain white. Install rembg with "
            "pip install 'hifa[background]', or use a PNG with a transparent background."
        ) from error
    return rembg.remove(rgba.convert("RGB")).convert("RGBA"), "rembg"


def white_background(rgb: np.ndarray) -> np.ndarray | None:
    """Detect a plain near-white background.

    The background consists of near-white pixels that are connected to the border, so that white parts inside of the
    object are kept. The mask is binary, so that pixels at the edge of the object keep some white. This white has no
    effect, because all further processing is on a white background.

    Args:
        rgb: `(H, W, 3)` uint8.

    Returns:
        Mask `(H, W)`, true on the background, or `None` without such a background.
    """
    near_white = rgb.min(-1) > NEAR_WHITE
    border = np.zeros_like(near_white)
    border[[0, -1], :] = border[:, [0, -1]] = True
    if near_white[border].mean() < WHITE_BORDER_SHARE:
        return None
    pieces, _ = ndimage.label(near_white)  # pyright: ignore[reportGeneralTypeIssues]
    outside = np.unique(pieces[border & near_white])
    return np.isin(pieces, outside[outside > 0])


def frame(cut: PIL.Image.Image, size: int, object_size: int) -> PIL.Image.Image:
    """Crop to the opaque part, scale its longer side to `object_size` and center it in `size` x `size` pixels."""
    cut = cut.crop(cut.getchannel("A").getbbox())
    scale = object_size / max(cut.size)
    width, height = (max(1, round(scale * side)) for side in cut.size)
    square = PIL.Image.new("RGBA", (size, size), 0)
    square.paste(cut.resize((width, height), LANCZOS), ((size - width) // 2, (size - height) // 2))
    return square


def _warnings(alpha: np.ndarray) -> list[str]:
    """Return warnings about an alpha mask `(H, W)`, for an object that touches the edge or has few pixels."""
    found = []
    edges = {"top": alpha[0], "bottom": alpha[-1], "left": alpha[:, 0], "right": alpha[:, -1]}
    touched = [name for name, edge in edges.items() if edge.any()]
    if touched:
        found.append(
            f"The object touches the {' and '.join(touched)} of the picture: parts outside of the picture are missing."
        )
    rows, columns = np.nonzero(alpha)
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    if max(height, width) < FEW_PIXELS:
        found.append(f"The object has only {width}x{height} pixels: the result will be blurred.")
    return found
