"""Validation of file paths from clients. Only paths of uploaded files are accepted."""

import os
import stat
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder


# The message must not depend on whether the path exists, to reveal nothing about other files on the server.
REFUSED = "This picture was not uploaded here, or was deleted. Upload it again."


def uploaded(path: Any) -> str:
    """Return the real path of an uploaded file.

    Gradio checks only the paths of payloads that are marked as files, and the payload of a picture need not be marked.
    Paths outside of the upload folder are never accessed: a device could block, and the response time could reveal
    whether a file exists.

    Args:
        path: Path as received from a client; may be of any type.

    Raises:
        gr.Error: If the path is not a regular file below the upload folder.
    """
    folder = Path(get_upload_folder())
    places = {Path(os.path.abspath(folder)), folder.resolve()}  # noqa: PTH100
    try:
        named = Path(os.path.abspath(path))  # noqa: PTH100  `resolve` would access the path
        if any(place in named.parents for place in places):
            real = named.resolve(strict=True)  # a link may point outside of the folder
            if folder.resolve() in real.parents and stat.S_ISREG(os.lstat(real).st_mode):
                return str(real)
    except (OSError, ValueError, TypeError, RuntimeError):  # RuntimeError: circular links
        pass
    raise gr.Error(REFUSED, duration=20, print_exception=False)
