"""Fixtures for the command line: the command with a tiny prior, and saved runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from hifa import HiFAPipeline
from hifa.__main__ import main
from tests.helpers.runs import TINY, generator


@pytest.fixture
def cli(tiny_prior):
    def run(*arguments: str) -> int:
        return main([*arguments, "--model", str(tiny_prior)])

    return run


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
