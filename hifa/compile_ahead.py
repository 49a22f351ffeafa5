"""The compiled loops of a CPU made beside a process that starts: only the first time in an environment.

numba keeps what it compiled in a cache on disk. The first run of all would spend a second on it before its first
picture, and another one in its first step; a second core does it while modules are imported.
"""

import os
import subprocess
import sys
from pathlib import Path


PACKAGE = Path(__file__).parent
# Each with the loop that it compiles last, in the order in which they are needed: the first preview has no grid.
MODULES = {
    "field.hash_grid_cpu": "encode_backward",
    "rendering.density_grid_cpu": "place",
    "export.opacity_cpu": "sweep",
    "export.decimate_cpu": "collapse",
    "export.texture_cpu": "rasterize",
}
# By their paths: to import a module by its name would import the whole package, which is what takes so long. With
# their names, because numba keeps those beside the code.
PROGRAM = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
for name, path in zip(sys.argv[1::2], sys.argv[2::2]):
    spec = spec_from_file_location(name, path)
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.compile_loops()
"""


def compile_ahead() -> subprocess.Popen | None:
    """Begin to compile in another process, if it was not done before; whoever needs a loop sooner compiles it."""
    if is_compiled():
        return None
    named = [part for name in MODULES for part in (f"{__package__}.{name}", str(_path_of(name)))]
    command = [sys.executable, "-P", "-c", PROGRAM, *named]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def is_compiled() -> bool:
    """Whether there is compiled code that is newer than the loops, where numba keeps it: beside them, or, where an
    installation cannot be written to, with the user."""
    return all(_is_compiled(_path_of(name), last) for name, last in MODULES.items())


def _is_compiled(path: Path, loop: str) -> bool:
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"
    named = os.environ.get("NUMBA_CACHE_DIR")
    places = [Path(named)] if named else [path.parent / "__pycache__", own]
    compiled = (index for place in places for index in place.rglob(f"{path.stem}.{loop}-*.nbi"))
    return any(index.stat().st_mtime >= path.stat().st_mtime for index in compiled)


def _path_of(name: str) -> Path:
    return PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
