"""Image to 3D: the chicken in `examples/chicken`, from sixteen hallucinated views and from eight true views.

    python -m benchmarks.image_to_3d --output-dir benchmarks-cache/image-to-3d

The runs are reconstructions without a prior. The output folder receives comparison pictures with these rows: the given
views (hallucinated views only), our renders, the true views.

Measures:

- PSNR is in dB, a mean over views on white. Each pixel of a render is the mean of 2x2 rays.
- SSIM follows Wang et al. 2004, with a Gaussian window of 11 pixels and sigma 1.5. The value is a mean over views.
- Chamfer distance and volume IoU are measures of the exported mesh. They follow the protocol of SyncDreamer. The
  longest side of the object has the length 1.
- Chamfer distance compares the points that are visible from sixteen 256x256 cameras. The points are thinned to one
  point per cell of size 0.01. The value is the mean of the two mean nearest-neighbor distances.
- Volume IoU compares the occupancy of 64^3 cells over [-0.5, 0.5]^3.

The last line printed is one JSON object with two entries:

- `hallucinated` is the reconstruction from sixteen hallucinated views of `--size` pixels.
- `true` is the reconstruction from eight true views (even azimuths) of 128 pixels. This entry has no keys for the
  given views and for meshes.

Keys of both entries:

    psnr, ssim               at the sixteen true cameras; for `true`, at the eight cameras between the given views
    views_psnr, views_ssim   of the given views
    chamfer, volume_iou      of the exported mesh
    seconds                  of the optimization
    render_seconds           of rendering alone, forward and backward. At every tenth step, the rays of the step are
                             rendered again for timing, alternately before and after the step
    ratio                    `seconds` / `render_seconds`
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import trimesh
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.metrics import structural_similarity

from hifa import HiFAAsset, HiFAConfig, HiFAPipeline, HiFARun
from hifa.cameras import camera_to_world
from hifa.multiview import ViewRing
from hifa.multiview.cameras import world_to_camera
from hifa.multiview.given_views import RING_EXTENT, GivenViews, read_views, ring_cameras
from hifa.optimization.reconstruction import draw_corners, draw_pixels
from hifa.optimization.step import optimization_step
from hifa.optimization.surface_guidance import SurfaceModels
from hifa.rendering.image import backpropagate


CHICKEN = Path(__file__).parents[1] / "examples" / "chicken"
RING = ViewRing()
MESH_SIZE = 256  # pixels per side of the depth maps that yield the visible points
SPACING, CELLS = 0.01, 64
SURFACE_POINTS = 1_000_000


# Pictures


def load_pictures(kind: str) -> list[PIL.Image.Image]:
    """Load the sixteen pictures in `CHICKEN / kind`, in the order of the cameras of the ring."""
    return [PIL.Image.open(CHICKEN / kind / f"{view:03d}.png") for view in range(RING.num_views)]


def scores(images: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the mean PSNR and SSIM of images `(views, H, W, 3)` in [0, 1]."""
    psnr = [-10 * np.log10(np.mean((ours - theirs) ** 2)) for ours, theirs in zip(images, truth, strict=True)]
    ssim = [
        structural_similarity(
            ours, theirs, data_range=1.0, channel_axis=-1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for ours, theirs in zip(images, truth, strict=True)
    ]  # fmt: skip
    return {"psnr": round(float(np.mean(psnr)), 2), "ssim": round(float(np.mean(ssim)), 4)}


def as_array(views: GivenViews) -> np.ndarray:
    return views.color.numpy().astype(np.float32) / 255


def render(asset: HiFAAsset, views: GivenViews) -> np.ndarray:
    """Render the asset on white, at the cameras and the size of `views`.

    Each pixel is the mean of 2x2 rays, because a pixel of a photo is also a mean over an area.
    """
    size, images = views.size, []
    for camera in views.cameras:
        fine = asset.render(camera, 2 * size).color.cpu().numpy()
        images.append(fine.reshape(size, 2, size, 2, 3).mean((1, 3)))
    return np.stack(images)


def write_comparison(path: Path, *rows: np.ndarray, columns: int = 8, side: int = 128) -> None:
    """Write a picture with one row per array of views.

    Args:
        path: File to write.
        rows: Arrays of the same views, each `(views, H, W, 3)` in [0, 1].
        columns: Maximum number of views per row.
        side: Pixels per side of a view.
    """
    chosen = np.linspace(0, len(rows[0]), min(columns, len(rows[0])), endpoint=False).astype(int)
    pixels = np.concatenate([np.concatenate(list(pictures[chosen]), 1) for pictures in rows])
    sheet = PIL.Image.fromarray((pixels * 255).round().astype(np.uint8))
    sheet.resize((len(chosen) * side, len(rows) * side), PIL.Image.Resampling.BOX).save(path)


# Reconstruction


def reconstruct(views: GivenViews, config: HiFAConfig, clock_rendering: bool = False) -> tuple[HiFARun, float, float]:
    """Reconstruct from views with seed 0.

    Args:
        views: Given views.
        config: Settings of the run.
        clock_rendering: At every tenth step, also render the rays of the step forward and backward with a minimal
            loss, and time this rendering.

    Returns:
        The finished run, the seconds of the run, and the seconds of rendering alone, extrapolated to the whole run.
        Without `clock_rendering`, the seconds of rendering are 0.
    """
    run = HiFARun.begin(None, config, generator=torch.Generator().manual_seed(0), views=views)
    surfaces = HiFAPipeline.from_pretrained().surface_models(config, views)
    seconds, bare, timed = 0.0, 0.0, 0.0
    while not run.finished:
        clocked, before = clock_rendering and run.step % 10 == 5, run.step % 20 == 5
        state = run.generator.get_state()
        if clocked and before:
            bare += bare_rendering(run, state, surfaces)
        start = time.perf_counter()
        step = optimization_step(run, None, surfaces)
        seconds += (took := time.perf_counter() - start)
        if clocked:
            timed += took
            bare += 0.0 if before else bare_rendering(run, state, surfaces)
        if run.step % 100 == 0:
            print(f"{run.step} steps, {seconds:.0f} s, loss {step.losses['loss']:.4f}", flush=True)
    return run, seconds, bare / timed * seconds if timed else 0.0


def bare_rendering(run: HiFARun, state: torch.Tensor, surfaces: SurfaceModels) -> float:
    """Return the seconds of rendering the rays of a step and backpropagating the sum of their colors.

    Args:
        run: Run that provides the field and the views.
        state: State of the generator of the run before the step. The step must not refresh the density grid.
        surfaces: Surface models. The additional rays for `lambda_image_normal` are also rendered.
    """
    assert run.views is not None
    generator = torch.Generator()
    generator.set_state(state)
    batch, offsets = draw_pixels(run.views, run.config, generator)
    if surfaces.views is not None:
        corners, more = draw_corners(run.views, run.config, surfaces.views.stride, generator)
        batch, offsets = batch.joined(corners), torch.cat([offsets, more])
    start = time.perf_counter()
    backpropagate(
        run.radiance_field, batch.rays, run.sampling, lambda seen: seen.color.sum(),
        background=torch.ones(3), offsets=offsets, chunk=run.config.rays_per_chunk,
    )  # fmt: skip
    run.optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def from_hallucinated(folder: Path, size: int, changes: dict) -> dict:
    config = HiFAConfig.hallucinated(**changes, given_size=size)
    views = read_views(load_pictures("syncdreamer"), config.bound, size)
    truth = read_views(load_pictures("truth"), config.bound, size)
    run, seconds, bare = reconstruct(views, config, clock_rendering=True)
    asset = run.asset()
    images, given = render(asset, truth), scores(as_array(views), as_array(truth))
    write_comparison(folder / "hallucinated.png", as_array(views), images, as_array(truth))
    asset.export_mesh(path := folder / "mesh.ply", max_faces=100_000)
    return {
        **scores(images, as_array(truth)),
        **{f"views_{name}": value for name, value in given.items()},
        **compare_meshes(exported_mesh(path, config.bound), true_mesh(), true_points()),
        **times(seconds, bare),
        "steps": run.step,
    }


def times(seconds: float, bare: float) -> dict:
    return {
        "seconds": round(seconds, 1),
        "render_seconds": round(bare, 1),
        "ratio": round(seconds / bare, 2) if bare else None,  # None if a trial is too short for timing
    }


def from_true(folder: Path, changes: dict, size: int = 128) -> dict:
    config = HiFAConfig.reconstruction(**changes, given_size=size)
    pictures, cameras = load_pictures("truth"), ring_cameras(config.bound)
    views = read_views(pictures[::2], config.bound, size, cameras[::2])
    between = read_views(pictures[1::2], config.bound, size, cameras[1::2])
    run, seconds, bare = reconstruct(views, config, clock_rendering=True)
    images = render(run.asset(), between)
    write_comparison(folder / "true.png", images, as_array(between))
    return {**scores(images, as_array(between)), **times(seconds, bare), "steps": run.step}


# Meshes, in ring units: the object fits in [-0.5, 0.5]^3, z points up


def true_mesh() -> trimesh.Trimesh:
    """Return the mesh of the scan, aligned with the cameras. See `examples/chicken/README.md`."""
    mesh = trimesh.load_mesh(CHICKEN / "mesh.obj", process=False)
    vertices = np.asarray(mesh.vertices)
    vertices = (vertices - (vertices.min(0) + vertices.max(0)) / 2) / np.ptp(vertices, axis=0).max()
    return trimesh.Trimesh(vertices @ [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], mesh.faces, process=False)


def exported_mesh(path: Path, bound: float) -> trimesh.Trimesh:
    """Load an exported mesh. Convert the vertices from glTF axes and field units to axes and units of the ring."""
    mesh = trimesh.load_mesh(path, process=False)
    return trimesh.Trimesh(np.asarray(mesh.vertices)[:, [2, 0, 1]] * (RING_EXTENT / bound), mesh.faces, process=False)


def true_points() -> np.ndarray:
    """Return the points `(n, 3)` of the published depth maps of all views."""
    depths = []
    for view in range(RING.num_views):
        stored = np.asarray(PIL.Image.open(CHICKEN / "truth" / f"{view:03d}-depth.png"), np.float64)
        depth = stored / 65535 * 1.8 + 0.6
        depths.append(np.where((depth > 0.63) & (depth < 2.37), depth, np.inf))
    return points_of_depth(depths)


def points_of_depth(depths: list[np.ndarray]) -> np.ndarray:
    """Convert z-depth maps `(H, H)` at the cameras of the ring to world points `(n, 3)`. Skip infinite depths."""
    points = []
    for depth, camera in zip(depths, RING.cameras(), strict=True):
        row, column = np.nonzero(np.isfinite(depth))
        center, focal, z = len(depth) / 2, RING.focal_length * len(depth), depth[row, column]
        seen = np.stack([(column + 0.5 - center) / focal * z, (row + 0.5 - center) / focal * z, z], 1)
        pose = camera_to_world(camera).double().numpy()
        points.append(seen @ pose[:, :3].T + pose[:, 3])
    return np.concatenate(points)


def surface_points(mesh: trimesh.Trimesh, count: int = SURFACE_POINTS) -> np.ndarray:
    return trimesh.sample.sample_surface(mesh, count, seed=0)[0]


def depths_of(surface: np.ndarray, size: int = MESH_SIZE) -> list[np.ndarray]:
    """Return the z-depth `(size, size)` of a surface at each camera of the ring.

    Args:
        surface: Many points on the surface, `(n, 3)`.
        size: Pixels per side.

    Returns:
        Depth maps. A pixel without a point has infinite depth.
    """
    depths = []
    for camera in RING.cameras():
        pose = world_to_camera(camera).double().numpy()
        seen = surface @ pose[:, :3].T + pose[:, 3]
        pixel = np.floor(seen[:, :2] / seen[:, 2:] * (RING.focal_length * size) + size / 2).astype(int)
        inside = ((pixel >= 0) & (pixel < size)).all(1)
        depth = np.full((size, size), np.inf)
        np.minimum.at(depth, (pixel[inside, 1], pixel[inside, 0]), seen[inside, 2])
        depths.append(depth)
    return depths


def thinned(points: np.ndarray, spacing: float = SPACING) -> np.ndarray:
    """Return one point per occupied cell of a grid: the mean of the points in the cell."""
    cells, index, count = np.unique(
        np.floor(points / spacing).astype(int), axis=0, return_inverse=True, return_counts=True
    )
    sums = [np.bincount(index.ravel(), points[:, axis], len(cells)) for axis in range(3)]
    return np.stack(sums, 1) / count[:, None]


def chamfer_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean of two mean distances: from `first` to the nearest points of `second`, and vice versa."""
    there, back = KDTree(second).query(first)[0], KDTree(first).query(second)[0]
    return float((there.mean() + back.mean()) / 2)


def occupancy(surface: np.ndarray, cells: int = CELLS, oversampling: int = 2) -> np.ndarray:
    """Return the occupancy `(cells, cells, cells)` of the solid inside a surface, over [-0.5, 0.5]^3.

    The function marks all cells of a finer grid that contain a point of the surface. These cells form a shell, and the
    function fills the inside of the shell. The shell closes small gaps in the surface, such as the gaps of a scan.

    Each cell of the result is sampled at one point. With an oversampling of 2, this point lies a quarter of a cell
    below the center of the cell on each axis.

    Args:
        surface: Many points on the surface, `(n, 3)`.
        cells: Cells per axis of the result.
        oversampling: Cells of the finer grid per cell of the result, on each axis.
    """
    fine = cells * oversampling
    shell = np.zeros((fine + 2,) * 3, bool)
    index = np.floor((surface + 0.5) * fine).astype(int) + 1
    shell[tuple(index.clip(0, fine + 1).T)] = True
    filled = np.asarray(ndimage.binary_fill_holes(shell))[1:-1, 1:-1, 1:-1]
    return filled[::oversampling, ::oversampling, ::oversampling]


def compare_meshes(ours: trimesh.Trimesh, truth: trimesh.Trimesh, truth_points: np.ndarray) -> dict[str, float]:
    surface, true_surface = surface_points(ours), surface_points(truth)
    seen = thinned(points_of_depth(depths_of(surface)))
    inside, true_inside = occupancy(surface), occupancy(true_surface)
    iou = (inside & true_inside).sum() / (inside | true_inside).sum()
    return {"chamfer": round(chamfer_distance(seen, thinned(truth_points)), 4), "volume_iou": round(float(iou), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks-cache/image-to-3d"))
    parser.add_argument("--size", type=int, default=256, help="pixels per side of hallucinated views; default: 256")
    parser.add_argument("--steps", type=int, help="steps per run, for a trial; default: the preset's")
    parser.add_argument("--only", choices=("hallucinated", "true"), help="run one of the two benchmarks only")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    changes = {} if arguments.steps is None else {"num_inference_steps": arguments.steps}
    result = {}
    if arguments.only != "true":
        result["hallucinated"] = from_hallucinated(arguments.output_dir, arguments.size, changes)
    if arguments.only != "hallucinated":
        result["true"] = from_true(arguments.output_dir, changes)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
