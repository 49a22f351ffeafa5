"""Error messages for users of the app: what happened and what to do. An error never discards a saved run."""

import errno
import logging
import re
from collections.abc import Iterator

import gradio as gr
import torch

from ...storage.run_folder import RunError


logger = logging.getLogger(__name__)
FOLDER = re.compile(r"(?<![\w:/.])/(?:[^\s/'\"]+/)+")  # absolute paths, but not URLs
KEPT = "The run is saved"
# Substring of the title or message of a ZeroGPU error (`spaces` 0.51), and the message for the user. The first match
# is used, so the order matters: "ZeroGPU quota exceeded" is also the title if no GPU is free or the visitor is not
# signed in.
ZERO_GPU = (
    ("no gpu was available", "No GPU was free within a minute. {kept}. Resume to enter the queue again."),
    ("gpu limit", "This Space gives GPU time to signed-in visitors only. {kept}. Sign in to Hugging Face and Resume."),
    ("aborted", "The GPU was taken away too early. {kept} up to the last checkpoint. Resume to continue."),
    ("illegal duration", "ZeroGPU refused the lease ({message}). {kept}. Resume, or start a run with fewer steps."),
    ("pending credits", "Other work of yours holds all of your GPU time. {kept}. Resume when that work is done."),
    ("expired zerogpu", "The page was open for too long. {kept}. Reload the page and Resume."),
    ("quota exceeded", "The GPU time of today is used up ({message}). {kept}. Resume when quota is available again."),
)


def explain(error: BaseException) -> str:
    """Return an error message for the user, one line long.

    Details that a user must not see, such as folders of the server, go to the log.
    """
    message = error.message if isinstance(error, gr.Error) else str(error)
    message = " ".join(str(message).split()).rstrip(".")
    if isinstance(error, gr.Error):
        said = f"{error.title} {message}".lower()
        for sign, text in ZERO_GPU:
            if sign in said:
                return text.format(message=message, kept=KEPT)
        return message + "."
    if isinstance(error, torch.OutOfMemoryError):
        return f"The GPU has too little memory for this run. {KEPT}. Resume later, or start with the preset Quick."
    if any(is_full_disk(cause) for cause in causes(error)):
        return "The disk of the server is full. The run is saved up to the last checkpoint. Resume later."
    if isinstance(error, RunError):  # The message names a folder of the server, so it goes to the log only.
        logger.error("Cannot read or write a run", exc_info=error)
        return "The server cannot read or write this run. Resume to try again, or start a new run."
    if isinstance(error, ValueError):
        return message + "."
    logger.error("Unexpected error", exc_info=error)
    message = without_folders(message)[:200]
    return f"An unexpected error occurred ({type(error).__name__}: {message}). {KEPT}. Resume to try again."


def without_folders(message: str) -> str:
    """Remove the folders of absolute paths from a message, because users must not see the server's file layout."""
    return FOLDER.sub("…/", message)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the chain of its explicit causes (`__cause__`)."""
    while error is not None:
        yield error
        error = error.__cause__


def is_full_disk(error: BaseException) -> bool:
    """Return whether an error means that the disk is full.

    safetensors raises its own exception without `errno`. Its message contains the system's error number.
    """
    return getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC})" in str(error)
