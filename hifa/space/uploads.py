"""Which paths of a visitor are taken: those of files that were uploaded here."""

import os
import stat
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder


# The same of a path that exists and of one that does not: what is on the server is no business of its visitors.
REFUSED = "The picture was not uploaded here, or was cleaned up in the meantime. Upload it again."


def uploaded(path: Any) -> str:
    """The real path of an uploaded file.

    Gradio checks only the paths of payloads that are marked as files, and a picture's need no mark. Nothing outside of
    the upload folder is looked at: a device could block, and a look that takes longer would tell that it exists.

    Args:
        path: As it came from a client.

    Raises:
        gr.Error: If it is no regular file below the upload folder.
    """
    folder = Path(get_upload_folder())
    places = {Path(os.path.abspath(folder)), folder.resolve()}
    try:
        named = Path(os.path.abspath(path))
        if any(place in named.parents for place in places):
            real = named.resolve(strict=True)  # links lead out again
            if folder.resolve() in real.parents and stat.S_ISREG(os.lstat(real).st_mode):
                return str(real)
    except (OSError, ValueError, TypeError, RuntimeError):  # RuntimeError: links in a circle
        pass
    raise gr.Error(REFUSED, duration=20, print_exception=False)
