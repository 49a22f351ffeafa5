"""Several exports of which each may fail without the others."""

from collections.abc import Callable, Mapping


class ExportError(ValueError):
    """Some files could not be written; the others are there.

    Args:
        failures: For each file a line with its name and the reason.
    """

    def __init__(self, failures: list[str]):
        super().__init__("; ".join(failures))
        self.failures = failures


def export_each(exports: Mapping[str, Callable[[], object]], on_start: Callable[[str], None] | None = None) -> None:
    """Call every export, whatever becomes of those before.

    Args:
        exports: By the name of the file, for the message.
        on_start: Called with each name before its export.

    Raises:
        ExportError: At the end, if any failed.
    """
    failures = []
    for name, export in exports.items():
        if on_start is not None:
            on_start(name)
        try:
            export()
        except Exception as error:
            failures.append(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")
    if failures:
        raise ExportError(failures)
