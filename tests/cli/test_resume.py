"""Test interrupted commands: Ctrl-C, SIGKILL, and `--resume`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hifa import HiFARun
from hifa.__main__ import main
from hifa.storage.run_folder import read_metadata
from tests.helpers.runs import QUICK


def start_cli(prior, out: Path, *arguments: str) -> subprocess.Popen:
    """Start the command in a process of its own."""
    command = [sys.executable, "-m", "hifa", "--model", str(prior), "--output-dir", str(out), *QUICK, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(process: subprocess.Popen, path: Path) -> None:
    deadline = time.time() + 120
    while not path.exists():
        assert process.poll() is None and time.time() < deadline, process.stdout.read()
        time.sleep(0.1)


def test_ctrl_c_keeps_run_and_asset(tiny_prior, tmp_path):
    process = start_cli(tiny_prior, tmp_path, "a red ball", "--steps", "100000")
    wait_for(process, tmp_path / "preview.png")
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"python -m hifa --resume {tmp_path / 'run'}" in output
    run = HiFARun.load(tmp_path / "run")
    assert 0 < run.step < 100000
    assert (tmp_path / "mesh.glb").exists() and (tmp_path / "turntable.mp4").exists()


def test_sigkill_and_resume(tiny_prior, cli, tmp_path):
    """The command is killed without warning; --resume ends bit for bit where the undisturbed command does."""
    process = start_cli(tiny_prior, tmp_path / "killed", "a red ball", "--steps", "16", "--save-every", "2")
    wait_for(process, tmp_path / "killed/run/run.safetensors")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and 0 < read_metadata(tmp_path / "killed/run")["step"] < 16
    straight = start_cli(tiny_prior, tmp_path / "straight", "a red ball", "--steps", "16", "--save-every", "2")
    output, _ = straight.communicate(timeout=300)
    assert straight.returncode == 0, output
    command = [sys.executable, "-m", "hifa", "--resume", str(tmp_path / "killed"), *QUICK]
    resumed = subprocess.run(command, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    first, second = (HiFARun.load(tmp_path / name / "run") for name in ("straight", "killed"))
    assert first.step == second.step == 16
    for key, value in first.radiance_field.state_dict().items():
        assert torch.equal(value, second.radiance_field.state_dict()[key]), key
    assert (tmp_path / "killed/mesh.glb").exists()


@pytest.mark.parametrize("folder, given, assets", [("x/run", "x/run", "x"), ("y/run", "y", "y"), ("z", "z", "z")])
def test_resume_saves_to_where_the_run_came_from(saved, tmp_path, folder, given, assets):
    saved(folder)
    assert main(["--resume", str(tmp_path / given), *QUICK]) == 0
    assert HiFARun.load(tmp_path / folder).step == 5
    assert len(list(tmp_path.rglob("run.safetensors"))) == 1
    assert (tmp_path / assets / "mesh.glb").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--steps", "9"),
        ("--seed", "0"),
        ("--preset", "fast"),
        ("--guidance-scale", "3"),
        ("--negative-prompt", ""),
        ("--overwrite",),
        ("--model", "else/where"),
    ],
)
def test_what_a_saved_run_cannot_heed_is_refused(saved, capsys, arguments):
    folder = saved("run")
    assert main(["--resume", str(folder), *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err and HiFARun.load(folder).step == 2


def test_a_prior_that_cannot_be_found_is_asked_for(saved, cli, tmp_path, capsys):
    for name, prior in (("moved", str(tmp_path / "gone")), ("own", "custom")):
        folder = saved(name, prior=prior)
        assert main(["--resume", str(folder), *QUICK]) == 2
        assert f"{prior!r}, cannot be found. Give the prior as --model" in capsys.readouterr().err
        assert cli("--resume", str(folder), *QUICK) == 0


def test_an_unfinished_run_is_not_overwritten(saved, cli, tmp_path, capsys):
    saved("out/run")
    command = ("a red ball", "--steps", "2", "--output-dir", str(tmp_path / "out"), *QUICK)
    assert cli(*command) == 2
    error = capsys.readouterr().err
    for words in ("holds an unfinished run (2 of 5 steps)", "--resume", "--output-dir", "--overwrite"):
        assert words in error
    assert read_metadata(tmp_path / "out/run")["config"]["num_inference_steps"] == 5
    assert cli(*command, "--overwrite") == 0 == cli(*command), "a finished one is made again"
