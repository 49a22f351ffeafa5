"""What visitors give: pictures, sheets and numbers, checked before any work."""

import random
import re
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image

from ..given_views import read_views
from ..pictures import PictureError, PreparedPicture, open_file, open_picture, prepare_picture
from .uploads import uploaded


MAX_UPLOAD = "25mb"
MAX_PIXELS = 40_000_000
MAX_SEED = 2**31 - 1  # a browser's numbers stay exact
MAX_PROMPT = 500
MATTE_SIZE = 512
MAX_SHEET_SIDE = 512


class PhotoInput(gr.Image):
    """A picture that arrives as the file it is: what is wrong with it is said in our words, not in Pillow's. The only
    component of the app that takes paths from a client, and it takes those of uploads."""

    def get_block_name(self) -> str:
        return "image"  # what the browser has a part for

    def preprocess(self, payload: Any) -> str | None:
        return None if payload is None or payload.path is None else uploaded(payload.path)


def read_photo(path: str | None, object_share: float) -> PreparedPicture:
    """The object of an uploaded picture, cut out and centred.

    Args:
        object_share: Of the frame that the longer side of the object takes, (0, 1].

    Raises:
        PictureError: If there is no picture or it cannot be used; the message says what to do.
    """
    if path is None:
        raise PictureError("There is no picture yet. Upload a PNG or JPEG of one object.")
    picture = open_within_limits(path)
    return prepare_picture(picture, MATTE_SIZE, max(1, round(MATTE_SIZE * object_share)))


def read_sheet(path: str) -> PIL.Image.Image:
    """An uploaded sheet of sixteen views, checked, of at most `MAX_SHEET_SIDE` pixels a view.

    Raises:
        ValueError: If it is no sheet.
    """
    sheet = open_within_limits(path)
    sheet = sheet.convert("RGBA" if "A" in sheet.getbands() or "transparency" in sheet.info else "RGB")
    read_views(sheet, 1.0)
    if sheet.height > MAX_SHEET_SIDE:
        sheet = sheet.resize((sheet.width // sheet.height * MAX_SHEET_SIDE, MAX_SHEET_SIDE))
    return sheet


def open_within_limits(path: str) -> PIL.Image.Image:
    """
    Raises:
        PictureError: If it is no picture or has too many pixels.
    """
    try:
        with open_file(path) as image:
            width, height = image.size
    except PIL.Image.DecompressionBombError as error:
        raise PictureError(f"The picture is too large ({error}). Reduce it to {MAX_PIXELS:,} pixels.") from error
    except FileNotFoundError as error:
        raise PictureError("The picture was cleaned up in the meantime. Upload it again.") from error
    except (OSError, SyntaxError) as error:
        raise PictureError(f"{Path(path).name!r} is no picture that can be read. Give a PNG or JPEG.") from error
    if width * height > MAX_PIXELS:
        raise PictureError(f"The picture has {width}x{height} pixels; {MAX_PIXELS:,} in all are the limit. Reduce it.")
    return open_picture(path)


def choose_seed(seed: float | None, randomise: bool) -> int:
    """The seed to use, which is shown back.

    Raises:
        ValueError: If it is out of range.
    """
    if randomise or seed is None:
        return random.randrange(MAX_SEED + 1)
    if not 0 <= seed <= MAX_SEED or int(seed) != seed:
        raise ValueError(f"The seed must be a whole number from 0 to {MAX_SEED:,}, got {seed:g}.")
    return int(seed)


def one_line(prompt: Any) -> str:
    """A prompt without line breaks and double spaces.

    Raises:
        ValueError: If it is too long.
    """
    prompt = re.sub(r"\s+", " ", str(prompt or "")).strip()
    if len(prompt) > MAX_PROMPT:
        raise ValueError(f"The prompt has {len(prompt)} characters; {MAX_PROMPT} are the limit. Shorten it.")
    return prompt
