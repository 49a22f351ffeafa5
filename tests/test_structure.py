"""Test the structure of the repository: which modules may import which others."""

import ast
from pathlib import Path

import pytest

import hifa
from tests.helpers.paths import ROOT


# The packages of `hifa`, lowest first. A package may import only from those before it, so there are no cycles.
ORDER = (
    *("view_words", "cameras", "schedule", "settings", "presets", "storage", "toybox", "field", "rendering", "losses"),
    *("config", "prompts", "photo_cutout", "export", "asset", "priors", "multiview", "optimization"),
    *("pipeline_output", "pipeline_hifa", "particles", "toybox.training", "cli", "batch", "__main__"),
    *("space.jobs", "space.ui", "space.deploy", "space"),
)


def module_files(folder: str) -> dict[str, Path]:
    """Return the modules below a folder of the repository, by their dotted names."""
    files = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imported_names(module: str, path: Path) -> set[str]:
    """Return the dotted names that a module imports anywhere, except under `if TYPE_CHECKING`."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names, nodes = set(), [ast.parse(path.read_text("utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            source = ".".join([*parents, *filter(None, [node.module])])
            names.update(f"{source}.{alias.name}" for alias in node.names)
        nodes.extend(ast.iter_child_nodes(node))
    return names


def imported_modules(module: str, files: dict[str, Path]) -> set[str]:
    """Return those of the given modules that a module imports, or from which it imports a name."""
    found = set()
    for name in imported_names(module, files[module]):
        if name.startswith("hifa.") and name[5:] in hifa._MODULES:
            name = f"hifa.{hifa._MODULES[name[5:]]}"
        while name and name not in files:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", "hifa", module}


def package_of(module: str) -> str:
    """Return the package of a module as `ORDER` has it: the longest entry that the module is in."""
    inside = module.removeprefix("hifa.")
    return max((name for name in ORDER if f"{inside}.".startswith(f"{name}.")), key=len, default=inside)


def is_test_module(module: str) -> bool:
    return module.rpartition(".")[2].startswith("test_")


def test_no_test_module_imports_another():
    files = module_files("tests")
    wrong = [
        f"{module} imports {other}"
        for module in files
        for other in sorted(imported_modules(module, files))
        if is_test_module(other)
    ]
    assert not wrong, "\n".join(["move what test modules share to tests/helpers:", *wrong])


def test_packages_import_only_from_lower_ones():
    files = module_files("hifa")
    del files["hifa"]
    unknown = {package_of(module) for module in files} - set(ORDER)
    assert not unknown, f"give these packages a place in ORDER: {sorted(unknown)}"
    wrong = [
        f"{module} imports {other}"
        for module in files
        for other in sorted(imported_modules(module, files))
        if ORDER.index(package_of(other)) > ORDER.index(package_of(module))
    ]
    assert not wrong, "\n".join(["imports from a higher package:", *wrong])


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from ..field import hash_grid", "hifa.field.hash_grid"),
        ("from . import world", "hifa.toybox.world"),
        ("from .world import COLORS", "hifa.toybox.world.COLORS"),
        ("import hifa.field", "hifa.field"),
        ("def work():\n    from hifa import HiFARun", "hifa.HiFARun"),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy", "numpy"),
    ],
)
def test_imports_are_read_by_their_full_names(tmp_path, line, name):
    (tmp_path / "kinds.py").write_text(line)
    assert imported_names("hifa.toybox.object_kinds", tmp_path / "kinds.py") == {name}
