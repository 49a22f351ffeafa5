"""The files of a run for its visitor: meshes, turntable, asset and the run itself.

Each stage can be the last one: the record says of every file at which step it was made, so what is missing is known
and made later. The three files of a mesh lie in a folder of their own, which the record names when all are written.
"""

import secrets
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..atomic import atomically
from ..export import EmptyFieldError, TexturedMesh, bake_texture, extract_mesh, write_glb, write_obj_zip, write_ply
from ..names import file_name
from ..run import HiFARun
from ..saved import FILE
from .beside import saying, until_given_up
from .errors import explain
from .store import Record, RunFolder


KINDS = ("glb", "obj", "ply", "mp4", "asset", "run")
MESH_KINDS = KINDS[:3]
SEEN_KINDS = KINDS[:4]  # what a run without a surface has nothing to show in
MAX_TEXTURE = 2048  # phones show no more
# Bytes of a GLB for each face, and for the texture, whose texels need the less the more there are, as measured of
# Toybox assets: 10,000 faces and 1024 texels give 1.1 MB.
BYTES_PER_FACE, BYTES_PER_TEXTURE, TEXTURE_POWER = 40.0, 22.0, 1.5


@dataclass(frozen=True)
class MeshOptions:
    """How a mesh is made.

    Args:
        resolution: Cells per axis.
        max_faces: At most so many triangles.
        texture_size: Texels per side.
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
    """How a turntable is made: frames, pixels per side of each of its halves, frames a second."""

    num_frames: int = 48
    size: int = 192
    fps: int = 16


MESH, TURNTABLE = MeshOptions(), TurntableOptions(36, 160, 12)
# A stopped run has to be on the screen in two seconds, so what is made of it is lighter.
STOPPED_MESH, STOPPED_TURNTABLE = MeshOptions(64, 2_500, 512), TurntableOptions(16, 112, 8)


def predicted_megabytes(max_faces: int, texture_size: int) -> float:
    """Size of a GLB, before it is made."""
    return (max_faces * BYTES_PER_FACE + BYTES_PER_TEXTURE * texture_size**TEXTURE_POWER) / 1e6


def plain_name(record: Record) -> str:
    """The prompt as a file name."""
    words = record.request.prompt or record.request.kind
    return file_name(words)


def existing(folder: RunFolder, record: Record) -> dict[str, Path]:
    """The files that are there, by what they are."""
    paths = {kind: folder.files / name for kind, name in record.files.items()}
    return {kind: path for kind, path in paths.items() if path.is_file()}


def missing(folder: RunFolder, record: Record) -> tuple[str, ...]:
    """The kinds of which a run has no file, or one of an earlier step; none of a run that has not begun."""
    if not folder.started:
        return ()
    have = existing(folder, record)
    return tuple(
        kind
        for kind in KINDS
        if record.made_at.get(kind) != record.step or (kind in record.files and kind not in have)
    )


def are_drafts(record: Record) -> bool:
    """Whether mesh and turntable were made lighter than those of a finished run."""
    return bool(record.facts.get("draft"))


def to_make(folder: RunFolder, record: Record, full: bool) -> tuple[str, ...]:
    """The kinds that are missing and, where full ones are wanted, those that are drafts."""
    wanted = missing(folder, record)
    return tuple(kind for kind in KINDS if kind in wanted or (full and are_drafts(record) and kind in SEEN_KINDS))


class Making(NamedTuple):
    """What goes on with the files of a run.

    Args:
        text: For the user; empty at the end.
        record: As it is on disk by then.
        share: Of a mesh that is made, [0, 1].
    """

    text: str
    record: Record
    share: float = 0.0


def make_missing(folder: RunFolder, record: Record, full: bool) -> Iterator[Making]:
    """Make what is to be made, the mesh first. Yields what comes next and the record so far, which is on disk by then;
    the last text is empty.

    Args:
        full: As of a finished run; drafts otherwise.
    """
    wanted, problems = to_make(folder, record, full), []
    if set(wanted) & set(MESH_KINDS):
        try:
            for text, record, _ in make_mesh(folder, record, MESH if full else STOPPED_MESH):
                yield Making(text or "Making the turntable", record)
            record = folder.write(record, facts=record.facts | {"draft": not full})
        except EmptyFieldError:
            # Files of an earlier step stay. Of the others there is nothing to make, until there are more steps.
            nothing = {kind: record.step for kind in SEEN_KINDS if kind not in record.files}
            problem = "There is no surface yet: Resume, or take more steps."
            record = folder.write(record, problem=problem, made_at=record.made_at | nothing)
            wanted = tuple(kind for kind in wanted if kind not in SEEN_KINDS)
        except Exception as error:
            record = folder.read()  # it may have a PLY
            problems.append(_failure("The mesh", error))
    if "mp4" in wanted:
        try:
            record = yield from make_turntable(folder, record, TURNTABLE if full else STOPPED_TURNTABLE)
        except Exception as error:
            problems.append(_failure("The turntable", error))
    if {"asset", "run"} & set(wanted):
        yield Making("Packing", record)
    for kind, pack in (("asset", pack_asset), ("run", pack_run)):
        if kind in wanted:
            try:
                record = pack(folder, record)
            except Exception as error:
                problems.append(_failure(f"The zip of the {kind}", error))
    if problems:
        record = folder.write(record, problem=" ".join(problems))
    yield Making("", record)


def _failure(what: str, error: Exception) -> str:
    """A sentence for the user; what happened is in the server's log, in one line."""
    reason = explain(error)
    print(f"error: {what[0].lower()}{what[1:]}: {reason}", file=sys.stderr, flush=True)
    return f"{what} could not be made: {reason}"


def make_mesh(folder: RunFolder, record: Record, options: MeshOptions) -> Iterator[Making]:
    """GLB, OBJ and PLY of a saved run, yielding what goes on, often, and the record; ends with the new record. Closed
    before that, it leaves the old three.

    Raises:
        EmptyFieldError: If there is no surface yet.
    """
    yield Making("Reading the run", record)
    asset = HiFARun.load(folder.run).asset()
    name = plain_name(record)
    place = _new_mesh_folder(folder, record)

    searched, painted = Asked((options.resolution + 1) ** 3), Asked(options.texture_size**2)

    def telling(text: str) -> Making:
        return Making(text, record, 0.4 * searched.share + 0.6 * painted.share)

    def find(given_up: threading.Event):
        density = searched.counted(until_given_up(asset.density, given_up))
        colour, bound = until_given_up(asset.colour, given_up), asset.radiance_field.bound
        return extract_mesh(density, colour, bound, resolution=options.resolution, max_faces=options.max_faces)

    def colour_and_write(given_up: threading.Event) -> TexturedMesh:
        colour = painted.counted(until_given_up(asset.colour, given_up))
        write_ply(place / f"{name}.ply", mesh)  # first: it needs no texture, which may fail
        textured = bake_texture(mesh, colour, options.texture_size)
        write_glb(place / f"{name}.glb", textured)
        write_obj_zip(place / f"{name}-obj.zip", textured)
        return textured

    mesh = yield from saying("Finding the surface", find, telling)
    names = {"glb": f"{name}.glb", "obj": f"{name}-obj.zip", "ply": f"{name}.ply"}
    try:
        textured = yield from saying(f"Colouring {len(mesh.faces):,} faces", colour_and_write, telling)
    except Exception:
        if "glb" not in record.files and (place / names["ply"]).is_file():  # better than no mesh
            ply = {"ply": f"{place.name}/{names['ply']}"}
            folder.write(record, files=record.files | ply, made_at=record.made_at | {"ply": record.step})
        raise
    record = folder.write(
        record,
        files=record.files | {kind: f"{place.name}/{names[kind]}" for kind in MESH_KINDS},
        facts=record.facts | mesh_facts(place / names["glb"], textured),
        made_at=record.made_at | dict.fromkeys(MESH_KINDS, record.step),
    )
    yield Making("", record, 1.0)


class Asked:
    """Counts the points that functions are asked about.

    Args:
        expected: About how many it will be.
    """

    def __init__(self, expected: int):
        self.expected, self.points = expected, 0

    @property
    def share(self) -> float:
        return min(1.0, self.points / self.expected)

    def counted(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def ask(points: Tensor, *others: Tensor) -> Tensor:
            self.points += len(points)
            return function(points, *others)

        return ask


def _new_mesh_folder(folder: RunFolder, record: Record) -> Path:
    """A folder for the files of a mesh. Those that were begun and never finished go, the current one stays."""
    kept = {Path(name).parent.name for name in record.files.values()}
    for path in folder.files.glob("mesh-*"):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
    place = folder.files / f"mesh-{secrets.token_hex(4)}"
    place.mkdir()
    return place


def mesh_facts(glb: Path, textured: TexturedMesh) -> dict[str, float]:
    return {
        "faces": len(textured.faces),
        "vertices": len(textured.mesh.vertices),
        "texture_size": textured.texture.shape[0],
        "glb_megabytes": round(glb.stat().st_size / 1e6, 3),
    }


def make_turntable(folder: RunFolder, record: Record, options: TurntableOptions) -> Generator[Making, None, Record]:
    """MP4 of a saved run, yielding what goes on, often, and the record; returns the new record. Closed before that,
    it leaves the old one."""
    name = f"{plain_name(record)}.mp4"
    with tempfile.TemporaryDirectory(dir=folder.files, ignore_cleanup_errors=True) as place:
        path = Path(place) / name

        def film(given_up: threading.Event) -> None:
            asset = HiFARun.load(folder.run).asset()
            asset.render = until_given_up(asset.render, given_up)
            asset.export_video(path, options.num_frames, options.size, options.fps)

        yield from saying("Making the turntable", film, lambda text: Making(text, record))
        path.replace(folder.files / name)
    return _made(folder, record, "mp4", name)


def pack_asset(folder: RunFolder, record: Record) -> Record:
    """The asset as a zip of what `HiFAAsset.from_pretrained` reads."""
    path = folder.files / f"{plain_name(record)}-asset.zip"
    unpacked = path.with_suffix("")
    try:
        HiFARun.load(folder.run).asset().save_pretrained(unpacked)
        with atomically(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(unpacked.iterdir()):
                archive.write(file, file.name)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return _made(folder, record, "asset", path.name)


def pack_run(folder: RunFolder, record: Record) -> Record:
    """The run as a zip of what `HiFARun.load` reads."""
    path = folder.files / f"{plain_name(record)}-run.zip"
    with atomically(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        archive.write(folder.run / FILE, FILE)
    return _made(folder, record, "run", path.name)


def _made(folder: RunFolder, record: Record, kind: str, name: str) -> Record:
    return folder.write(record, files=record.files | {kind: name}, made_at=record.made_at | {kind: record.step})
