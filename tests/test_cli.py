"""python -m hifa, as a user runs it: files, errors with exit code 2, Ctrl-C, resume."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import trimesh

from hifa import HiFAAsset, HiFAPipeline, HiFARun
from hifa.__main__ import begin, build_parser, main
from hifa.cli.startup import share_cpu
from hifa.export.each import ExportError
from hifa.multiview.input_image import prepare_image
from hifa.pictures import prepare_picture
from hifa.storage.run_folder import read_metadata

from .syncdreamer_models import tiny_pipeline
from .test_given_views import disc, shades
from .test_pipeline import TINY, generator


@pytest.fixture
def cli(tiny_prior):
    def run(*arguments: str) -> int:
        return main([*arguments, "--model", str(tiny_prior)])

    return run


QUICK = (
    *("--frames", "2", "--frame-size", "32", "--still-size", "32"),
    *("--mesh-resolution", "32", "--texture-size", "128"),
)


def test_a_prompt_becomes_an_asset(cli, tmp_path, capsys):
    assert cli("a red ball", "--steps", "4", "--output-dir", str(tmp_path), *QUICK) == 0
    names = {"preview.png", "front.png", "side.png", "back.png", "depth.png", "turntable.mp4", "mesh.glb", "mesh.ply"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert len(trimesh.load(tmp_path / "mesh.glb", force="mesh").faces) > 20
    assert HiFARun.load(tmp_path / "run").finished
    assert HiFAAsset.from_pretrained(tmp_path / "asset").prompt == "a red ball"
    assert "mesh.glb" in capsys.readouterr().out


@pytest.fixture(scope="session")
def multiview(tmp_path_factory):
    """Folder of a tiny random SyncDreamer."""
    folder = tmp_path_factory.mktemp("multiview")
    model = tiny_pipeline()
    model.register_to_config(num_inference_steps=2)
    model.save_pretrained(folder)
    return str(folder)


def test_a_photo_becomes_an_asset_beside_what_the_models_saw(cli, multiview, tmp_path):
    disc(size=64).save(photo := tmp_path / "photo.png")
    out = tmp_path / "out"
    picture = ("--image", str(photo), "--elevation", "20", "--multiview", multiview)
    assert cli(*picture, "--steps", "2", "--output-dir", str(out), *QUICK) == 0
    run = HiFARun.load(out / "run")
    assert run.finished and run.prompt is None and len(run.views) == 16
    assert PIL.Image.open(out / "input.png").size == (32, 32), "the size of this multi-view model"
    sheet = PIL.Image.open(out / "views.png")
    assert sheet.size == (16 * 32, 32)
    assert (out / "mesh.glb").exists()


def test_a_photo_at_the_border_is_told_and_prepared_once(cli, multiview, tmp_path, caplog):
    """Without an elevation, which is estimated; `input.png` is what the multi-view model was really given."""
    image = disc(size=64, radius=0.6)
    image.save(photo := tmp_path / "photo.png")
    out = tmp_path / "out"
    picture = ("--image", str(photo), "--view-seeds", "2", "--multiview", multiview)
    assert cli(*picture, "--steps", "2", "--output-dir", str(out), *QUICK) == 0
    assert "touches the top" in caplog.text and "elevation" in caplog.text  # logged, and so on stderr
    seen = prepare_image(prepare_picture(image).image, 32).movedim(0, -1) / 2 + 0.5
    assert PIL.Image.open(out / "input.png").tobytes() == (seen.numpy() * 255).round().astype("uint8").tobytes()
    metadata = HiFARun.load(out / "run").note
    assert "touches the top" in metadata and "was estimated" in metadata


def test_a_sheet_guides_a_prompt_for_a_while(cli, tmp_path):
    from hifa.multiview.given_views import read_views

    read_views(shades(), 1.0).sheet().save(sheet := tmp_path / "sheet.png")
    out = tmp_path / "out"
    arguments = ("a red ball", "--views", str(sheet), "--image-guidance-end", "0.5", "--preset", "fast")
    assert cli(*arguments, "--steps", "4", "--output-dir", str(out), *QUICK) == 0
    run = HiFARun.load(out / "run")
    assert run.config.image_guidance_end == 0.5 and run.prompt_embeds is not None
    assert ["given_image" in losses for losses in run.losses] == [True, True, False, False]
    assert PIL.Image.open(out / "views.png").tobytes() == PIL.Image.open(sheet).convert("RGB").tobytes()
    assert not (out / "input.png").exists()


def test_the_folder_is_named_after_the_picture_without_a_prompt():
    from hifa.__main__ import build_parser, output_folder

    def folder(*arguments):
        return output_folder(build_parser().parse_args(arguments)).as_posix()

    assert folder("--image", "a/My Photo.png") == "outputs/my-photo"
    assert folder("--views", "sheet.png") == "outputs/sheet"
    assert folder("a duck", "--image", "photo.png") == "outputs/a-duck"


def test_bad_pictures_are_told_before_a_model_is_loaded(tmp_path, capsys, monkeypatch):
    from hifa import HiFAPipeline

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HiFAPipeline, "from_pretrained", None)  # any use fails
    (tmp_path / "text.png").write_text("no picture")
    PIL.Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    for arguments, words in (
        (("--image", "none.png", "--elevation", "0"), "Cannot read 'none.png'"),
        (("--image", "text.png", "--elevation", "0"), "Cannot read 'text.png'"),
        (("--image", "white.png", "--elevation", "0"), "shows no object"),
        (("--views", "text.png"), "Cannot read 'text.png'"),
    ):
        assert main([*arguments, "--output-dir", "out"]) == 2
        assert words in capsys.readouterr().err.strip().splitlines()[-1]


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
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
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


def test_first_preview_comes_before_the_prior_and_is_that_of_the_run(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise ValueError("no prior today")

    monkeypatch.setattr("hifa.__main__.load_pipeline", refuse)
    assert main(["a red ball", "--seed", "3", "--output-dir", str(tmp_path)]) == 2
    assert "no prior today" in capsys.readouterr().err
    shown = np.asarray(PIL.Image.open(tmp_path / "preview.png"))
    run = HiFAPipeline.from_pretrained().start("a red ball", seed=3)
    # But for the density grid.
    assert np.abs(shown / 255 - run.preview().numpy()).mean() < 0.02
    assert shown.std() > 5  # there is something to be seen


def test_a_variant_reaches_the_prior(tmp_path, monkeypatch):
    def refuse(_, **given):
        raise ValueError(f"no {given['variant']} today")

    monkeypatch.setattr(HiFAPipeline, "from_pretrained", refuse)
    for options, words in (((), "no None today"), (("--variant", "fp16"), "no fp16 today")):
        command = ["a red ball", "--model", "some/model", "--output-dir", str(tmp_path), *options]
        with pytest.raises(ValueError, match=words):
            begin(build_parser().parse_args(command))


@pytest.mark.parametrize(
    ("loadavg", "given", "set_to"),
    [
        ("1.90 0.70 0.10 1/95 7", {}, None),
        ("0.10 0.10 0.10 2/95 7", {}, "1000"),
        ("no such thing", {}, None),
        ("0.10 0.10 0.10 2/95 7", {"OMP_WAIT_POLICY": "active"}, None),
        ("0.10 0.10 0.10 2/95 7", {"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_threads_wait_asleep_on_a_busy_machine(tmp_path, monkeypatch, loadavg, given, set_to):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "loadavg").write_text(loadavg)
    monkeypatch.setattr("hifa.cli.startup.LOADAVG", tmp_path / "loadavg")
    share_cpu()
    assert os.environ.get("GOMP_SPINCOUNT") == set_to


def test_a_process_that_keeps_a_core_busy_is_seen(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(0.5)
        share_cpu()
        other.kill()
    assert os.environ.get("GOMP_SPINCOUNT") == "1000"


def start_cli(prior, out: Path, *arguments: str) -> subprocess.Popen:
    """The command in a process of its own, once it has made its first preview."""
    command = [sys.executable, "-m", "hifa", "--model", str(prior), "--output-dir", str(out), *QUICK, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(process, out / "preview.png")
    return process


def wait_for(process: subprocess.Popen, path: Path) -> None:
    deadline = time.time() + 120
    while not path.exists():
        assert process.poll() is None and time.time() < deadline, process.stdout.read()
        time.sleep(0.1)


def test_ctrl_c_keeps_run_and_asset(tiny_prior, tmp_path):
    process = start_cli(tiny_prior, tmp_path, "a red ball", "--steps", "100000")
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"python -m hifa --resume {tmp_path / 'run'}" in output
    run = HiFARun.load(tmp_path / "run")
    assert 0 < run.step < 100000
    assert (tmp_path / "mesh.glb").exists() and (tmp_path / "turntable.mp4").exists()


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
    monkeypatch.setattr(HiFAAsset.export_video, "__defaults__", (2, 32, 20, None))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "missing"))
    asset = HiFARun.load(saved("run")).asset()
    with pytest.raises(ExportError) as caught:
        asset.write_files(tmp_path / "files")
    assert [line.partition(":")[0] for line in caught.value.failures] == ["turntable.mp4", "mesh.glb"]
    assert {"front.png", "depth.png", "asset.json"} <= {path.name for path in (tmp_path / "files").iterdir()}


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


@pytest.fixture
def saved(tiny_prior, tmp_path):
    """A function that saves a run of two of five steps into a folder of `tmp_path`."""

    def save(folder: str, **changes) -> Path:
        pipe = HiFAPipeline.from_pretrained(tiny_prior)
        run = pipe.start("a red ball", config=replace(TINY, num_inference_steps=5), generator=generator())
        for _ in pipe.advance(run, steps=2):
            pass
        for name, value in changes.items():
            setattr(run, name, value)
        return run.save(tmp_path / folder)

    return save


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
