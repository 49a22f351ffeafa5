"""Listeners that run after a Gradio event, whether the event succeeded or failed."""

from typing import Any

from gradio.events import Dependency


def afterwards(event: Dependency, function, inputs, outputs, **options: Any) -> list[Dependency]:
    """Call `function` after `event` succeeds or fails. In Gradio 6, `then` does not fire after an error.

    Args:
        event: Event to wait for.
        function: Function to call.
        inputs: Input components.
        outputs: Output components.
        **options: Options of the event listeners.

    Returns:
        The listeners for success and for failure. Exactly one of them fires.
    """
    return [ending(function, inputs, outputs, **options) for ending in (event.success, event.failure)]
