"""Training data in shards of 100 scenes, rendered in parallel. A repeated command keeps existing shards."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from ...storage.files import atomically


SHARD = 100  # scenes per file


def make_shards(
    folder: Path,
    scenes: int,
    render: Callable[[int], dict[str, np.ndarray]],
    first_seed: int = 0,
    workers: int | None = None,
) -> None:
    """Render scenes into files of 100 scenes each. Existing files are kept.

    Args:
        folder: Output folder. The folder is created if it does not exist.
        scenes: Number of scenes.
        render: Function from the seed of a scene to arrays by name. The files concatenate the arrays of all scenes
            along the first axis. `render` must be picklable, because other processes call `render`.
        first_seed: Seed of the first scene. The following scenes have consecutive seeds.
        workers: Number of processes. The default is one process per core.
    """
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(first_seed, first_seed + scenes, SHARD)
    write = partial(_write_shard, folder, render, first_seed + scenes)
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(write, firsts), 1):
            print(f"{min(done * SHARD, scenes)} of {scenes} scenes", flush=True)


def _write_shard(folder: Path, render: Callable[[int], dict[str, np.ndarray]], end: int, first: int) -> None:
    path = folder / f"{first:08d}.npz"
    if path.exists():
        return
    rows = [render(seed) for seed in range(first, min(first + SHARD, end))]
    with atomically(path) as unfinished:
        np.savez(unfinished, **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})  # pyright: ignore[reportArgumentType]


def load_shards(folder: Path, command: str) -> dict[str, np.ndarray]:
    """Load all files of a folder and concatenate the arrays along the first axis.

    Args:
        folder: Output folder of `make_shards`.
        command: Command that creates the files, for the error message.

    Raises:
        FileNotFoundError: If the folder has no files.
    """
    paths = sorted(folder.glob("[0-9]*.npz"))
    if not paths:
        raise FileNotFoundError(f"No training data in {folder}. Create the data with: {command}")
    parts = []
    for path in paths:
        with np.load(path) as shard:
            parts.append({name: shard[name] for name in shard.files})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
