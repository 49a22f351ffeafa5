"""Export times of an asset folder.

    python -m benchmarks.export_times ASSET [--repeats 3]

The benchmark times the export of all files together, as in the CLI, and the export of each file alone. Each repeat
loads a new `HiFAAsset`. The last line printed is one JSON object with the shortest wall-clock time and the shortest
CPU time of all repeats, in seconds.

To compare two source trees, run this file twice, with PYTHONPATH set to each tree. This file uses only functions that
exist in both trees.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from hifa import HiFAAsset
from hifa.cli.options import export_asset


def exports(folder: Path) -> dict:
    """Return the exports to time, by name, with the settings of the CLI."""
    options = argparse.Namespace(
        frames=48, frame_size=192, still_size=256, formats=["glb", "ply"], mesh_resolution=128, max_faces=20_000,
        texture_size=1024,
    )  # fmt: skip
    return {
        "all": lambda asset: export_asset(asset, folder, options),
        "turntable": lambda asset: asset.export_video(folder / "turntable.mp4", num_frames=48, size=192),
        "stills": lambda asset: asset.export_stills(folder, 256),
        "glb": lambda asset: asset.export_mesh(folder / "mesh.glb"),
        "ply": lambda asset: asset.export_mesh(folder / "mesh.ply"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("asset", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=["all", "turntable", "stills", "glb", "ply"])
    arguments = parser.parse_args()
    wall, cpu = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        timed = exports(Path(folder))
        HiFAAsset.from_pretrained(arguments.asset).export_video(Path(folder) / "warm.mp4", num_frames=1, size=32)
        for name in arguments.only or timed:
            for _ in range(arguments.repeats):
                asset = HiFAAsset.from_pretrained(arguments.asset)
                began, cpu_began = time.perf_counter(), time.process_time()
                timed[name](asset)
                seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
                wall[name], cpu[name] = min(seconds, wall.get(name, 1e9)), min(cpu_seconds, cpu.get(name, 1e9))
    result = {"wall": wall, "cpu": cpu}
    print(json.dumps({kind: {name: round(s, 2) for name, s in row.items()} for kind, row in result.items()}))


if __name__ == "__main__":
    main()
