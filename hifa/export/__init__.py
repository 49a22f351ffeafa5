"""Export of radiance fields to meshes (GLB, OBJ, PLY) and videos. A field is given as two callables, see `mesh`."""

from .files import export_mesh, write_glb, write_mesh, write_obj, write_obj_zip, write_ply
from .mesh import EmptyFieldError, Mesh, extract_mesh
from .texture import TexturedMesh, bake_texture
from .video import depth_to_rgb, normal_to_rgb, write_video


__all__ = [
    "EmptyFieldError", "Mesh", "TexturedMesh", "bake_texture", "depth_to_rgb", "export_mesh", "extract_mesh",
    "normal_to_rgb", "write_glb", "write_mesh", "write_obj", "write_obj_zip", "write_ply", "write_video",
]  # fmt: skip
