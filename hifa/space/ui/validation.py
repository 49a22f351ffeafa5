"""Validation of user input: pictures, sheets of views, seeds and prompts."""

import random
import re
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image

from ...multiview.given_views import read_views
from ...photo_cutout import PictureError, PreparedPicture, open_file, open_picture, prepare_picture
from .uploads import uploaded


MAX_UPLOAD = "25mb"
MAX_PIXELS = 40_000_000
MAX_SEED = 2**31 - 1  # integers up to this value are exact in JavaScript
MAX_PROMPT = 500
MATTE_SIZE = 512
MAX_SHEET_SIDE = 512


class PhotoInput(gr.Image):
    """Image component that passes on the path of the uploaded file without decoding the file.

    The app decodes the file itself, so that users get the app's error messages instead of Pillow's. This is the only
    component of the app that accepts paths from a client. It accepts paths of uploads only.
    """

    def get_block_name(self) -> str:
        """Return the name of the frontend component."""
        return "image"

    def preprocess(self, payload: Any) -> str | None:
        """Return the path of the uploaded file; `None` if nothing was uploaded."""
        return None if payload is None or payload.path is None else uploaded(payload.path)


def read_photo(path: str | None, object_share: float) -> PreparedPicture:
    """Read an uploaded picture, cut out the object and center it.

    Args:
        path: Path of the picture, or `None` if nothing was uploaded.
        object_share: Longer side of the object as a fraction of the frame, in (0, 1].

    Returns:
        The prepared picture, `MATTE_SIZE` pixels wide and high.

    Raises:
        PictureError: If there is no picture or the picture cannot be used.
    """
    if path is None:
        raise PictureError("There is no picture yet. Upload a PNG or JPEG of one object.")
    picture = open_within_limits(path)
    return prepare_picture(picture, MATTE_SIZE, max(1, round(MATTE_SIZE * object_share)))


def read_sheet(path: str) -> PIL.Image.Image:
    """Read and check an uploaded sheet of sixteen views.

    Args:
        path: Path of the sheet.

    Returns:
        The sheet, RGB or RGBA, reduced to at most `MAX_SHEET_SIDE` pixels per side of a view.

    Raises:
        PictureError: If the file cannot be read as a picture.
        ValueError: If the picture is not a sheet of sixteen views.
    """
    sheet = open_within_limits(path)
    sheet = sheet.convert("RGBA" if "A" in sheet.getbands() or "transparency" in sheet.info else "RGB")
    read_views(sheet, 1.0)
    if sheet.height > MAX_SHEET_SIDE:
        sheet = sheet.resize((sheet.width // sheet.height * MAX_SHEET_SIDE, MAX_SHEET_SIDE))
    return sheet


def open_within_limits(path: str) -> PIL.Image.Image:
    """Open a picture after checking its format and its number of pixels.

    Args:
        path: Path of the picture.

    Returns:
        The decoded picture.

    Raises:
        PictureError: If the file is not a picture or has more than `MAX_PIXELS` pixels.
    """
    try:
        with open_file(path) as image:
            width, height = image.size
    except PIL.Image.DecompressionBombError as error:
        raise PictureError(f"The picture is too large ({error}). Reduce it to {MAX_PIXELS:,} pixels.") from error
    except FileNotFoundError as error:
        raise PictureError("The uploaded picture has been deleted from the server. Upload it again.") from error
    except (OSError, SyntaxError) as error:
        raise PictureError(f"{Path(path).name!r} cannot be read as a picture. Upload a PNG or JPEG.") from error
    if width * height > MAX_PIXELS:
        raise PictureError(f"The picture has {width}x{height} pixels. The limit is {MAX_PIXELS:,}. Reduce it.")
    return open_picture(path)


def choose_seed(seed: float | None, randomize: bool) -> int:
    """Return the seed of a new run.

    Args:
        seed: Seed from the page; `None` for a random seed.
        randomize: Draw a random seed in any case.

    Returns:
        A seed in [0, `MAX_SEED`].

    Raises:
        ValueError: If the seed is not an integer or is out of range.
    """
    if randomize or seed is None:
        return random.randrange(MAX_SEED + 1)
    if not 0 <= seed <= MAX_SEED or int(seed) != seed:
        raise ValueError(f"The seed must be a whole number from 0 to {MAX_SEED:,}, got {seed:g}.")
    return int(seed)


def one_line(prompt: Any) -> str:
    """Replace each run of whitespace in a prompt, including line breaks, by one space.

    Raises:
        ValueError: If the prompt is longer than `MAX_PROMPT` characters.
    """
    prompt = re.sub(r"\s+", " ", str(prompt or "")).strip()
    if len(prompt) > MAX_PROMPT:
        raise ValueError(f"The prompt has {len(prompt)} characters. The limit is {MAX_PROMPT}. Shorten it.")
    return prompt
