"""Check GLB and glTF files with the Khronos glTF validator, in Node.js.

    python -m benchmarks.gltf_validator mesh.glb [...]

Install the validator with `npm install gltf-validator` in any folder, and set
HIFA_GLTF_VALIDATOR=FOLDER/node_modules/gltf-validator. The exit code is 1 if a file has an error.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path


VARIABLE = "HIFA_GLTF_VALIDATOR"
SCRIPT = """
const [module, ...paths] = process.argv.slice(1);
const validator = require(require('path').resolve(module));
const read = path => new Uint8Array(require('fs').readFileSync(path));
Promise.all(paths.map(path => validator.validateBytes(read(path), {maxIssues: 0})))
  .then(reports => console.log(JSON.stringify(reports)));
"""


def validate(paths: list[Path], module: str | os.PathLike | None = None) -> list[dict]:
    """Return the report of the validator for each file.

    Args:
        paths: GLB or glTF files.
        module: Folder of the npm package `gltf-validator`. Defaults to the value of `HIFA_GLTF_VALIDATOR`.

    Raises:
        RuntimeError: If the validator is missing or fails.
    """
    module = module or os.environ.get(VARIABLE)
    if not module or not (Path(module) / "package.json").is_file():
        raise RuntimeError(
            f"{VARIABLE} is {module!r}, not the folder of Khronos' validator. Run `npm i gltf-validator` in a "
            f"temporary folder and set {VARIABLE} to its node_modules/gltf-validator."
        )
    command = ["node", "-e", SCRIPT, "--", str(module), *map(str, paths)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"node cannot run the validator: {error}") from error
    if ended.returncode:
        raise RuntimeError(f"The validator failed: {ended.stderr.strip()}")
    return json.loads(ended.stdout)


def errors(report: dict) -> list[str]:
    """Return the codes of the errors (severity 0) in a report, one per issue."""
    return [issue["code"] for issue in report["issues"]["messages"] if issue["severity"] == 0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    files = parser.parse_args().files
    found = {str(path): errors(report) for path, report in zip(files, validate(files), strict=True)}
    for path, codes in found.items():
        print(f"{path}: {len(codes)} errors{''.join(f', {code}' for code in sorted(set(codes)))}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
