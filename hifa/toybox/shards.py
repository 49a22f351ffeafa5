"""Training data in shards: rendered in parallel, one file per 100 scenes, which an interrupted run does not repeat."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from ..atomic import atomically


SHARD = 100  # scenes per file


def make_shards(
    folder: Path,
    scenes: int,
    render: Callable[[int], dict[str, np.ndarray]],
    first_seed: int = 0,
    workers: int | None = None,
) -> None:
    """Render scenes into files of 100. Existing files are kept.

    Args:
        folder: Created if it does not exist.
        scenes: Number of scenes.
        render: Takes the seed of a scene and returns arrays, the first axis being the views of the scene. It must be
            a function of a module, because it runs in other processes.
        first_seed: Seed of the first scene; the others follow.
        workers: Number of processes; one for each core by default.
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
        np.savez(unfinished, **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def load_shards(folder: Path, command: str) -> dict[str, np.ndarray]:
    """Load all files of a folder and join their arrays.

    Args:
        folder: From `make_shards`.
        command: Creates the files, for the error message.

    Raises:
        FileNotFoundError: If the folder holds no files.
    """
    paths = sorted(folder.glob("[0-9]*.npz"))
    if not paths:
        raise FileNotFoundError(f"No training data in {folder}. Create it: {command}")
    parts = []
    for path in paths:
        with np.load(path) as shard:
            parts.append({name: shard[name] for name in shard.files})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
