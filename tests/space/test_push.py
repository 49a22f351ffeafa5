"""The Space as it is uploaded: exactly what it needs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import SpaceHardware

from hifa.space.__main__ import main
from hifa.space.deploy.push import ROOT, pictures_of, push_space, space_files
from hifa.space.jobs.models import PRIORS
from tests.helpers.hub_server import hub_server


def test_a_dry_run_lists_the_files_and_uploads_nothing(capsys):
    assert main(["push", "me/hifa"]) == 0
    out = capsys.readouterr().out
    assert "app.py" in out and "Dry run: nothing was uploaded" in out


def test_a_bad_name_is_refused_by_the_dry_run_too(capsys):
    assert main(["push", "mushroom"]) == 2
    assert "user/name" in capsys.readouterr().err


def git(folder: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()


def checkout(folder: Path) -> Path:
    """A repository with what no Space runs without."""
    for path in ("app.py", "README.md", "requirements.txt", "hifa/pipeline_hifa.py"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"{path}\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    return folder


def test_nothing_is_uploaded_that_is_not_in_the_repository_and_nothing_else_than_the_app():
    files, tracked = space_files(), git(ROOT, "ls-files")
    assert set(files) <= set(tracked)
    weights = [path for path in tracked if path.startswith("hifa/") and "weights/" in path]
    assert {path.split("/")[2] for path in weights} == {"weights", "multiview_weights", "surface_weights"}
    assert set(weights) <= set(files)
    assert {path for path in tracked if path.startswith("hifa/") and path.endswith(".py")} <= set(files)
    # The page of the Space's repository links the guides in the packages.
    assert set(re.findall(r"\]\((hifa/\w+/README\.md)", (ROOT / "README.md").read_text())) <= set(files)
    others = set(files) - pictures_of((ROOT / "README.md").read_text())
    assert not [
        path for path in others if path.startswith(("tests/", "benchmarks/", "outputs/", ".")) or "__pycache__" in path
    ]


def test_every_picture_that_the_readme_shows_is_uploaded_and_no_other(tmp_path):
    """README is the page of the Space's repository, where a picture that was not uploaded is a broken one."""
    files, readme = space_files(), (ROOT / "README.md").read_text()
    # Found otherwise than by the program: every name of a picture in the text that is no address.
    written = set(re.findall(r"(?<![\w./:-])[\w./-]+\.(?:png|jpg|jpeg|gif|svg|webp)\b", readme.split("---", 2)[2]))
    shown = {path for path in written if (ROOT / path).is_file() and f"]({path})" in readme}
    assert "examples/pictures/overview.png" in shown and len(shown) >= 3
    assert shown <= set(files)
    pictures = {path for path in files if path.startswith(("examples/pictures/", "benchmarks/"))}
    assert pictures == shown
    # A link that leads nowhere would not be noticed above.
    assert not [path for path in pictures_of(readme) if path not in files]


@pytest.mark.parametrize("markdown, pictures", [
    ("![a mushroom](examples/a.png) and ![](./b/c.jpg)", {"examples/a.png", "b/c.jpg"}),
    ('![a](a.png "with a title"), [no picture](b.png)', {"a.png"}),
    ("[![a badge](https://example.org/a.png)](b.md)", set()),
    ('<img width=300 src="a%20b.png"> <img src="data.svg?raw=true"/>', {"a b.png", "data.svg"}),
])  # fmt: skip
def test_pictures_of_a_text(markdown, pictures):
    assert pictures_of(markdown) == pictures


def test_what_only_lies_around_stays_at_home(tmp_path):
    checkout(tmp_path)
    (tmp_path / "hifa" / "my_token.py").write_text("token = 'hf_me'")
    (tmp_path / "hifa" / "toybox" / "weights").mkdir(parents=True)
    (tmp_path / "hifa" / "toybox" / "weights" / "try.safetensors").touch()
    # README names what is not in the repository, and what is not below it.
    (tmp_path / "picture.png").touch()
    (tmp_path / "README.md").write_text("![lies around](picture.png) ![outside](../picture.png) ![gone](gone.png)")
    assert space_files(tmp_path) == ["README.md", "app.py", "hifa/pipeline_hifa.py", "requirements.txt"]


def test_what_the_app_imports_is_uploaded(tmp_path):
    """The app runs from a folder that has only what is uploaded."""
    for path in space_files():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).symlink_to(ROOT / path)
    code = "import app; from pathlib import Path; app.build_demo(Path('runs')); print('built')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("built\n"), done.stderr[-2000:]


def test_it_goes_to_the_hub(tmp_path):
    checkout(tmp_path)
    (tmp_path / "secret.txt").write_text("no")
    with hub_server() as hub:
        url = push_space("me/hifa", tmp_path, token="hf_me", endpoint=hub.address)
        repo = hub.repo("me/hifa", "space")
    assert url.endswith("/spaces/me/hifa") and repo.visibility == "private"
    assert set(repo.files) - {".gitattributes"} == {"app.py", "README.md", "requirements.txt", "hifa/pipeline_hifa.py"}
    assert repo.files["requirements.txt"].decode().startswith("requirements.txt\nrembg[cpu]>=2.0.60 ")
    assert (tmp_path / "requirements.txt").read_text() == "requirements.txt\n"


def test_a_folder_without_the_app_or_without_git_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a git checkout"):
        space_files(tmp_path)
    git(tmp_path, "init", "-q")
    with pytest.raises(ValueError, match="app.py, README.md"):
        space_files(tmp_path)


def test_the_front_matter_of_the_space_fits():
    front = yaml.safe_load(Path(ROOT / "README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio" and (ROOT / front["app_file"]).is_file()
    assert front["hf_oauth_scopes"] == ["contribute-repos"] and front["python_version"] in ("3.12", "3.10")
    assert len(front["short_description"]) <= 60
    # What it can load is named, so that the Hub links them, and what it loads first is there when it starts.
    repositories = ["/".join(prior.model.split("/")[:2]) for prior in PRIORS if isinstance(prior.model, str)]
    assert set(repositories) == set(front["models"])
    assert front["preload_from_hub"][0].split()[0] == repositories[0]
    assert front["suggested_hardware"] in {hardware.value for hardware in SpaceHardware}
    requirement = re.search(r"^gradio\S*>=([\d.]+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert front["sdk_version"].startswith(requirement[1])
