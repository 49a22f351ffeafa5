"""Several particles of VSD: what they share, and what is refused."""

import pytest
import torch

from hifa import HiFARun
from hifa.particles import advance_particles
from hifa.priors.vsd import VariationalScore
from tests.helpers.runs import TINY, VSD


@pytest.fixture
def pipe(v_pipe):
    return v_pipe


def start(pipe, seed: int, prompt: str = "a red ball", steps: int = 3, **settings) -> HiFARun:
    return pipe.start(prompt, config=TINY, seed=seed, num_inference_steps=steps, **VSD | settings)


def test_they_take_turns_and_learn_one_score(pipe, monkeypatch):
    learned = []
    step_of = VariationalScore.step

    def noting(score):
        learned.append(id(score.state))
        step_of(score)

    monkeypatch.setattr(VariationalScore, "step", noting)
    runs = [start(pipe, seed) for seed in (1, 2, 3)]
    unet = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    order = [(runs.index(run), step.step) for run, step in advance_particles(pipe, runs)]
    assert order == [(number, step) for step in (1, 2, 3) for number in (0, 1, 2)]
    assert len(learned) == 9 and len(set(learned)) == 1, "one score learns from all of them"
    assert all(run.finished and run.variational is runs[0].variational for run in runs)
    tables = [run.radiance_field.state_dict()["grid.table"] for run in runs]
    assert not torch.equal(tables[0], tables[1]) and not torch.equal(tables[1], tables[2])
    assert all(torch.equal(value, unet[name]) for name, value in pipe.unet.state_dict().items())


def test_one_learns_from_the_others(pipe):
    """The same run alone and beside another ends with another score."""
    alone, beside = start(pipe, 1), start(pipe, 1)
    for _ in pipe.advance(alone):
        pass
    for _ in advance_particles(pipe, [beside, start(pipe, 2)]):
        pass
    ours, theirs = alone.variational.tensors(), beside.variational.tensors()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_saved_after_a_round_they_go_on_bit_for_bit(pipe, tmp_path):
    straight, broken = ([start(pipe, seed, steps=4) for seed in (1, 2)] for _ in range(2))
    for _ in advance_particles(pipe, straight):
        pass
    stream = advance_particles(pipe, broken)
    for _ in range(4):
        next(stream)
    stream.close()
    for number, run in enumerate(broken):
        run.save(tmp_path / str(number))
    again = [HiFARun.load(tmp_path / str(number)) for number in range(2)]
    for _ in advance_particles(pipe, again):
        pass
    for run, other in zip(straight, again, strict=True):
        assert run.finished and run.losses == other.losses
        for name, value in run.radiance_field.state_dict().items():
            assert torch.equal(value, other.radiance_field.state_dict()[name]), name
    ours, theirs = straight[0].variational.tensors(), again[1].variational.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_not_one_distribution_is_refused(pipe):
    run = start(pipe, 1)
    apart = [start(pipe, seed) for seed in (1, 2)]
    for other in apart:
        next(pipe.advance(other))
    ahead = start(pipe, 2)
    next(pipe.advance(ahead))
    for runs, words in (
        ([run], "two or more runs"),
        ([run, run], "without repetitions"),
        ([run, start(pipe, 2, distillation="hifa")], "distillation='vsd'"),
        ([run, start(pipe, 2, prompt="a blue ball")], "'a red ball' in one run and 'a blue ball' in another"),
        ([run, start(pipe, 2, steps=9)], "config is"),
        ([run, ahead], "step is 0 in one run and 1 in another"),
        (apart, "have trained separate scores"),
    ):
        with pytest.raises(ValueError, match=words):
            next(advance_particles(pipe, runs))
