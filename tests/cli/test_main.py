"""Test `python -m hifa` as a user runs it: its files, and errors with exit code 2."""

import os
import subprocess
import sys

import pytest
import trimesh

from hifa import HiFAAsset, HiFAPipeline, HiFARun
from hifa.__main__ import begin, build_parser, main
from tests.helpers.paths import ROOT
from tests.helpers.runs import QUICK


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
        (("--image", "a.png", "--resume", "x"), "Give either a prompt"),
        (("--image", "a.png", "--elevation", "0", "--views", "b.png"), "not both"),
        (("a red ball", "--view-seeds", "2"), "--view-seeds needs --image"),
        (("--image", "a.png", "--elevation", "0"), "--image with --model needs --multiview"),
        (("a red ball", "--elevation", "20"), "--elevation needs --image"),
        (("a red ball", "--multiview", "x"), "--multiview needs --image"),
        (("a red ball", "--image-guidance-end", "0.5"), "--image-guidance-end needs --image or --views"),
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
        (("a red ball", "--device", "foo"), "--device foo is not available"),
        (("a red ball", "--device", "cuda:99"), "--device cuda:99 is not available"),
        (("a red ball", "--device", "meta"), "--device meta is not available"),
        (
            ("a red ball", "--preset", "paper", "--normal-model", "x"),
            "--normal-model has no effect with --preset paper",
        ),
        (("a photo of",), "names no object"),
        (("--resume", "typo"), "'typo' holds no HiFA run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(cli, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert cli(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not list(tmp_path.iterdir()), "nothing is written before all is checked"


def test_bad_arguments_are_told_before_torch_is_loaded(tmp_path):
    """In a process of its own, with a torch that cannot be loaded."""
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from hifa.__main__ import main\n"
        "codes = [main(argv.split('|')) for argv in sys.argv[1:]]\n"
        "assert codes == [2] * len(codes), codes\n"
    )
    bad = ("a red zebra", "a photo of", "--resume|typo", "a red ball|--seed|-1", "a red ball|--output-dir|/dev/null/x")
    command = [sys.executable, "-c", script, *bad]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = ("'zebra'", "names no object", "'typo' holds no HiFA run", "--seed", "Cannot write to '/dev/null/x'")
    for line, word in zip(done.stderr.strip().splitlines(), words, strict=True):
        assert line.startswith("error: ") and word in line
    assert not list(tmp_path.iterdir())


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


def test_a_variant_reaches_the_prior(tmp_path, monkeypatch):
    def refuse(_, **given):
        raise ValueError(f"no {given['variant']} today")

    monkeypatch.setattr(HiFAPipeline, "from_pretrained", refuse)
    for options, words in (((), "no None today"), (("--variant", "fp16"), "no fp16 today")):
        command = ["a red ball", "--model", "some/model", "--output-dir", str(tmp_path), *options]
        with pytest.raises(ValueError, match=words):
            begin(build_parser().parse_args(command))
