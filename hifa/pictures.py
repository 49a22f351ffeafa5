"""From any picture file to a cut-out object, centred in a square, which is what a multi-view model is given.

    open_picture -> as_rgba -> cut_out -> frame

`prepare_picture` does all of it and says what it found.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from scipy import ndimage


MAX_PIXELS = 100_000_000  # decoded, that is 0.4 GB; more is refused before it is decoded
MIN_SIDE = 8
WORKING_SIDE = 2048  # larger pictures are reduced first: no model sees more
FAINT_ALPHA = 12  # of 255: what nobody sees, but machines leave all over a cut-out
NEAR_WHITE = 235  # a pixel with all channels above this may be background
TRANSPARENT_SHARE = 0.005  # of a cut-out, at least; a few pixels of a photo may be transparent by an accident
WHITE_BORDER_SHARE = 0.6  # of the border has to be near white; an object may stand on its lower edge
FEW_PIXELS = 32
# What people have pictures in. Pillow has decoders of many more formats, which strangers need not reach.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
LANCZOS = PIL.Image.Resampling.LANCZOS


class PictureError(ValueError):
    """A picture that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class PreparedPicture:
    """An object, ready for a multi-view model.

    Args:
        image: RGBA, square, the object in the middle.
        background: How it was told from the object: `"alpha"`, `"white"` or `"rembg"`.
        warnings: What may spoil the result, one sentence each; empty if nothing.
    """

    image: PIL.Image.Image
    background: str
    warnings: tuple[str, ...] = ()

    def preview(self) -> PIL.Image.Image:
        """RGB on white: what the model sees."""
        white = PIL.Image.new("RGBA", self.image.size, "white")
        return PIL.Image.alpha_composite(white, self.image).convert("RGB")


def prepare_picture(
    picture: PIL.Image.Image | str | Path,
    size: int = 256,
    object_size: int | None = None,
    faint_alpha: int = FAINT_ALPHA,
) -> PreparedPicture:
    """Cut the object out of a picture and centre it in a square.

    A cut-out, with a transparent background, is used as it is. An opaque picture has its background removed: a plain
    white one here, any other by rembg if that is installed.

    Args:
        picture: PIL image of any mode, or a path.
        size: Height and width of the result, pixels.
        object_size: Longer side of the object in it, pixels; without it 200 of 256, as SyncDreamer's examples.
        faint_alpha: Alpha from 0 to 255 below which a pixel is background.

    Raises:
        PictureError: If it cannot be read, is too large or too small, or shows no object.
        ValueError: For an object size outside of [1, size].
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
            f"The picture shows no object: its greatest alpha is {alpha.max()} of 255 after removing the background "
            f"({background}). Give a picture of one object, or cut it out by hand."
        )
    cut.putalpha(PIL.Image.fromarray(solid))
    return PreparedPicture(frame(cut, size, object_size), background, tuple(_warnings(solid)))


def open_picture(picture: PIL.Image.Image | str | Path) -> PIL.Image.Image:
    """Decode a picture, upright, the first frame of an animation.

    Raises:
        PictureError: If it is not a picture, damaged, too large or too small.
    """
    try:
        image = picture if isinstance(picture, PIL.Image.Image) else open_file(picture)
        # Only the header is read so far: a decompression bomb is refused before it goes off.
        if image.width * image.height > MAX_PIXELS:
            raise PictureError(
                f"The picture has {image.width}x{image.height} pixels; over {MAX_PIXELS:,} are refused. Reduce it."
            )
        if min(image.size) < MIN_SIDE:
            raise PictureError(f"The picture has {image.width}x{image.height} pixels; give one of 256x256 or more.")
        upright = PIL.ImageOps.exif_transpose(image)
    except PIL.Image.DecompressionBombError as error:
        raise PictureError(f"The picture is too large: {error} Reduce it.") from error
    except (OSError, AttributeError, SyntaxError) as error:  # SyntaxError: Pillow's for a broken PNG
        # The name alone: a visitor of the app need not know where its server keeps uploads.
        name = repr(Path(picture).name) if isinstance(picture, str | Path) else f"a {type(picture).__name__}"
        raise PictureError(f"Cannot read {name} as a picture ({error}). Give a PNG or JPEG.") from error
    return upright


def open_file(path: str | Path) -> PIL.Image.Image:
    """A picture file by one of `FORMATS`, those of them that this Pillow can read; only its header is read so far.

    Raises:
        OSError: If it is none of them.
        PIL.Image.DecompressionBombError: If it has far too many pixels.
    """
    PIL.Image.init()
    return PIL.Image.open(path, formats=[name for name in FORMATS if name in PIL.Image.OPEN])


def as_rgba(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any mode of Pillow as RGBA with 8 bits a channel, reduced to `WORKING_SIDE`; values beyond are scaled, not cut.

    Raises:
        PictureError: For values that are not finite.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    # Palettes may carry transparency in their entries, RGB and gray as one colour: `convert` knows all three.
    via = {"La": "LA", "LAB": "RGB"}.get(image.mode)  # without which alpha is lost
    rgba = (image.convert(via) if via else image).convert("RGBA")
    if max(rgba.size) > WORKING_SIDE:
        rgba.thumbnail((WORKING_SIDE, WORKING_SIDE), LANCZOS)
    return rgba


def _eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Gray with 16 or 32 bits or floating point. Numbers with 32 bits are in [0, 255], or in [0, 65535] if any exceeds
    255; floats are in [0, 1], or in [0, 255] if any exceeds 1."""
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise PictureError("The picture has values that are NaN or infinite. Save it as a PNG.")
    full = {"I": 65535 if values.max() > 255 else 255, "F": 255 if values.max() > 1 else 1}.get(image.mode, 65535)
    return PIL.Image.fromarray((values / full * 255).round().clip(0, 255).astype(np.uint8))


def cut_out(rgba: PIL.Image.Image) -> tuple[PIL.Image.Image, str]:
    """The object on a transparent background, and how it was found: `"alpha"`, `"white"` or `"rembg"`.

    Raises:
        PictureError: If the picture is not cut out, its background is not white, and rembg is not installed.
    """
    if (np.asarray(rgba.getchannel("A")) < 128).mean() > TRANSPARENT_SHARE:
        return rgba, "alpha"
    background = white_background(np.asarray(rgba.convert("RGB")))
    if background is not None:
        cut = rgba.copy()
        cut.putalpha(PIL.Image.fromarray(np.where(background, 0, 255).astype(np.uint8)))
        return cut, "white"
    try:
        import rembg
    except ImportError as error:
        raise PictureError(
            "The picture is not cut out and its background is not plain white. Install rembg with "
            "pip install 'hifa[background]', or give a PNG with a transparent background."
        ) from error
    return rembg.remove(rgba.convert("RGB")).convert("RGBA"), "rembg"


def white_background(rgb: np.ndarray) -> np.ndarray | None:
    """Mask `(H, W)` of a plain near-white background in `(H, W, 3)` uint8, or `None` if there is none.

    It is what is near white and hangs together with the border: white parts of the object inside of it stay. The mask
    is hard; the pixels along the edge of the object keep a share of white, which does not show, since all that follows
    is on white too.
    """
    near_white = rgb.min(-1) > NEAR_WHITE
    border = np.zeros_like(near_white)
    border[[0, -1], :] = border[:, [0, -1]] = True
    if near_white[border].mean() < WHITE_BORDER_SHARE:
        return None
    pieces, _ = ndimage.label(near_white)
    outside = np.unique(pieces[border & near_white])
    return np.isin(pieces, outside[outside > 0])


def frame(cut: PIL.Image.Image, size: int, object_size: int) -> PIL.Image.Image:
    """Crop to what is not transparent, scale its longer side to `object_size` and centre it in `size` x `size`."""
    cut = cut.crop(cut.getchannel("A").getbbox())
    scale = object_size / max(cut.size)
    width, height = (max(1, round(scale * side)) for side in cut.size)
    square = PIL.Image.new("RGBA", (size, size), 0)
    square.paste(cut.resize((width, height), LANCZOS), ((size - width) // 2, (size - height) // 2))
    return square


def _warnings(alpha: np.ndarray) -> list[str]:
    """What an observant person would say about a mask `(H, W)`."""
    found = []
    edges = {"top": alpha[0], "bottom": alpha[-1], "left": alpha[:, 0], "right": alpha[:, -1]}
    touched = [name for name, edge in edges.items() if edge.any()]
    if touched:
        found.append(f"The object touches the {' and '.join(touched)} of the picture: what is cut off is missing.")
    rows, columns = np.nonzero(alpha)
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    if max(height, width) < FEW_PIXELS:
        found.append(f"The object has only {width}x{height} pixels: expect it to be blurred.")
    return found
