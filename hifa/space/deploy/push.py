"""Upload of the app as a Hugging Face Space, with exactly the files that the Space needs."""

import posixpath
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import HfApi


ROOT = Path(__file__).parents[3]
README = "README.md"
# Files of the app: code, the package with its weights, finished examples, and the build files of the Space.
NEEDED = (
    "app.py", README, "LICENSE", "requirements.txt", "packages.txt", "hifa/**/*.py",
    "hifa/**/*weights/**/*", "hifa/*/README.md", "examples/gallery/*/*", "examples/photos/*",
)  # fmt: skip
REQUIRED = ("app.py", README, "requirements.txt", "hifa/pipeline_hifa.py")
PICTURE = re.compile(r"!\[[^\]]*\]\(\s*([^)\s]+)|<img\s[^>]*?src=[\"']([^\"']+)")  # in Markdown and in HTML

# rembg is optional in a local installation. A Space needs rembg to cut objects out of any picture.
REQUIREMENTS, ON_A_SPACE = "requirements.txt", "rembg[cpu]>=2.0.60           # cuts objects out of their background\n"


def space_files(root: Path = ROOT) -> list[str]:
    """Return the sorted paths of all files to upload, relative to `root`.

    These are the files that the Space needs and the pictures of its README. Only files that git tracks are included,
    so that stray files are never published.

    Raises:
        ValueError: If `root` is not a git checkout, or a required file is missing.
    """
    found = {path.relative_to(root).as_posix() for pattern in NEEDED for path in root.glob(pattern) if path.is_file()}
    tracked = _tracked(root)
    missing = [path for path in REQUIRED if path not in found & tracked]
    if missing:
        raise ValueError(f"Missing in {root}: {', '.join(missing)}. Run this command in a checkout of the repository.")
    shown = {path for path in pictures_of((root / README).read_text(encoding="utf-8")) if (root / path).is_file()}
    return sorted((found | shown) & tracked)


def pictures_of(markdown: str) -> set[str]:
    """Return the local pictures of a Markdown text, as paths relative to its folder. Web addresses are left out."""
    links = {unquote(urlsplit(link).path) for pair in PICTURE.findall(markdown) for link in pair if "://" not in link}
    return {posixpath.normpath(link) for link in links if link}


def _tracked(root: Path) -> set[str]:
    """Return the paths of all files that git tracks.

    Raises:
        ValueError: If git is not installed, or if `root` is not a git checkout.
    """
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{root} is not a git checkout. Run this command in a clone of the repository.") from error
    return set(listed.stdout.split("\0")) - {""}


def push_space(
    repo_id: str, root: Path = ROOT, *, private: bool = True, token: str | None = None, endpoint: str | None = None
) -> str:
    """Create the Space if necessary, upload `space_files`, and return the URL of the Space.

    Files of the Space that this checkout lacks are deleted, so that no outdated files remain. The requirements of the
    Space are those of this checkout and `ON_A_SPACE`.
    """
    from ...export.hub import check_repo_id, telling

    api = HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory() as staged, telling(repo_id):
        for path in space_files(root):
            (Path(staged) / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, Path(staged) / path)
        with (Path(staged) / REQUIREMENTS).open("a") as file:
            file.write(ON_A_SPACE)
        url = api.create_repo(
            check_repo_id(repo_id), repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        )
        api.upload_folder(
            repo_id=repo_id, repo_type="space", folder_path=staged, delete_patterns="*",
            commit_message="Update the Space",
        )  # fmt: skip
    return str(url)
