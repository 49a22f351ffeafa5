"""The loops of the hash grid compiled beside a process that starts: only the first time in an environment.

numba keeps what it compiled in a cache on disk. The first run of all would spend a second on it before its first
picture, and another one in its first step; a second core does it while modules are imported.
"""

import os
import subprocess
import sys
from pathlib import Path


LOOPS = Path(__file__).parent / "field" / "hash_grid_cpu.py"
# By its path: to import the module by its name would import the whole package, which is what takes so long. With its
# name, because numba keeps that beside the code.
PROGRAM = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("hifa.field.hash_grid_cpu", sys.argv[1])
sys.modules[spec.name] = module = module_from_spec(spec)
spec.loader.exec_module(module)
module.compile_loops()
"""


def compile_ahead() -> subprocess.Popen | None:
    """Begin to compile in another process, if it was not done before; whoever needs the loops sooner compiles them."""
    if is_compiled():
        return None
    command = [sys.executable, "-P", "-c", PROGRAM, str(LOOPS)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def is_compiled() -> bool:
    """Whether there is compiled code that is newer than the loops, where numba keeps it: beside them, or, where an
    installation cannot be written to, with the user."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"
    named = os.environ.get("NUMBA_CACHE_DIR")
    places = [Path(named)] if named else [LOOPS.parent / "__pycache__", own]
    compiled = (index for place in places for index in place.rglob(f"{LOOPS.stem}.encode_backward-*.nbi"))
    return any(index.stat().st_mtime >= LOOPS.stat().st_mtime for index in compiled)
