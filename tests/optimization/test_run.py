"""HiFARun: save, load, resume bit for bit, also after SIGKILL; damaged and foreign folders."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from hifa import HiFAPipeline, HiFARun
from hifa.optimization.step import DivergedError
from hifa.storage.run_folder import FILE, RunError, read_metadata
from tests.helpers.runs import TINY, finish, generator, state


@pytest.fixture(scope="module")
def pipe(tiny_prior):
    return HiFAPipeline.from_pretrained(tiny_prior)


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_continuing_a_loaded_run_equals_not_stopping(pipe, tmp_path, stop_after):
    whole = finish(pipe, pipe.start("a red ball", config=TINY, generator=generator()))
    run = pipe.start("a red ball", config=TINY, generator=generator())
    for _ in pipe.advance(run, steps=stop_after):
        pass
    run.save(tmp_path)
    resumed = finish(pipe, HiFARun.load(tmp_path))
    assert torch.equal(state(whole), state(resumed))
    assert resumed.losses == whole.losses and resumed.step == 3


def test_saving_does_not_change_the_run(pipe, tmp_path):
    run = pipe.start("a red ball", config=TINY, generator=generator())
    for _ in pipe.advance(run):
        run.save(tmp_path)
        run.preview(size=8)
        run.asset()
    assert torch.equal(state(run), state(finish(pipe, pipe.start("a red ball", config=TINY, generator=generator()))))


def test_a_run_that_diverges_does_not_overwrite_what_was_saved(pipe, tmp_path):
    run = pipe.start("a red ball", config=TINY, generator=generator())
    for _ in pipe.advance(run, 1):
        pass
    run.save(tmp_path / "run")
    saved = (tmp_path / "run" / FILE).read_bytes()
    with torch.no_grad():
        next(run.radiance_field.parameters()).fill_(torch.nan)
    with pytest.raises(DivergedError, match="diverged at step 2.*a loss of nan.*lower guidance"):
        pipe.run_to_end(run, tmp_path / "run", save_every=1)
    assert (tmp_path / "run" / FILE).read_bytes() == saved


def test_facts_can_be_read_without_tensors(pipe, tmp_path):
    finish(pipe, pipe.start("a red ball", config=TINY, generator=generator())).save(tmp_path)
    metadata = read_metadata(tmp_path)
    assert metadata["prompt"] == "a red ball" and metadata["step"] == 3 and len(metadata["losses"]) == 3


def test_resumes_bit_for_bit_after_sigkill(pipe, tiny_prior, tmp_path):
    """A process is killed without warning while it saves after every step; the run goes on from its last file."""
    script = (
        "import sys; from hifa import HiFAPipeline; from tests.helpers.runs import TINY, generator\n"
        "from dataclasses import replace\n"
        "pipe = HiFAPipeline.from_pretrained(sys.argv[1])\n"
        "run = pipe.start('a red ball', config=replace(TINY, num_inference_steps=200), generator=generator())\n"
        "for step in pipe.advance(run): run.save(sys.argv[2]); print(step.step, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny_prior), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    while int(process.stdout.readline()) < 3:
        pass
    time.sleep(0.05)  # somewhere inside a step or a save
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = HiFARun.load(tmp_path)
    assert 3 <= resumed.step < 200
    goal = resumed.step + 3
    for _ in pipe.advance(resumed, steps=3):
        pass
    whole = pipe.start("a red ball", config=resumed.config, generator=generator())
    for _ in pipe.advance(whole, steps=goal):
        pass
    assert torch.equal(state(whole), state(resumed))


def test_missing_damaged_and_foreign_folders(pipe, tmp_path):
    with pytest.raises(RunError, match="holds no HiFA run"):
        HiFARun.load(tmp_path / "nowhere")
    (tmp_path / FILE).write_bytes(b"not safetensors")
    with pytest.raises(RunError, match="damaged"):
        HiFARun.load(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(RunError, match="damaged or not a HiFA run"):
        HiFARun.load(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / FILE, metadata={"facts": '{"format": "other"}'})
    with pytest.raises(RunError, match="format 'other'"):
        HiFARun.load(tmp_path)


def test_truncated_file(pipe, tmp_path):
    pipe.start("a red ball", config=TINY, generator=generator()).save(tmp_path)
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(RunError, match="damaged"):
        HiFARun.load(tmp_path)


def test_unwritable_folder(pipe, tmp_path):
    (tmp_path / "file").touch()
    run = pipe.start("a red ball", config=TINY, generator=generator())
    with pytest.raises(RunError, match="Cannot write the run"):
        run.save(tmp_path / "file" / "run")
