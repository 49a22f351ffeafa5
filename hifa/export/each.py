"""Several exports, where one failure does not stop the other exports."""

from collections.abc import Callable, Mapping


class ExportError(ValueError):
    """Error of an export in which some files could not be written. All other files were written.

    Args:
        failures: One line for each failed file, with its name and the reason.
    """

    def __init__(self, failures: list[str]):
        super().__init__("; ".join(failures))
        self.failures = failures


def export_each(exports: Mapping[str, Callable[[], object]], on_start: Callable[[str], None] | None = None) -> None:
    """Call every export, even if previous exports failed.

    Args:
        exports: Exports by file name. The names appear in the error message.
        on_start: Callback that is called with each file name before the file is exported.

    Raises:
        ExportError: After the last export, if any export failed.
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
