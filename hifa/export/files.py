"""Mesh files: GLB, OBJ (with MTL and PNG, or all three zipped) and PLY. Every file is written atomically.

All formats use the axes of glTF: +Y up, front +Z. World (x, y, z) is written as (y, z, x). The scale does not change.
"""

import io
import os
import re
import zipfile
from pathlib import Path
from typing import cast

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from ..storage.files import atomically
from .grid import Color, Density
from .mesh import Mesh, extract_mesh
from .texture import TexturedMesh, bake_texture


def export_mesh(
    path: str | os.PathLike,
    density: Density,
    color: Color,
    bound: float,
    *,
    resolution: int = 128,
    threshold: float | None = None,
    max_faces: int | None = 20_000,
    texture_size: int = 1024,
) -> Path:
    """Extract a mesh from a field and write the mesh to a file.

    The suffix of `path` selects the format: .glb, .obj, .zip (an OBJ with its MTL and PNG) or .ply (vertex colors, no
    texture). To write one mesh in several formats, use `extract_mesh`, `bake_texture` and `write_mesh`.

    Args:
        path: Output file in an existing folder.
        density: See `extract_mesh`.
        color: See `extract_mesh`.
        bound: Half the side of the cube, world units.
        resolution: See `extract_mesh`.
        threshold: See `extract_mesh`.
        max_faces: See `extract_mesh`.
        texture_size: Height and width of the texture in texels.

    Raises:
        ValueError: If the suffix is not supported.
        EmptyFieldError: If the field has no surface.
        OSError: If `path` cannot be written.
    """
    path = _checked(path)
    mesh = extract_mesh(density, color, bound, resolution=resolution, threshold=threshold, max_faces=max_faces)
    if path.suffix.lower() == ".ply":
        return write_ply(path, mesh)
    return write_mesh(path, bake_texture(mesh, color, texture_size))


def write_mesh(path: str | os.PathLike, textured: TexturedMesh) -> Path:
    """Write a mesh in the format that the suffix of `path` selects. Errors are those of `export_mesh`."""
    path = _checked(path)
    if path.suffix.lower() == ".ply":
        return write_ply(path, textured.mesh)
    return _TEXTURED_WRITERS[path.suffix.lower()](path, textured)


def write_glb(path: str | os.PathLike, textured: TexturedMesh) -> Path:
    """Write binary glTF 2.0 with normals and a textured material, +Y up and front +Z.

    The material is matte (metallic 0, roughness 1), with the texture as its base color. glTF base colors are sRGB, so
    viewers show the same values as renders of the field.
    """
    material = PBRMaterial(
        baseColorTexture=Image.fromarray(textured.texture), metallicFactor=0.0, roughnessFactor=1.0, doubleSided=False
    )
    vertices, normals = _in_file_axes(textured.mesh)
    mesh = trimesh.Trimesh(
        vertices=vertices[textured.source],
        faces=textured.faces,
        vertex_normals=normals[textured.source],
        visual=TextureVisuals(uv=textured.uv, material=material),
        process=False,
    )
    return _write(path, cast(bytes, mesh.export(file_type="glb", include_normals=True)))


def write_obj(path: str | os.PathLike, textured: TexturedMesh) -> Path:
    """Write an OBJ and, next to it, an MTL and a PNG with the same name; +Y up and front +Z as in the GLB."""
    path = Path(path)
    name = _plain(path.stem)
    # Write the OBJ last: if the OBJ exists, the MTL and the PNG exist, too.
    _write(path.with_name(f"{name}.png"), _png(textured))
    _write(path.with_name(f"{name}.mtl"), _mtl(name))
    return _write(path, _obj(name, textured))


def write_obj_zip(path: str | os.PathLike, textured: TexturedMesh) -> Path:
    """Write the three files of `write_obj`, named after `path`, to one zip archive."""
    name = _plain(Path(path).stem)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.obj", _obj(name, textured))
        archive.writestr(f"{name}.mtl", _mtl(name))
        archive.writestr(f"{name}.png", _png(textured))
    return _write(path, packed.getvalue())


def write_ply(path: str | os.PathLike, mesh: Mesh) -> Path:
    """Write binary PLY with normals and 8-bit sRGB vertex colors; +Y up and front +Z as in the GLB."""
    vertices, normals = _in_file_axes(mesh)
    colors = np.round(mesh.colors * 255).astype(np.uint8)
    ply = trimesh.Trimesh(vertices, mesh.faces, vertex_normals=normals, vertex_colors=colors, process=False)
    return _write(path, cast(bytes, ply.export(file_type="ply", vertex_normal=True)))


def _write(path: str | os.PathLike, data: bytes) -> Path:
    with atomically(path) as partial:
        partial.write_bytes(data)
    return Path(path)


def _checked(path: str | os.PathLike) -> Path:
    """Return `path` if the suffix is supported and the folder is writable, to fail before expensive work."""
    path = Path(path)
    supported = [*_TEXTURED_WRITERS, ".ply"]
    if path.suffix.lower() not in supported:
        raise ValueError(f"{path} has the unsupported suffix {path.suffix!r}. Use {', '.join(supported)}.")
    if not os.access(path.parent, os.W_OK):
        raise OSError(f"Cannot write {path}: its folder does not exist or is not writable.")
    return path


def _in_file_axes(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices and normals with +Y up and front +Z: world (x, y, z) -> (y, z, x)."""
    return mesh.vertices[:, [1, 2, 0]], mesh.normals[:, [1, 2, 0]]


def _plain(name: str) -> str:
    """Replace spaces and special characters: OBJ and MTL files refer to other files without quotes."""
    return re.sub(r"[^\w.-]+", "_", name)


def _obj(name: str, textured: TexturedMesh) -> bytes:
    vertices, normals = _in_file_axes(textured.mesh)
    lines = [f"mtllib {name}.mtl", "usemtl surface"]
    lines += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices.tolist()]
    lines += [f"vn {x:.4f} {y:.4f} {z:.4f}" for x, y, z in normals.tolist()]
    lines += [f"vt {u:.6f} {v:.6f}" for u, v in textured.uv.tolist()]
    # Corners are position/uv/normal indices from 1. Charts share positions along cuts, so the mesh stays closed.
    corners = np.stack([textured.source[textured.faces], textured.faces], axis=-1) + 1  # (F, 3, 2)
    lines += ["f " + " ".join(f"{v}/{t}/{v}" for v, t in face) for face in corners.tolist()]
    return "\n".join([*lines, ""]).encode()


def _mtl(name: str) -> bytes:
    return f"newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {name}.png\n".encode()


def _png(textured: TexturedMesh) -> bytes:
    png = io.BytesIO()
    Image.fromarray(textured.texture).save(png, "png")
    return png.getvalue()


_TEXTURED_WRITERS = {".glb": write_glb, ".obj": write_obj, ".zip": write_obj_zip}
