"""Test what `python -m hifa` and the API export when a part of the export fails or is interrupted."""

import os
import signal
import time

import pytest

from hifa import HiFAAsset, HiFARun
from hifa.export.asset_files import ExportError
from tests.helpers.runs import QUICK


def break_unwrap(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("xatlas ran out of charts")

    monkeypatch.setattr("hifa.export.texture.unwrap", fail)


def test_without_ffmpeg_all_else_is_exported(cli, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "missing"))
    out = tmp_path / "out"
    assert cli("a red ball", "--steps", "2", "--output-dir", str(out), *QUICK) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: turntable.mp4: ") and "ffmpeg" in errors[0]
    names = {path.name for path in out.iterdir()}
    assert {"front.png", "depth.png", "mesh.glb", "mesh.ply"} <= names and "turntable.mp4" not in names


def test_without_unwrapping_there_is_a_ply_and_all_else(cli, tmp_path, capsys, monkeypatch):
    break_unwrap(monkeypatch)
    assert cli("a red ball", "--steps", "2", "--output-dir", str(tmp_path), *QUICK) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == ["error: mesh.glb: xatlas ran out of charts"]
    assert {"turntable.mp4", "front.png", "mesh.ply"} <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "mesh.glb").exists()


def test_the_api_writes_all_files_but_the_one_that_fails(saved, tmp_path, monkeypatch):
    break_unwrap(monkeypatch)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "missing"))
    asset = HiFARun.load(saved("run")).asset()
    with pytest.raises(ExportError) as caught:
        asset.export(tmp_path / "files", num_frames=2, frame_size=32)
    assert [line.partition(":")[0] for line in caught.value.failures] == ["turntable.mp4", "mesh.glb"]
    assert {"front.png", "depth.png", "back.png"} <= {path.name for path in (tmp_path / "files").iterdir()}


def test_ctrl_c_in_the_export_is_one_line(cli, interruptible, tmp_path, capsys, monkeypatch):
    def press(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(HiFAAsset, "export_video", press)
    assert cli("a red ball", "--steps", "2", "--output-dir", str(tmp_path), *QUICK) == 130
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == f"interrupted; resume with: python -m hifa --resume {tmp_path / 'run'}"
    monkeypatch.setattr("hifa.__main__.begin", press)
    assert cli("a red ball", "--output-dir", str(tmp_path / "other")) == 130
    assert capsys.readouterr().err == "interrupted; no run was saved\n"
