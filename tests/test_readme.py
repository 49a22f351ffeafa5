"""Every README of the repository: its Python runs or names what exists, and its commands fit their parsers."""

import argparse
import ast
import builtins
import importlib
import inspect
import re
import shlex
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import PIL.Image
import pytest

from hifa import HiFAAsset, HiFAConfig, HiFAPipeline, HiFARun, Photo
from hifa.multiview import SyncDreamerPipeline
from hifa.space.deploy.warm_up import drawn_ball
from tests.helpers.paths import ROOT
from tests.helpers.runs import TINY
from tests.helpers.syncdreamer import tiny_pipeline


README = ROOT / "README.md"
READMES = [README, *sorted(ROOT.glob("hifa/*/README.md")), ROOT / "benchmarks" / "README.md"]
# Weights of these owners are on the Hub, and `from_single_file()` is of a published checkpoint.
ON_THE_HUB = re.compile(
    r'"(stable-diffusion-v1-5|sd2-community|stabilityai|madebyollin|MVDream|DeepFloyd|prs-eth|Intel)/|from_single_file\('
)
CLASSES = (HiFAPipeline, HiFAConfig, HiFARun, HiFAAsset, SyncDreamerPipeline)
SETTINGS = {field.name for field in fields(HiFAConfig)}
COMMAND = re.compile(r"`(?:\S*/)?python -m ((?:hifa|benchmarks|examples)\b[\w.]*)([^`]*)`")
PARSE_ARGS = argparse.ArgumentParser.parse_args


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)


def prose(readme: Path) -> str:
    return re.sub(r"```.*?```", "", readme.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(params=READMES, ids=lambda path: path.relative_to(ROOT).parent.as_posix())
def readme(request) -> Path:
    return request.param


def names(block: str, context: type) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Name) and type(node.ctx) is context}


def imports(block: str) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(block: str) -> set[str]:
    return {alias.asname or alias.name for node in imports(block) for alias in node.names}


# Python


def test_every_name_was_imported_or_made_before(readme):
    known = set(dir(builtins))
    for block in blocks(readme, "python"):
        known |= imported(block) | names(block, ast.Store)
        assert names(block, ast.Load) <= known, block


def test_every_import_exists(readme):
    for block in blocks(readme, "python"):
        exec("\n".join(ast.unparse(node) for node in imports(block)), {})


def parameters(name: str) -> set[str]:
    """Keyword arguments that the public methods of a name accept, with the settings where they accept any."""
    methods = [getattr(kind, name) for kind in CLASSES if callable(getattr(kind, name, None))]
    accepted = [parameter for method in methods for parameter in inspect.signature(method).parameters.values()]
    known = {parameter.name for parameter in accepted}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted):
        known |= SETTINGS
    if name == "from_pretrained":
        known |= set(inspect.signature(HiFAPipeline).parameters) | {"dtype", "variant"}
    return known


def test_every_keyword_is_an_argument_or_a_setting(readme):
    for block in blocks(readme, "python"):
        for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", "__call__" if getattr(call.func, "id", "") == "pipe" else "")
            given = {keyword.arg for keyword in call.keywords}
            if name == "replace":
                assert given <= SETTINGS, block
            elif any(hasattr(kind, name) for kind in CLASSES):
                assert given <= parameters(name), (block, given - parameters(name))


def test_settings_in_the_text_exist(readme):
    text = prose(readme)
    known = SETTINGS | parameters("__call__") | parameters("from_pretrained") | parameters("from_single_file")
    known |= {field.name for field in fields(Photo)}
    assert set(re.findall(r"`(\w+)=", text)) - {"HIFA_NORMALS"} <= known
    assert set(re.findall(r"`(lambda_\w+)`", text)) <= SETTINGS
    presets = set(re.findall(r"HiFAConfig\.(\w+)\(", text))
    assert all(isinstance(getattr(HiFAConfig, name)(), HiFAConfig) for name in presets)


@pytest.fixture
def short_runs(monkeypatch):
    """Runs take three steps, and pictures, meshes and the multi-view model are small."""
    call, mesh, video = HiFAPipeline.__call__, HiFAAsset.export_mesh, HiFAAsset.export_video

    def short_call(pipe, *args, **kwargs):
        return call(pipe, *args, **{"num_frames": 2, "frame_size": 32} | kwargs)

    def small_mesh(asset, path, resolution=0, max_faces=20_000, texture_size=0):
        return mesh(asset, path, resolution=32, max_faces=max_faces, texture_size=64)

    def small_video(asset, path):
        return video(asset, path, num_frames=2, size=32)

    multiview = tiny_pipeline()
    monkeypatch.setattr(HiFAPipeline, "default_config", lambda *_, **__: TINY)
    monkeypatch.setattr(HiFAPipeline, "embedded_multiview", lambda _: multiview)
    monkeypatch.setattr(HiFAPipeline, "__call__", short_call)
    monkeypatch.setattr(HiFAAsset, "export_mesh", small_mesh)
    monkeypatch.setattr(HiFAAsset, "export_video", small_video)
    monkeypatch.setattr(PIL.Image.Image, "show", lambda _: None)


def shorter(block: str) -> str:
    return re.sub(r"\bsteps=\d+", "steps=4", re.sub(r"num_inference_steps=\d+", "num_inference_steps=8", block))


def draw_inputs(folder: Path) -> set[str]:
    """Write the pictures that the blocks read; returns the names of all files in the folder."""
    ball = drawn_ball().resize((32, 32))
    sheet = PIL.Image.new("RGB", (16 * 32, 32), "white")
    for view in range(16):
        sheet.paste(ball.convert("RGB"), (view * 32, 0))
    sheet.save(folder / "sheet.png")
    ball.save(folder / "duck.png")
    ball.convert("RGB").save(folder / "photo.jpg")
    return {path.name for path in folder.iterdir()}


def run_blocks(readme: Path) -> tuple[dict, list[str]]:
    """Run what needs neither the Hub nor anything from a block that does; returns the variables and the rest."""
    there, left = {}, []
    for block in blocks(readme, "python"):
        missing = names(block, ast.Load) - set(there) - imported(block) - names(block, ast.Store) - set(dir(builtins))
        if ON_THE_HUB.search(block) or missing:
            left.append(block)
        else:
            exec(shorter(block), there)
    return there, left


def test_what_needs_no_hub_runs(short_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = draw_inputs(tmp_path)
    there, left = run_blocks(README)
    assert not left
    made = {"front.png", "mushroom.glb", "mushroom.mp4", "mushroom", "runs", "duck.glb"}
    assert made == {path.name for path in tmp_path.iterdir()} - given
    assert HiFAAsset.from_pretrained("mushroom").prompt == "a red mushroom"
    assert there["run"].step == 4 and there["step"].step == 8


@pytest.mark.parametrize("package, on_the_hub", [("multiview", 1), ("export", 0)])
def test_what_needs_no_hub_runs_in_a_package(package, on_the_hub, short_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_inputs(tmp_path)
    _, left = run_blocks(ROOT / "hifa" / package / "README.md")
    assert len(left) == on_the_hub


# Commands


class Found(Exception):
    """Carries the parser of a command out of its `main`."""


@cache
def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of `python -m module`; one without options for a program that has no parser."""
    package = find_spec(module).submodule_search_locations is not None
    program = importlib.import_module(f"{module}.__main__" if package else module)
    if "ArgumentParser" not in inspect.getsource(program):
        return argparse.ArgumentParser()

    def find(parser: argparse.ArgumentParser, *_) -> None:
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr(argparse.ArgumentParser, "parse_args", find)
        program.main()
    return found.value.args[0]


def commands(readme: Path) -> list[list[str]]:
    """Module and arguments of each command of ours in the shell blocks."""
    found = []
    for line in "".join(blocks(readme, "bash")).replace("\\\n", " ").splitlines():
        for part in " ".join(shlex.quote(word) for word in shlex.split(line, comments=True)).split(" '&&' "):
            words = shlex.split(part)
            if "-m" in words and words[words.index("-m") + 1].split(".")[0] in ("hifa", "benchmarks", "examples"):
                found.append(words[words.index("-m") + 1 :])
    return found


def options(parser: argparse.ArgumentParser) -> set[str]:
    nested = [action.choices.values() for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return set(parser._option_string_actions).union(*(options(sub) for subs in nested for sub in subs))


def test_commands_in_shell_blocks_parse(readme, capsys):
    for module, *arguments in commands(readme):
        try:
            PARSE_ARGS(parser_of(module), arguments)
        except SystemExit as end:
            assert not end.code, f"{module} {arguments}: {capsys.readouterr().err}"


def test_commands_in_the_text_have_these_options(readme):
    for module, arguments in COMMAND.findall(prose(readme)):
        given = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", arguments))
        assert given <= options(parser_of(module)), (module, given)


def test_options_in_the_text_are_of_the_main_command_or_of_another(readme):
    """Options on their own, such as `--model ID`, belong to some command that the same page names, or to `hifa`."""
    modules = {module for module, _ in COMMAND.findall(prose(readme))} | {module for module, *_ in commands(readme)}
    known = set().union(*(options(parser_of(module)) for module in {"hifa", *modules}))
    assert set(re.findall(r"`(--[a-z][\w-]*)", prose(readme))) <= known


def test_links_lead_somewhere(readme):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(readme))
    paths = [(readme.parent / link.partition("#")[0]) for link in links if "://" not in link and link[0] != "#"]
    assert not [path for path in paths if not path.exists()]
    for link in (link for link in links if "://" not in link and "#" in link):
        page, _, anchor = link.partition("#")
        text = ((readme.parent / page) if page else readme).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link
