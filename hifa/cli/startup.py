"""Setup of the process before torch is imported: wait policy of OpenMP, and compilation of the numba loops.

numba caches compiled code on disk. In a new environment the cache is empty, and the first run would spend about two
seconds on compilation. `compile_ahead` compiles in a background process on a second core, while the calling process
imports modules.
"""

import os
import subprocess
import sys
import time
from pathlib import Path


SPINS = "1000"  # iterations of a thread's wait loop, which take a few microseconds
LOADAVG = Path("/proc/loadavg")  # the fourth field: runnable threads / all threads
LOOKS, LOOK_SECONDS = 5, 0.005


def share_cpu() -> None:
    """Make OpenMP threads sleep instead of spin while they wait, if other processes use the CPU.

    Call this function before importing torch, because OpenMP (libgomp) reads `GOMP_SPINCOUNT` during the import. If
    the environment sets `GOMP_SPINCOUNT` or `OMP_WAIT_POLICY`, the function changes nothing.

    A spinning thread occupies a core that the awaited thread could use. On two idle cores, spinning reduces the
    step time by a sixth. With another process on one of the cores, spinning made a step thirty to fifty times slower,
    because the awaited thread had to wait for a time slice of the other process. A time slice is as long as a thousand
    usual waits.
    """
    if not any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")) and others_run():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def others_run() -> bool:
    """Return whether another thread was runnable in most of `LOOKS` samples of the system load.

    Return `False` on systems without `/proc/loadavg`.
    """
    seen = 0
    for _ in range(LOOKS):
        try:
            seen += int(LOADAVG.read_text().split()[3].partition("/")[0]) > 1
        except (OSError, ValueError, IndexError):
            return False
        time.sleep(LOOK_SECONDS)
    return seen > LOOKS / 2


PACKAGE = Path(__file__).parents[1]
# The modules in the order of use, each with the loop that `compile_loops` compiles last.
MODULES = {
    "field.hash_grid_cpu": "encode_backward",
    "rendering.density_grid_cpu": "place",
    "export.opacity_cpu": "sweep",
    "export.decimate_cpu": "collapse",
    "export.texture_cpu": "rasterize",
}
# Modules are loaded by path: importing a module by name would import the whole package, which is slow. The modules
# keep their names, because numba stores the names with the compiled code.
PROGRAM = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
from filelock import FileLock, Timeout
try:
    FileLock(sys.argv[1]).acquire(timeout=0)
except Timeout:  # another process is compiling
    sys.exit()
for name, path in zip(sys.argv[2::2], sys.argv[3::2]):
    spec = spec_from_file_location(name, path)
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.compile_loops()
"""


def compile_ahead() -> subprocess.Popen | None:
    """Start a background process that compiles the loops, unless they are cached.

    Calling a loop that is not compiled yet compiles the loop in the calling process. If two background processes are
    started at once, the second process ends without compiling.

    Returns:
        The process, or `None` if all loops are cached.
    """
    if is_compiled():
        return None
    named = [part for name in MODULES for part in (f"hifa.{name}", str(_path_of(name)))]
    lock = _user_cache() if not os.access(PACKAGE, os.W_OK) else PACKAGE / "__pycache__"
    lock.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-c", PROGRAM, str(lock / "compile_ahead.lock"), *named]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def is_compiled() -> bool:
    """Return whether numba's cache has code for all loops that is newer than their modules.

    The cache is next to the modules, or in the user's cache folder if the installation is read-only.
    """
    return all(_is_compiled(_path_of(name), last) for name, last in MODULES.items())


def _is_compiled(path: Path, loop: str) -> bool:
    named = os.environ.get("NUMBA_CACHE_DIR")
    places = [Path(named)] if named else [path.parent / "__pycache__", _user_cache()]
    compiled = (index for place in places for index in place.rglob(f"{path.stem}.{loop}-*.nbi"))
    return any(index.stat().st_mtime >= path.stat().st_mtime for index in compiled)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"


def _path_of(name: str) -> Path:
    return PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
