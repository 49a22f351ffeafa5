"""python -m hifa, as a user runs it: files, errors with exit code 2, Ctrl-C, resume."""

import os
import signal
import subprocess
import sys
import time

import pytest
import trimesh

from hifa import HiFAAsset, HiFARun
from hifa.__main__ import main


@pytest.fixture
def cli(tiny_prior):
    def run(*arguments: str) -> int:
        return main([*arguments, "--model", str(tiny_prior)])

    return run


QUICK = ("--frames", "2", "--frame-size", "32", "--mesh-resolution", "32", "--texture-size", "128")


def test_a_prompt_becomes_an_asset(cli, tmp_path, capsys):
    assert cli("a red ball", "--steps", "4", "--output-dir", str(tmp_path), *QUICK) == 0
    names = {"preview.png", "front.png", "side.png", "back.png", "depth.png", "turntable.mp4", "mesh.glb", "mesh.ply"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert len(trimesh.load(tmp_path / "mesh.glb", force="mesh").faces) > 20
    assert HiFARun.load(tmp_path / "run").finished
    assert HiFAAsset.from_pretrained(tmp_path / "asset").prompt == "a red ball"
    assert "mesh.glb" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "Give either a prompt"),
        (("a red ball", "--resume", "x"), "Give either a prompt"),
        (("",), "prompt is empty"),
        (("a red zebra",), "'zebra'"),
        (("a red ball", "--steps", "0"), "num_inference_steps must be between 1"),
        (("a red ball", "--steps", "-3"), "got -3"),
        (("a red ball", "--guidance-scale", "nan"), "guidance_scale must be finite, got nan"),
        (("a red ball", "--guidance-scale", "1e9"), "guidance_scale"),
        (("a red ball", "--save-every", "0"), "--save-every must be between"),
        (("a red ball", "--mesh-resolution", "3"), "--mesh-resolution must be between"),
        (("a red ball", "--seed", "-1"), "--seed must be between"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(cli, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert cli(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error


def test_unwritable_folder(cli, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli("a red ball", "--output-dir", str(tmp_path / "file" / "out")) == 2
    assert "Cannot write to" in capsys.readouterr().err


def test_corrupt_run(cli, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.safetensors").write_bytes(b"junk")
    assert cli("--resume", str(tmp_path / "run")) == 2
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, '{"_class_name": "FluxPipeline", "_diffusers_version": "0.42.1"}'])
def test_wrong_model(tmp_path, capsys, content):
    folder = tmp_path / "model"
    folder.mkdir()
    if content is not None:
        (folder / "model_index.json").write_text(content)
    code = main(["a red ball", "--model", str(folder), "--output-dir", str(tmp_path / "out")])
    assert code == 2 and str(folder) in capsys.readouterr().err


def test_ctrl_c_keeps_run_and_asset_and_resume_finishes(tiny_prior, tmp_path):
    command = [sys.executable, "-m", "hifa", "--model", str(tiny_prior), "--output-dir", str(tmp_path), *QUICK]
    process = subprocess.Popen(
        [*command, "a red ball", "--steps", "100000"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.time() + 120
    while not (tmp_path / "preview.png").exists():
        assert process.poll() is None and time.time() < deadline, process.stdout.read()
        time.sleep(0.1)
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "python -m hifa --resume" in output
    run = HiFARun.load(tmp_path / "run")
    assert 0 < run.step < 100000
    assert (tmp_path / "mesh.glb").exists() and (tmp_path / "turntable.mp4").exists()


def test_resume_continues_to_the_end(cli, tiny_prior, tmp_path):
    from dataclasses import replace

    from hifa import HiFAPipeline
    from tests.test_pipeline import TINY, generator

    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    run = pipe.start("a red ball", config=replace(TINY, num_inference_steps=5), generator=generator())
    for _ in pipe.advance(run, steps=2):
        pass
    run.save(tmp_path / "run")
    assert cli("--resume", str(tmp_path / "run"), *QUICK) == 0
    assert HiFARun.load(tmp_path / "run").step == 5
    assert (tmp_path / "mesh.glb").exists()
