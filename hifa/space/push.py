"""The Space itself as a Space: exactly the files that it needs, and nothing else."""

import posixpath
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import HfApi


ROOT = Path(__file__).parents[2]
README = "README.md"
# What the app reads: itself, the package with its weights, the finished examples, and what the Space is built from.
NEEDED = (
    "app.py", README, "LICENSE", "requirements.txt", "packages.txt", "hifa/**/*.py",
    "hifa/**/*weights/**/*", "examples/gallery/*/*", "examples/photos/*",
)  # fmt: skip
REQUIRED = ("app.py", README, "requirements.txt", "hifa/pipeline_hifa.py")
PICTURE = re.compile(r"!\[[^\]]*\]\(\s*([^)\s]+)|<img\s[^>]*?src=[\"']([^\"']+)")  # in Markdown and in HTML

# On a computer the user chooses to install this; a Space cuts objects out of any picture.
REQUIREMENTS, ON_A_SPACE = "requirements.txt", "rembg[cpu]>=2.0.60           # cuts objects out of their background\n"


def space_files(root: Path = ROOT) -> list[str]:
    """Paths below `root` of everything that is uploaded, sorted: what the Space needs and what its README shows, of
    what git keeps, so that no file that only lies around gets out.

    Raises:
        ValueError: If `root` is no checkout, or something is missing in it that no Space runs without.
    """
    found = {path.relative_to(root).as_posix() for pattern in NEEDED for path in root.glob(pattern) if path.is_file()}
    tracked = _tracked(root)
    missing = [path for path in REQUIRED if path not in found & tracked]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing in {root}. Run this in a checkout of the repository.")
    shown = {path for path in pictures_of((root / README).read_text(encoding="utf-8")) if (root / path).is_file()}
    return sorted((found | shown) & tracked)


def pictures_of(markdown: str) -> set[str]:
    """The pictures that a text shows and that are not somewhere on the web, as paths below its folder."""
    links = {unquote(urlsplit(link).path) for pair in PICTURE.findall(markdown) for link in pair if "://" not in link}
    return {posixpath.normpath(link) for link in links if link}


def _tracked(root: Path) -> set[str]:
    """Paths that git keeps.

    Raises:
        ValueError: If there is no git, or `root` is no checkout.
    """
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{root} is no git checkout, so what belongs to the Space is not known. Clone it.") from error
    return set(listed.stdout.split("\0")) - {""}


def push_space(
    repo_id: str, root: Path = ROOT, *, private: bool = True, token: str | None = None, endpoint: str | None = None
) -> str:
    """Create the Space if it is not there and make its files those of `space_files`; returns its address.

    What the Space has and this checkout has not is deleted, so that nothing old is left. Its requirements are those of
    this checkout and `ON_A_SPACE`.
    """
    from ..export.hub import check_repo_id, telling

    api = HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory() as staged, telling(repo_id):
        for path in space_files(root):
            (Path(staged) / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, Path(staged) / path)
        with open(Path(staged) / REQUIREMENTS, "a") as file:
            file.write(ON_A_SPACE)
        url = api.create_repo(
            check_repo_id(repo_id), repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        )
        api.upload_folder(
            repo_id=repo_id, repo_type="space", folder_path=staged, delete_patterns="*",
            commit_message="Update the Space",
        )  # fmt: skip
    return str(url)
