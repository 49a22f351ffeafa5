"""Export of several files, where one failure does not stop the other files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm


if TYPE_CHECKING:
    from ..asset import HiFAAsset

FORMATS = ("turntable", "stills", "glb", "obj", "zip", "ply")
# Work on the progress bar, in units of one turntable frame.
STILL_WORK, MESH_WORK = 8, 40


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


@dataclass(frozen=True)
class ExportOptions:
    """Options of `HiFAAsset.export`.

    Args:
        mesh_resolution: Marching cubes cells per axis.
        max_faces: Maximum number of faces of the mesh after simplification.
        texture_size: Height and width of the texture in pixels.
        num_frames, frame_size: Number of turntable frames, and their size in pixels per side.
        still_size: Size of the stills in pixels per side.
    """

    mesh_resolution: int = 128
    max_faces: int = 20_000
    texture_size: int = 1024
    num_frames: int = 48
    frame_size: int = 192
    still_size: int = 256


def export_files(
    asset: "HiFAAsset", folder: Path, formats: Sequence[str], options: ExportOptions, show_bar: bool
) -> None:
    """Write the files of an asset, see `HiFAAsset.export`."""
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise ValueError(f"formats must be from {', '.join(FORMATS)}, got {', '.join(unknown)}.")
    folder.mkdir(parents=True, exist_ok=True)
    work = dict.fromkeys(formats, MESH_WORK) | {"turntable": options.num_frames, "stills": STILL_WORK}
    with tqdm(total=sum(work[name] for name in formats), desc="export", disable=not show_bar) as bar:
        writers: dict[str, tuple[str, Callable[[], object]]] = _mesh_writers(asset, folder, formats, options)
        video = partial(asset.export_video, folder / "turntable.mp4", options.num_frames, options.frame_size)
        writers["turntable"] = ("turntable.mp4", lambda: video(on_frame=bar.update))
        writers["stills"] = ("stills", lambda: asset.export_stills(folder, options.still_size))
        done, names = 0, {writers[name][0]: name for name in formats}

        def started(file: str) -> None:
            nonlocal done
            bar.update(done - bar.n)  # also skips the rest of a file that failed midway
            bar.set_description(f"export {file}")
            done += work[names[file]]

        try:
            export_each(dict(writers[name] for name in formats), started)
        finally:
            bar.update(done - bar.n)


def _mesh_writers(
    asset: "HiFAAsset", folder: Path, formats: Sequence[str], options: ExportOptions
) -> dict[str, tuple[str, Callable[[], object]]]:
    """Return the file name and a function that writes the file, for each mesh format.

    All files share one surface and one texture. A PLY file needs no texture.
    """
    from .files import write_mesh, write_ply
    from .texture import bake_texture

    mesh = cache(lambda: asset.mesh(options.mesh_resolution, options.max_faces))
    textured = cache(lambda: bake_texture(mesh(), asset.color, options.texture_size))

    def write(path: Path) -> None:
        if path.suffix == ".ply":
            write_ply(path, mesh())
        else:
            write_mesh(path, textured())

    paths = {suffix: folder / f"mesh.{suffix}" for suffix in formats if suffix not in ("turntable", "stills")}
    return {suffix: (path.name, partial(write, path)) for suffix, path in paths.items()}
