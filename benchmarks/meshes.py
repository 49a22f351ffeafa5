"""Exported meshes of finished assets: validity, similarity to the field, and time of the export.

    python -m benchmarks.meshes ASSET_FOLDER [...] [--faces 20000] [--texture 1024] [--validator FOLDER] [--save DIR]

The benchmark exports each asset as GLB and PLY, and reads the GLB again. The checks of the GLB merge vertices at the
same position. The GLB is rendered without lighting from eight sides, at an elevation of 15 degrees, a distance of 2.5
and a field of view of 40 degrees. The benchmark compares these renders with renders of the field. The output is one
JSON object with a list `assets` and the `totals`. Keys of each asset:

    closed, two_manifold      properties of the GLB
    faults                    counts of `hifa.export.mesh_check.MeshFaults`, such as doubled faces and bad normals
    validator_errors          number of errors found by the Khronos validator; null without the validator. Install the
                              validator with `npm i gltf-validator`, and set its folder with `--validator` or
                              HIFA_GLTF_VALIDATOR
    iou, iou_min              mean and minimum, over the sides, of the silhouette IoU. The silhouette of the field is
                              the set of pixels with an opacity above 0.5
    color_difference          mean absolute color difference inside of both silhouettes, on a scale of 0 to 255
    faces, charts, megabytes  properties of the GLB
    seconds                   time of each stage and in total
"""

import argparse
import cProfile
import json
import os
import pstats
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import trimesh

from hifa import HiFAAsset
from hifa.cameras import Camera, camera_to_world
from hifa.export import bake_texture, write_glb, write_ply
from hifa.export.mesh_check import find_faults

from .gltf_validator import VARIABLE, errors, validate
from .mesh_render import render_mesh


SIDES = range(0, 360, 45)
SIZE = 256
STAGES = {
    "grid": "density_grid", "solid": "solid_level", "surface": "_surface", "smoothing": "smoothed",
    "decimation": "decimated", "check": "find_faults", "seen": "_seen_points", "vertex_colors": "pictured_color",
    "unwrap": "unwrap", "texture_and_unwrap": "bake_texture", "glb": "write_glb", "ply": "write_ply",
}  # fmt: skip


def side(azimuth: float) -> Camera:
    return Camera(azimuth, 15.0, radius=2.5, fov_deg=40.0)


def likeness(glb: Path, asset: HiFAAsset, save: Path | None = None) -> dict[str, float]:
    """Compare a GLB with the field of its asset, from all sides. Save a picture of both if `save` is given."""
    ious, differences, rows = [], [], []
    for azimuth in SIDES:
        picture = asset.render(side(azimuth), SIZE, (0.0, 0.0, 0.0))
        opacity = picture.opacity.cpu().numpy()
        # Divide by the opacity, because the black background darkens half-transparent pixels.
        expected = picture.color.cpu().numpy() / np.maximum(opacity, 0.5)[..., None]
        color, mask = render_mesh(glb, camera_to_world(side(azimuth)).double().numpy(), SIZE)
        ious.append((mask & (opacity > 0.5)).sum() / max((mask | (opacity > 0.5)).sum(), 1))
        difference = np.abs(color - expected.clip(0, 1)).mean(-1) * 255
        differences.append(difference[mask & (opacity > 0.5)].mean())
        rows.append(
            np.concatenate(
                [np.where((opacity > 0.5)[..., None], expected, 0.8), np.where(mask[..., None], color, 0.8)]
            )
        )
    if save is not None:
        pixels = np.concatenate(rows, axis=1).clip(0, 1) * 255
        PIL.Image.fromarray(pixels.round().astype(np.uint8)).save(save)
    return {
        "iou": round(float(np.mean(ious)), 4), "iou_min": round(float(np.min(ious)), 4),
        "color_difference": round(float(np.mean(differences)), 2),
    }  # fmt: skip


def well_formed(glb: Path, validator: str | None) -> dict:
    """Check a GLB. The file is read with trimesh, independently of the exporter."""
    mesh = trimesh.load_mesh(glb, process=False)
    faults = find_faults(mesh.vertices, mesh.faces, mesh.vertex_normals)
    return {
        "closed": faults.closed,
        "two_manifold": faults.two_manifold,
        "faults": {name: count for name, count in vars(faults).items() if count},
        "validator_errors": None if validator is None else len(errors(validate([glb], validator)[0])),
        "faces": len(mesh.faces),
        "charts": mesh.body_count,
        "megabytes": round(glb.stat().st_size / 1e6, 3),
    }


def export(asset: HiFAAsset, folder: Path, faces: int, texture: int) -> tuple[Path, dict[str, float]]:
    """Write GLB and PLY. Return the path of the GLB and the seconds of each stage."""
    profile = cProfile.Profile()
    start = time.perf_counter()
    with profile:
        mesh = asset.mesh(max_faces=faces)
        glb = write_glb(folder / "mesh.glb", bake_texture(mesh, asset.color, texture))
        write_ply(folder / "mesh.ply", mesh)
    total = time.perf_counter() - start
    cumulative = {name: row[3] for (_, _, name), row in pstats.Stats(profile).stats.items()}  # pyright: ignore[reportAttributeAccessIssue]
    seconds = {stage: round(cumulative.get(name, 0.0), 2) for stage, name in STAGES.items()}
    seconds["texture"] = round(seconds.pop("texture_and_unwrap") - seconds["unwrap"], 2)
    return glb, {**seconds, "total": round(total, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", nargs="+", help="asset folders written by save_pretrained")
    parser.add_argument("--faces", type=int, default=20_000)
    parser.add_argument("--texture", type=int, default=1024, help="texels per side")
    parser.add_argument("--validator", default=os.environ.get(VARIABLE), help="folder of the package gltf-validator")
    parser.add_argument("--save", type=Path, help="folder for pictures, field above mesh")
    arguments = parser.parse_args()
    if arguments.save is not None:
        arguments.save.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.assets:
            asset = HiFAAsset.from_pretrained(name)
            glb, seconds = export(asset, Path(folder), arguments.faces, arguments.texture)
            picture = None if arguments.save is None else arguments.save / f"{Path(name).name}.png"
            row = {"asset": name, **well_formed(glb, arguments.validator), **likeness(glb, asset, picture)}
            rows.append({**row, "seconds": seconds})
    totals = {
        "assets": len(rows),
        "closed": sum(row["closed"] for row in rows),
        "two_manifold": sum(row["two_manifold"] for row in rows),
        "without_faults": sum(not row["faults"] for row in rows),
        "validator_errors": None if arguments.validator is None else sum(row["validator_errors"] for row in rows),
        "iou": round(float(np.mean([row["iou"] for row in rows])), 4),
        "iou_min": min(row["iou_min"] for row in rows),
        "color_difference": round(float(np.mean([row["color_difference"] for row in rows])), 2),
        "seconds": round(sum(row["seconds"]["total"] for row in rows), 2),
    }
    print(json.dumps({"assets": rows, "totals": totals}, indent=1))


if __name__ == "__main__":
    main()
