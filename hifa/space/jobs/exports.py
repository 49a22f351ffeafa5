"""Export of the downloadable files of a run: meshes, turntable, asset and checkpoint.

The export can be interrupted after each stage. The record stores the step at which each file was made, so missing and
stale files are detected and exported later. The three mesh files are written to a new folder. The record refers to the
folder only after all three files are complete.
"""

import secrets
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...export import EmptyFieldError, TexturedMesh, bake_texture, extract_mesh, write_glb, write_obj_zip, write_ply
from ...optimization.run import HiFARun
from ...storage.files import atomically, file_name
from ...storage.run_folder import FILE
from .background import saying, until_given_up
from .errors import explain
from .run_store import Record, RunFolder


KINDS = ("glb", "obj", "ply", "mp4", "asset", "run")
MESH_KINDS = KINDS[:3]
SEEN_KINDS = KINDS[:4]  # files that need a surface
MAX_TEXTURE = 2048  # pixels per side; phones support no larger textures
# Model of the GLB size, fitted to Toybox assets: bytes per face, plus a factor times a power of the texture size. The
# power is below 2, because larger textures need fewer bytes per texel. 10,000 faces and 1024 texels give 1.1 MB.
BYTES_PER_FACE, BYTES_PER_TEXTURE, TEXTURE_POWER = 40.0, 22.0, 1.5
# Relative durations of the stages of an export, measured with Toybox on two cores. Only the progress bar uses them.
STAGES = {"mesh": 3.0, "mp4": 2.0, "asset": 0.1, "run": 0.1}


@dataclass(frozen=True)
class MeshOptions:
    """Options of the mesh export.

    Args:
        resolution: Grid cells per axis, from 16 to 256.
        max_faces: Maximum number of triangles, from 100 to 100,000.
        texture_size: Texture width and height in pixels, from 64 to `MAX_TEXTURE`.

    Raises:
        ValueError: If a value is out of range.
    """

    resolution: int = 128
    max_faces: int = 10_000
    texture_size: int = 1024

    def __post_init__(self):
        for name, low, high in (
            ("resolution", 16, 256),
            ("max_faces", 100, 100_000),
            ("texture_size", 64, MAX_TEXTURE),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}.")


@dataclass(frozen=True)
class TurntableOptions:
    """Options of the turntable video.

    Args:
        num_frames: Number of frames.
        size: Width and height of each of the two halves (color, normals), in pixels.
        fps: Frames per second.
    """

    num_frames: int = 48
    size: int = 192
    fps: int = 16


MESH, TURNTABLE = MeshOptions(), TurntableOptions(36, 160, 12)
# After Stop, mesh and turntable must be on the screen within two seconds. The draft options are therefore smaller.
STOPPED_MESH, STOPPED_TURNTABLE = MeshOptions(64, 2_500, 512), TurntableOptions(16, 112, 8)


def predicted_megabytes(max_faces: int, texture_size: int) -> float:
    """Estimate the size of a GLB in megabytes before the export."""
    return (max_faces * BYTES_PER_FACE + BYTES_PER_TEXTURE * texture_size**TEXTURE_POWER) / 1e6


def plain_name(record: Record) -> str:
    """Return a file name without suffix, made from the prompt, or from the kind of the run if the prompt is empty."""
    words = record.request.prompt or record.request.kind
    return file_name(words)


def existing(folder: RunFolder, record: Record) -> dict[str, Path]:
    """Return the paths of the existing files, keyed by kind."""
    paths = {kind: folder.files / name for kind, name in record.files.items()}
    return {kind: path for kind, path in paths.items() if path.is_file()}


def missing(folder: RunFolder, record: Record) -> tuple[str, ...]:
    """Return the file kinds that are missing or stale. The result is empty for a run that has not started."""
    if not folder.started:
        return ()
    have = existing(folder, record)
    return tuple(
        kind
        for kind in KINDS
        if record.made_at.get(kind) != record.step or (kind in record.files and kind not in have)
    )


def are_drafts(record: Record) -> bool:
    """Return whether mesh and turntable are drafts, exported with smaller options than for a finished run."""
    return bool(record.metadata.get("draft"))


def to_make(folder: RunFolder, record: Record, full: bool) -> tuple[str, ...]:
    """Return the file kinds to export: missing and stale kinds and, if `full` is set, drafts."""
    wanted = missing(folder, record)
    return tuple(kind for kind in KINDS if kind in wanted or (full and are_drafts(record) and kind in SEEN_KINDS))


class ExportProgress(NamedTuple):
    """Progress of an export.

    Args:
        text: Current stage, for the user. Empty at the end.
        record: Current record, as written to disk.
        share: Completed fraction of the export, in [0, 1].
    """

    text: str
    record: Record
    share: float = 0.0


def make_missing(folder: RunFolder, record: Record, full: bool) -> Generator[ExportProgress, None, None]:
    """Export the files that `to_make` returns, the mesh first.

    A file that cannot be made does not stop the export of the remaining files. The reason is written to
    `Record.problem`.

    Args:
        folder: The run.
        record: Record of the run.
        full: Use the options for a finished run. Otherwise export drafts.

    Yields:
        The next stage and the current record, which is on disk by then. The last text is empty.
    """
    wanted, problems = to_make(folder, record, full), []
    stages = ["mesh"] * bool(set(wanted) & set(MESH_KINDS)) + [kind for kind in STAGES if kind in wanted]
    if "mesh" in stages:
        try:
            for text, latest, share in make_mesh(folder, record, MESH if full else STOPPED_MESH):
                yield ExportProgress(text or "Making the turntable", latest, share_of(stages, "mesh", share))
            record = folder.write(latest, metadata=latest.metadata | {"draft": not full})
        except EmptyFieldError:
            # Keep files of an earlier step. Mark missing files as done, because a retry at this step fails again.
            nothing = {kind: record.step for kind in SEEN_KINDS if kind not in record.files}
            problem = "There is no surface yet. Resume, or use more steps."
            record = folder.write(record, problem=problem, made_at=record.made_at | nothing)
            wanted = tuple(kind for kind in wanted if kind not in SEEN_KINDS)
        except Exception as error:
            record = folder.read()  # `make_mesh` may have added a PLY
            problems.append(_failure("The mesh", error))
    if "mp4" in wanted:
        try:
            options = TURNTABLE if full else STOPPED_TURNTABLE
            share = partial(share_of, stages, "mp4")
            record = yield from make_turntable(folder, record, options, share)
        except Exception as error:
            problems.append(_failure("The turntable", error))
    if {"asset", "run"} & set(wanted):
        first = "asset" if "asset" in wanted else "run"
        yield ExportProgress("Packing", record, share_of(stages, first, 0.0))
    for kind, pack in (("asset", pack_asset), ("run", pack_run)):
        if kind in wanted:
            try:
                record = pack(folder, record)
            except Exception as error:
                problems.append(_failure(f"The zip of the {kind}", error))
    if problems:
        record = folder.write(record, problem=" ".join(problems))
    yield ExportProgress("", record, 1.0)


def share_of(stages: list[str], stage: str, part: float) -> float:
    """Return the completed fraction of an export.

    Args:
        stages: Stages of the export in order, from `STAGES`.
        stage: Current stage.
        part: Completed fraction of the current stage, in [0, 1].
    """
    before = sum(STAGES[name] for name in stages[: stages.index(stage)])
    return (before + part * STAGES[stage]) / sum(STAGES[name] for name in stages)


def _failure(what: str, error: Exception) -> str:
    """Return an error message for the user and print it to stderr in one line."""
    reason = explain(error)
    print(f"error: {what[0].lower()}{what[1:]}: {reason}", file=sys.stderr, flush=True)
    return f"{what} could not be made: {reason}"


def make_mesh(folder: RunFolder, record: Record, options: MeshOptions) -> Iterator[ExportProgress]:
    """Export the mesh of a saved run as GLB, OBJ and PLY.

    Closing the generator early keeps the previous three files. If texturing fails and the run has no GLB, the
    record gets the PLY, which needs no texture.

    Args:
        folder: The run.
        record: Record of the run.
        options: Options of the mesh.

    Yields:
        Frequent progress with the current record. The last item has the new record and an empty text.

    Raises:
        EmptyFieldError: If the field has no surface yet.
    """
    yield ExportProgress("Reading the run", record)
    asset = HiFARun.load(folder.run).asset()
    name = plain_name(record)
    place = _new_mesh_folder(folder, record)

    searched, painted = QueryCounter((options.resolution + 1) ** 3), QueryCounter(options.texture_size**2)

    def telling(text: str) -> ExportProgress:
        return ExportProgress(text, record, 0.4 * searched.share + 0.6 * painted.share)

    def find(given_up: threading.Event):
        density = searched.counted(until_given_up(asset.density, given_up))
        color, bound = until_given_up(asset.color, given_up), asset.radiance_field.bound
        return extract_mesh(density, color, bound, resolution=options.resolution, max_faces=options.max_faces)

    def color_and_write(given_up: threading.Event) -> TexturedMesh:
        color = painted.counted(until_given_up(asset.color, given_up))
        write_ply(place / f"{name}.ply", mesh)  # first, because texturing may fail
        textured = bake_texture(mesh, color, options.texture_size)
        write_glb(place / f"{name}.glb", textured)
        write_obj_zip(place / f"{name}-obj.zip", textured)
        return textured

    mesh = yield from saying("Finding the surface", find, telling)
    names = {"glb": f"{name}.glb", "obj": f"{name}-obj.zip", "ply": f"{name}.ply"}
    try:
        textured = yield from saying(f"Coloring {len(mesh.faces):,} faces", color_and_write, telling)
    except Exception:
        if "glb" not in record.files and (place / names["ply"]).is_file():  # A PLY is better than no mesh.
            ply = {"ply": f"{place.name}/{names['ply']}"}
            folder.write(record, files=record.files | ply, made_at=record.made_at | {"ply": record.step})
        raise
    record = folder.write(
        record,
        files=record.files | {kind: f"{place.name}/{names[kind]}" for kind in MESH_KINDS},
        metadata=record.metadata | mesh_metadata(place / names["glb"], textured),
        made_at=record.made_at | dict.fromkeys(MESH_KINDS, record.step),
    )
    yield ExportProgress("", record, 1.0)


class QueryCounter:
    """Counter of the points at which wrapped functions are evaluated, for a progress bar.

    Args:
        expected: Approximate total number of points.
    """

    def __init__(self, expected: int):
        self.expected, self.points = expected, 0

    @property
    def share(self) -> float:
        """Completed fraction, in [0, 1]."""
        return min(1.0, self.points / self.expected)

    def counted(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Wrap a function of points `(n, 3)` so that its calls are counted."""

        def ask(points: Tensor, *others: Tensor) -> Tensor:
            self.points += len(points)
            return function(points, *others)

        return ask


def _new_mesh_folder(folder: RunFolder, record: Record) -> Path:
    """Create a folder for mesh files and delete the folders of canceled exports. The current mesh is kept."""
    kept = {Path(name).parent.name for name in record.files.values()}
    for path in folder.files.glob("mesh-*"):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
    place = folder.files / f"mesh-{secrets.token_hex(4)}"
    place.mkdir()
    return place


def mesh_metadata(glb: Path, textured: TexturedMesh) -> dict[str, float]:
    """Return the metadata of a mesh that the page displays."""
    return {
        "faces": len(textured.faces),
        "vertices": len(textured.mesh.vertices),
        "texture_size": textured.texture.shape[0],
        "glb_megabytes": round(glb.stat().st_size / 1e6, 3),
    }


def make_turntable(
    folder: RunFolder, record: Record, options: TurntableOptions, share: Callable[[float], float]
) -> Generator[ExportProgress, None, Record]:
    """Export the turntable of a saved run as MP4.

    Closing the generator early keeps the previous file.

    Args:
        folder: The run.
        record: Record of the run.
        options: Options of the turntable.
        share: Function from the completed fraction of the frames to the completed fraction of the export.

    Yields:
        Frequent progress with the current record.

    Returns:
        The new record.
    """
    name = f"{plain_name(record)}.mp4"
    with tempfile.TemporaryDirectory(dir=folder.files, ignore_cleanup_errors=True) as place:
        path, finished = Path(place) / name, 0

        def film(given_up: threading.Event) -> None:
            asset = HiFARun.load(folder.run).asset()
            asset.render = until_given_up(asset.render, given_up)
            asset.export_video(path, options.num_frames, options.size, options.fps, count_frame)

        def count_frame() -> None:
            nonlocal finished
            finished += 1

        def telling(text: str) -> ExportProgress:
            return ExportProgress(text, record, share(finished / options.num_frames))

        yield from saying("Making the turntable", film, telling)
        path.replace(folder.files / name)
    return _made(folder, record, "mp4", name)


def pack_asset(folder: RunFolder, record: Record) -> Record:
    """Export the asset as a zip that contains the files that `HiFAAsset.from_pretrained` reads.

    Returns:
        The new record.
    """
    path = folder.files / f"{plain_name(record)}-asset.zip"
    unpacked = path.with_suffix("")
    try:
        HiFARun.load(folder.run).asset().save_pretrained(unpacked)
        with atomically(path) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(unpacked.iterdir()):
                archive.write(file, file.name)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return _made(folder, record, "asset", path.name)


def pack_run(folder: RunFolder, record: Record) -> Record:
    """Export the checkpoint as a zip that contains the file that `HiFARun.load` reads.

    Returns:
        The new record.
    """
    path = folder.files / f"{plain_name(record)}-run.zip"
    with atomically(path) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
        archive.write(folder.run / FILE, FILE)
    return _made(folder, record, "run", path.name)


def _made(folder: RunFolder, record: Record, kind: str, name: str) -> Record:
    return folder.write(record, files=record.files | {kind: name}, made_at=record.made_at | {kind: record.step})
