"""Errors in words for the user: what happened and what to do. What was computed is always kept."""

import errno

import gradio as gr
import torch


KEPT = "What was computed is kept"
# Of ZeroGPU's messages, what tells them apart (`spaces` 0.51), and what to say.
ZERO_GPU = (
    ("quota exceeded", "The GPU time of today is used up ({message}). {kept}: Resume when there is quota again."),
    ("gpu limit", "This Space gives GPU time to signed-in visitors only. {kept}: sign in to Hugging Face and Resume."),
    ("no gpu was available", "No GPU was free within a minute. {kept}: Resume to queue again."),
    ("aborted", "The GPU was taken away before the lease was over. {kept} up to the last save: Resume goes on."),
    ("illegal duration", "The GPU refused a lease of this length ({message}). {kept}: Resume, or take fewer steps."),
)


def explain(error: BaseException) -> str:
    """One or two sentences for the user."""
    message = error.message if isinstance(error, gr.Error) else str(error)
    message = " ".join(str(message).split()).rstrip(".")
    if isinstance(error, gr.Error):
        for sign, text in ZERO_GPU:
            if sign in message.lower():
                return text.format(message=message, kept=KEPT)
        return message + "."
    if isinstance(error, torch.OutOfMemoryError):
        return f"The GPU has too little memory for this. {KEPT}: Resume later, or start with the preset Quick."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk of the server is full. Nothing is lost up to the last save: Resume later."
    if isinstance(error, ValueError):
        return message + "."
    return f"Something broke that should not ({type(error).__name__}: {message[:200]}). {KEPT}: Resume tries again."
