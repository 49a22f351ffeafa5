"""Chains of Gradio events that end in the same way, whatever happened before."""

from typing import Any

from gradio.events import Dependency


def afterwards(event: Dependency, function, inputs, outputs, **options: Any) -> list[Dependency]:
    """Call `function` after `event`, also if it failed: `then` of Gradio 6 is not called after an error.

    Args:
        options: Of the event listener.

    Returns:
        The two events, of which one happens.
    """
    return [ending(function, inputs, outputs, **options) for ending in (event.success, event.failure)]
