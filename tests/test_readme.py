"""README's Python: every name in it is there, and what needs no Hub runs."""

import ast
import builtins
import re
from pathlib import Path

import pytest

from hifa import HiFAAsset, HiFAPipeline

from .test_pipeline import TINY


README = Path(__file__).parents[1] / "README.md"
# What makes a test wait, and what is run in its place.
SHORTER = {
    "num_inference_steps=400": "num_inference_steps=8",
    "steps=100": "steps=4",
    "manual_seed(0))": "manual_seed(0), num_frames=2, frame_size=32)",
    '"mushroom.mp4"': '"mushroom.mp4", num_frames=2, size=32',
    '"mushroom.glb"': '"mushroom.glb", resolution=32, texture_size=64',
}
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def names(block: str, context: type) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Name) and type(node.ctx) is context}


def imported(block: str) -> set[str]:
    lists = [node.names for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for aliases in lists for alias in aliases}


def test_every_name_was_imported_or_made_before():
    known = set(dir(builtins))
    for block in BLOCKS:
        known |= imported(block) | names(block, ast.Store)
        assert names(block, ast.Load) <= known, block


@pytest.fixture
def short_runs(monkeypatch):
    """The embedded prior's runs take three steps of small pictures."""
    monkeypatch.setattr(HiFAPipeline, "default_config", lambda *_, **__: TINY)


def test_what_needs_no_hub_runs(short_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there: dict = {}
    for block in BLOCKS[:2]:
        for written, shorter in SHORTER.items():
            block = block.replace(written, shorter)
        exec(block, there)
    assert {"front.png", "mushroom.glb", "mushroom.mp4", "mushroom", "runs"} == {p.name for p in tmp_path.iterdir()}
    assert HiFAAsset.from_pretrained("mushroom").prompt == "a red mushroom"
    assert there["run"].step == 4 and there["step"].step == 8
