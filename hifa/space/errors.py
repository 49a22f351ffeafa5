"""Errors in words for the user: what happened and what to do. What was computed is always kept."""

import errno
import logging
import re
from collections.abc import Iterator

import gradio as gr
import torch

from ..saved import RunError


logger = logging.getLogger(__name__)
FOLDER = re.compile(r"(?<![\w:/.])/(?:[^\s/'\"]+/)+")  # absolute paths, but no addresses
KEPT = "What was computed is kept"
# What tells ZeroGPU's errors apart, in title or message (`spaces` 0.51), and what to say. The first that fits counts:
# who is not signed in and who finds no GPU are told so under the title "ZeroGPU quota exceeded", too.
ZERO_GPU = (
    ("no gpu was available", "No GPU was free within a minute. {kept}: Resume to queue again."),
    ("gpu limit", "This Space gives GPU time to signed-in visitors only. {kept}: sign in to Hugging Face and Resume."),
    ("aborted", "The GPU was taken away before the lease was over. {kept} up to the last save: Resume goes on."),
    ("illegal duration", "The GPU refused a lease of this length ({message}). {kept}: Resume, or take fewer steps."),
    ("pending credits", "Other work of yours holds all of your GPU time. {kept}: Resume when it is done."),
    ("expired zerogpu", "The page was open for too long. {kept}: load it again and Resume."),
    ("quota exceeded", "The GPU time of today is used up ({message}). {kept}: Resume when there is quota again."),
)


def explain(error: BaseException) -> str:
    """One or two sentences for the user."""
    message = error.message if isinstance(error, gr.Error) else str(error)
    message = " ".join(str(message).split()).rstrip(".")
    if isinstance(error, gr.Error):
        said = f"{error.title} {message}".lower()
        for sign, text in ZERO_GPU:
            if sign in said:
                return text.format(message=message, kept=KEPT)
        return message + "."
    if isinstance(error, torch.OutOfMemoryError):
        return f"The GPU has too little memory for this. {KEPT}: Resume later, or start with the preset Quick."
    if any(is_full_disk(cause) for cause in causes(error)):
        return "The disk of the server is full. Nothing is lost up to the last save: Resume later."
    if isinstance(error, RunError):  # which names a folder of the server, for people who chose it
        logger.error("a run cannot be read or written", exc_info=error)
        return "The server cannot read or write this run. Resume tries again; if it fails again, start a new one."
    if isinstance(error, ValueError):
        return message + "."
    logger.error("an unexpected error", exc_info=error)
    message = without_folders(message)[:200]
    return f"Something broke that should not ({type(error).__name__}: {message}). {KEPT}: Resume tries again."


def without_folders(message: str) -> str:
    """Where the server keeps things is no business of its visitors."""
    return FOLDER.sub("…/", message)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def is_full_disk(error: BaseException) -> bool:
    """safetensors has an error of its own, which names the system's."""
    return getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC})" in str(error)
