"""What the app says when something fails, and what it does not say."""

import errno
import math
import os
from dataclasses import replace

import pytest
import torch

from hifa import HiFARun
from hifa.space.jobs import gpu_lease as lease
from hifa.space.jobs.errors import explain
from hifa.space.jobs.run_store import RunStore
from hifa.space.ui.requests import Actions
from hifa.storage.run_folder import RunError
from tests.helpers.space import LearningPipeline, finished_run, request, tiny_model_cache
from tests.helpers.syncdreamer import tiny_pipeline


pytestmark = pytest.mark.usefixtures("light_files")


@pytest.fixture(scope="module")
def model_cache(tiny_prior):
    return tiny_model_cache(tiny_prior, LearningPipeline)


@pytest.fixture(scope="module")
def reference(model_cache):
    return finished_run(model_cache, torch.get_num_threads())


@pytest.mark.parametrize("error, words", [
    (torch.OutOfMemoryError("CUDA out of memory"), "too little memory"),
    (OSError(28, "No space left on device"), "disk of the server is full"),
    (ValueError("steps must be 3"), "steps must be 3."),
    (KeyError("x"), "Resume to try again"),
])  # fmt: skip
def test_errors_say_what_to_do(error, words):
    assert words in explain(error)


def no_space(*_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_wherever_it_is_met(tmp_path, model_cache, monkeypatch):
    folder = RunStore(tmp_path).create(request())
    list(lease.begin(lease.Models(model_cache, tiny_pipeline), model_cache.get("toybox"), folder, math.inf))
    run = HiFARun.load(folder.run)
    monkeypatch.setattr(os, "replace", no_space)
    for write in (lambda: folder.write(folder.read()), lambda: run.save(folder.run)):
        with pytest.raises((OSError, ValueError)) as raised:
            write()
        assert "disk of the server is full" in explain(raised.value)


def test_folders_of_the_server_are_not_told(tmp_path, caplog):
    for error in (RunError(f"{str(tmp_path)!r} is damaged."), PermissionError(13, "Permission denied", str(tmp_path))):
        assert str(tmp_path.parent) not in explain(error)
        assert str(tmp_path.parent) in caplog.text, "but to the one who runs it"
        caplog.clear()
    assert "https://huggingface.co/some/model is gone" in explain(OSError("https://huggingface.co/some/model is gone"))


def test_a_run_whose_prior_cannot_be_loaded_is_kept_and_says_what_it_needs(tmp_path, model_cache):
    store = RunStore(tmp_path)
    folder = store.create(replace(request(), prior="lost"))
    with pytest.raises(ValueError, match="needs Lost prior, which cannot be loaded now: .*Resume later"):
        Actions(store, model_cache, 1).check_resumable(folder)
    Actions(store, model_cache, 1).check_resumable(store.create(request()))
