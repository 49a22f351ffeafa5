"""Many prompts: the file they come in, and two processes of accelerate, one of them killed in the middle."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from hifa import HiFAAsset, HiFAConfig, HiFAPipeline, HiFARun
from hifa.batch import DONE, FAILED, Job, build_parser, main, read_jobs, work
from hifa.storage.run_folder import is_saved_in
from tests.helpers.runs import QUICK


STEPS = 10
PROMPTS = ["a red ball", "a blue cube", "a red zebra", "a green duck"]


def write_jobs(path: Path, prompts: list[str] = PROMPTS) -> Path:
    rows = [{"prompt": text, "seed": i, "num_inference_steps": STEPS} for i, text in enumerate(prompts)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def launch(jobs: Path, output: Path, prior: Path) -> subprocess.Popen:
    """Two processes on the CPU. torchrun, since `accelerate launch` asks for MPI where there is no GPU."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())),
        *(
            "-m",
            "hifa.batch",
            str(jobs),
            "--output-dir",
            str(output),
            "--model",
            str(prior),
            "--save-every",
            "2",
            *QUICK,
        ),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_two_processes_killed_in_the_middle_and_started_again(tiny_prior, tmp_path):
    jobs, output = write_jobs(tmp_path / "prompts.jsonl"), tmp_path / "out"
    names = ["0000-a-red-ball", "0001-a-blue-cube", "0003-a-green-duck"]
    first = launch(jobs, output, tiny_prior)
    deadline = time.monotonic() + 300
    while not is_saved_in(output / names[0] / "run"):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert len(workers := children(first.pid)) == 2
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    first.communicate(timeout=60)
    assert not list(output.glob(f"*/{DONE}"))
    saved = HiFARun.load(output / names[0] / "run")
    assert 0 < saved.step < STEPS
    saved.seconds += 10_000  # a mark, which a run that began anew would not have
    saved.save(output / names[0] / "run")

    again = launch(jobs, output, tiny_prior)
    text = again.communicate(timeout=500)[0]
    assert again.returncode == 1, text
    for words in ("3 of 4 prompts are finished", "0002-a-red-zebra: ", "'zebra'"):
        assert words in text, text
    assert all(text.count(f"finished: {name}") == 1 for name in ("0001-a-blue-cube", "0003-a-green-duck")), text
    assert "PromptError" in (output / "0002-a-red-zebra" / FAILED).read_text()
    assert all((output / name / file).stat().st_size for name in names for file in (DONE, "mesh.glb", "turntable.mp4"))

    assert json.loads((output / names[0] / DONE).read_text())["seconds"] > 10_000

    # The run that was killed ends as one that never was, in processes of the same kind: with more threads, or after
    # other work, sums are rounded otherwise.
    straight = write_jobs(tmp_path / "one.jsonl", prompts=PROMPTS[:1])
    text = (process := launch(straight, tmp_path / "straight", tiny_prior)).communicate(timeout=500)[0]
    assert process.returncode == 0, text
    resumed, expected = (
        HiFAAsset.from_pretrained(folder / names[0] / "asset").radiance_field.state_dict()
        for folder in (output, tmp_path / "straight")
    )
    for key, value in expected.items():
        torch.testing.assert_close(resumed[key], value, rtol=1e-4, atol=1e-5)


def test_accelerate_launch_as_readme_has_it(tiny_prior, tmp_path):
    """One process: with more, `accelerate launch` asks for MPI where there is no GPU."""
    jobs = write_jobs(tmp_path / "jobs.jsonl", ["a red ball"])
    options = [
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    launcher = (sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options)
    output = ("--output-dir", str(tmp_path / "out"), "--model", str(tiny_prior), *QUICK)
    done = subprocess.run([*launcher, "-m", "hifa.batch", str(jobs), *output], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "out").glob(f"*/{DONE}")
    assert HiFAAsset.from_pretrained(made.parent / "asset").metadata["steps"] == STEPS


@pytest.fixture
def own_state():
    """`main` in this process leaves nothing of accelerate's state behind."""
    yield
    PartialState._reset_state()


@pytest.mark.parametrize(
    "model, variant, expected", [("tiny_if", "fp16", [[True]] * 2), ("tiny_prior", None, [[]] * 3)]
)
def test_models_of_pixels_lose_their_text_encoder_first(
    request, tmp_path, capsys, released, own_state, model, variant, expected
):
    """All prompts are encoded before, but for one that cannot be read, which fails alone; other priors as ever."""
    folder, output = request.getfixturevalue(model), tmp_path / "out"
    settings = dict(num_inference_steps=2, n_coarse=8, n_fine=8, levels=4, max_resolution=32, log2_hashmap_size=10)
    settings |= dict(render_size=16, start_render_size=16)
    prompts = [{"prompt": "a red ball", "negative_prompt": "a blue cube"}, {"prompt": "a red zebra"}]
    rows = [row | settings for row in (*prompts, {"prompt": "a green duck", "seed": 3})]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [str(tmp_path / "jobs.jsonl"), "--output-dir", str(output), "--model", str(folder), "--asset-only"]
    command += ["--variant", variant] if variant else []
    assert main(command) == 1
    assert released == expected and "'zebra'" in capsys.readouterr().err
    pipe = HiFAPipeline.from_pretrained(folder, variant=variant)
    for name, given in (
        ("0000-a-red-ball", {"negative_prompt": "a blue cube", "seed": 0}),
        ("0002-a-green-duck", {"seed": 3}),
    ):
        run = HiFARun.load(output / name / "run")
        assert [step.losses for step in pipe.advance(pipe.start(run.prompt, **given, **settings))] == run.losses
    (output / "0002-a-green-duck" / DONE).unlink()  # a saved run has its own embeddings
    assert main(command) == 1 and "\nfinished: 0002-a-green-duck" in capsys.readouterr().out


def test_finished_jobs_are_skipped_and_foreign_folders_refused(tiny_prior, tiny_v_prior, tmp_path):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    job = Job("a red ball", "0000-a-red-ball", settings={"num_inference_steps": 2})
    folder = tmp_path / job.name
    arguments = build_parser().parse_args(["prompts.txt", "--output-dir", str(tmp_path), *QUICK])
    assert work(pipe, job, folder, None, arguments)
    before = (folder / "mesh.glb").stat().st_mtime_ns
    assert not work(pipe, job, folder, None, arguments)
    assert (folder / "mesh.glb").stat().st_mtime_ns == before
    for changes, words in (
        ({"prompt": "a red cube"}, "prompt='a red ball', not 'a red cube'"),
        ({"seed": 7}, "seed=0, not 7"),
        ({"negative_prompt": "a blue cube"}, "negative_prompt='', not 'a blue cube'"),
        ({"settings": {"num_inference_steps": 3}}, "num_inference_steps=2, not 3"),
    ):
        with pytest.raises(ValueError, match=f"was made with {words}"):
            work(pipe, replace(job, **changes), folder, None, arguments)
    with pytest.raises(ValueError, match="was made with guidance_scale=4.0, not 5.0"):
        work(pipe, job, folder, HiFAConfig.fast(guidance_scale=5.0, num_views=0, lambda_normal=0.0), arguments)
    with pytest.raises(ValueError, match="was made with prior="):
        work(HiFAPipeline.from_pretrained(tiny_v_prior), job, folder, None, arguments)


def test_assets_alone_and_one_from_the_middle(tiny_prior, tmp_path):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    job = Job("a red ball", "0000-a-red-ball", settings={"num_inference_steps": 4})
    options = ("--asset-only", "--assets-at", "0.5")
    arguments = build_parser().parse_args(["prompts.txt", "--output-dir", str(tmp_path), *options])
    assert work(pipe, job, tmp_path / job.name, None, arguments)
    assert {path.name for path in (tmp_path / job.name).iterdir()} == {"asset", "asset-00002", "done.json", "run"}
    half = pipe.start("a red ball", seed=0, num_inference_steps=4)
    for _ in pipe.advance(half, steps=2):
        pass
    kept = HiFAAsset.from_pretrained(tmp_path / job.name / "asset-00002")
    assert kept.metadata["steps"] == 2
    for key, value in half.radiance_field.state_dict().items():
        assert torch.equal(kept.radiance_field.state_dict()[key], value), key


@pytest.mark.parametrize("share", ["0", "1.5", "nan"])
def test_assets_from_outside_of_a_run_are_refused(tmp_path, capsys, share):
    (tmp_path / "prompts.txt").write_text("a red ball")
    assert main([str(tmp_path / "prompts.txt"), "--output-dir", str(tmp_path), "--assets-at", share]) == 2
    assert "--assets-at takes fractions of a run, above 0 and up to 1" in capsys.readouterr().err


def test_a_run_of_other_settings_is_not_continued(tiny_prior, tmp_path):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    job = Job("a red ball", "0000-a-red-ball", settings={"num_inference_steps": 2})
    pipe.start("a red ball", seed=0, num_inference_steps=2, eta=0.5).save(tmp_path / "run")
    with pytest.raises(ValueError, match="was made with eta=0.5, not 0.0"):
        work(pipe, job, tmp_path, None, build_parser().parse_args(["prompts.txt", "--output-dir", str(tmp_path)]))
    assert HiFARun.load(tmp_path / "run").step == 0


def test_a_job_that_was_killed_in_its_first_save_starts_again(tiny_prior, tmp_path):
    job = Job("a red ball", "0000-a-red-ball", settings={"num_inference_steps": 2})
    (folder := tmp_path / job.name / "run").mkdir(parents=True)
    (folder / "run.safetensors.partial").write_bytes(b"half")
    arguments = build_parser().parse_args(["prompts.txt", "--output-dir", str(tmp_path), *QUICK])
    assert work(HiFAPipeline.from_pretrained(tiny_prior), job, tmp_path / job.name, None, arguments)
    assert HiFARun.load(folder).finished


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red ball\n\n  a Blue cube! \n")
    assert read_jobs(tmp_path / "prompts.txt") == [
        Job("a red ball", "0000-a-red-ball"),
        Job("a Blue cube!", "0001-a-blue-cube"),
    ]


@pytest.mark.parametrize(
    "line, words",
    [
        ("", "has no prompts"),
        ("{", "line 1: "),
        ('["a red ball"]', "line 1: Expected an object"),
        ('{"prompt": 3}', "Expected an object"),
        ('{"prompt": "a red ball", "seed": "x"}', "seed must be of type int, got 'x'"),
        ('{"prompt": "a red ball", "stepz": 3}', "Unknown settings: stepz"),
    ],
)
def test_bad_files_are_one_line_and_exit_code_2(tmp_path, capsys, line, words):
    path = tmp_path / "prompts.jsonl"
    path.write_text(line)
    assert main([str(path), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and words in error and "\n" not in error


def test_a_missing_file_and_a_bad_option(tmp_path, capsys):
    assert main([str(tmp_path / "none.txt"), "--output-dir", str(tmp_path)]) == 2
    (tmp_path / "prompts.txt").write_text("a red ball")
    assert main([str(tmp_path / "prompts.txt"), "--output-dir", str(tmp_path), "--save-every", "0"]) == 2
    assert "--save-every must be between 1 and 1000000000, got 0" in capsys.readouterr().err
    (tmp_path / "model").mkdir()
    assert (
        main([str(tmp_path / "prompts.txt"), "--output-dir", str(tmp_path), "--model", str(tmp_path / "model")]) == 2
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and str(tmp_path / "model") in error
