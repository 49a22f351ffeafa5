"""The judge and its distance: hand-worked numbers, properties, and a tiny training run."""

import numpy as np
import pytest
import torch

from benchmarks import judge as J
from hifa.toybox import world
from hifa.toybox.training.dataset import Pictures


def test_kid_by_hand_in_one_dimension():
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    # Within a: (0 + 1)^3 = 1. Within b: (2 + 1)^3 = 27. Across: 1, 1, (1 + 1)^3 = 8, 27, mean 37 / 4.
    assert J.kernel_inception_distance(a, b) == pytest.approx(1 + 27 - 2 * 37 / 4)


def test_kid_by_hand_divides_by_the_width_and_may_be_negative():
    a, b = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([[2.0, 2.0], [2.0, -2.0]])
    # Within both: (0 / 2 + 1)^3 = 1. Across: (4 / 2 + 1)^3 = 27 thrice and (-4 / 2 + 1)^3 = -1, mean 20.
    assert J.kernel_inception_distance(a, b) == pytest.approx(1 + 1 - 2 * 20)


def test_kid_by_hand_with_sets_of_different_size():
    a, b = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    # Within a: 1, 1, 27, mean 29 / 3. Within b: 8. Across: 1, 8, 27, mean 12.
    assert J.kernel_inception_distance(a, b) == pytest.approx(29 / 3 + 8 - 24)


def test_kid_is_symmetric_and_ignores_order():
    rng = np.random.default_rng(0)
    a, b = torch.from_numpy(rng.normal(size=(20, 5))), torch.from_numpy(rng.normal(1, 1, size=(30, 5)))
    value = J.kernel_inception_distance(a, b)
    assert J.kernel_inception_distance(b, a) == pytest.approx(value)
    assert J.kernel_inception_distance(a.flip(0), b[torch.from_numpy(rng.permutation(30))]) == pytest.approx(value)


def test_kid_is_unbiased():
    rng = np.random.default_rng(1)
    draws = torch.from_numpy(rng.normal(size=(2000, 2, 4, 3)))
    values = np.array([J.kernel_inception_distance(a, b) for a, b in draws])
    # Of four rows the biased estimate would be above zero by E[k(x, x) - k(x, x')] / 2, more than 3 here.
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values)) < 1


def test_kid_grows_with_the_shift():
    rng = np.random.default_rng(2)
    a, b = (torch.from_numpy(rng.normal(size=(200, 8))) for _ in range(2))
    values = [J.kernel_inception_distance(a, b + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values) and values[0] < 0.1 < values[-1]


def test_kid_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        J.kernel_inception_distance(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        J.kernel_inception_distance(torch.zeros(4, 3), torch.zeros(4, 2))


def test_labels_follow_the_order_of_the_world():
    assert (len(J.KINDS), len(J.COLORS), len(J.VIEWS)) == (24, 12, 4)
    assert J.KINDS == tuple(world.KINDS) and J.COLORS == tuple(world.COLORS) and J.VIEWS == world.VIEWS
    assert J.labels_of("mushroom", "green", "back view") == (4, 3, -1, -1, 2)
    assert len(J.COMBINATIONS) == 288 and set(world.combinations(held_out=True)) < set(J.COMBINATIONS)
    assert {kind for kind, front in zip(J.KINDS, J.HAS_FRONT, strict=True) if front} == set(world.KINDS_WITH_FRONT)


def test_heads_and_features_have_their_widths():
    with torch.random.fork_rng():
        model = J.Judge().eval()
    images = torch.zeros(3, 3, 64, 64)
    assert [tuple(head.shape) for head in model(images)] == [(3, 24), (3, 12), (3, 4)]
    assert model.features(images).shape == (3, 192)
    assert all(part.shape == (3,) and part.dtype == torch.int64 for part in model.verdict(images))
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 1e6
    with pytest.raises(ValueError, match="32, 32"):
        model.features(torch.zeros(1, 3, 32, 32))


def test_view_counts_where_it_can_be_told():
    ball, duck = J.KINDS.index("ball"), J.KINDS.index("duck")
    kind, view = torch.tensor([ball, ball, duck, duck]), torch.tensor([0, 3, 0, 3])
    assert J.view_counts(kind, view).tolist() == [False, True, True, True]


def test_view_loss_by_hand():
    ball, duck = J.KINDS.index("ball"), J.KINDS.index("duck")
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    for kind, view, p in [(duck, 1, 0.2), (duck, 3, 0.4), (ball, 1, 0.6), (ball, 0, 0.6), (ball, 3, 0.4)]:
        loss = J.view_loss(logits, torch.tensor([kind]), torch.tensor([view]))
        assert loss.item() == pytest.approx(-np.log(p), rel=1e-5)


def test_score_by_hand():
    ball, duck = J.KINDS.index("ball"), J.KINDS.index("duck")
    labels = np.array([(ball, 0, -1, -1, 0), (ball, 1, -1, -1, 3), (duck, 2, -1, -1, 1), (duck, 3, -1, -1, 3)])
    seen = J.Verdict(torch.tensor([ball, ball, duck, ball]), torch.tensor([0, 1, 5, 5]), torch.tensor([2, 3, 1, 0]))
    expected = {
        "kind": 0.75,
        "color": 0.5,
        "kind_and_color": 0.5,
        "view": round(2 / 3, 4),
        "view_of_front_kinds": 0.5,
    }
    assert J.score(seen, labels) == expected


@pytest.mark.parametrize("view", world.VIEWS)
def test_cameras_are_of_the_wanted_view(view):
    rng = np.random.default_rng(3)
    assert {world.view_of(*J.camera_for(view, rng)) for _ in range(20)} == {view}


def test_augmentation_keeps_range_mean_color_and_seed():
    images = torch.tensor([0.8, 0.2, 0.1]).view(1, 3, 1, 1).expand(16, 3, 64, 64)
    out = J.augment(images, np.random.default_rng(4))
    assert out.shape == images.shape and out.min() >= 0 and out.max() <= 1
    assert (out.mean((2, 3)) - images.mean((2, 3))).abs().max() < 0.09
    assert torch.equal(out, J.augment(images, np.random.default_rng(4)))


def test_missing_judge_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m benchmarks.judge"):
        J.load_judge(tmp_path)


def test_the_committed_judge_knows_pictures_it_has_not_seen():
    parts = [J.render_scene(9_500_000, index) for index in range(0, 288, 7)]  # every kind and color, four views each
    pixels, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    right = J.score(J.load_judge(J.JUDGE).verdict(J.to_unit(torch.from_numpy(pixels))), labels)
    assert right["kind"] > 0.95 and right["color"] > 0.97 and right["view"] > 0.9, right


@pytest.fixture(scope="module")
def few_pictures():
    parts = [J.render_scene(9_000_000, index) for index in range(0, 288, 36)]  # eight kinds, four views each
    return Pictures(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def test_rendered_labels_say_what_was_rendered(few_pictures):
    assert few_pictures.pixels.shape == (32, 64, 64, 3) and few_pictures.pixels.dtype == np.uint8
    assert few_pictures.labels[:4].tolist() == [[0, 0, -1, -1, view] for view in range(4)]
    assert len(set(few_pictures.labels[:, 0])) == 8


def test_training_lowers_the_loss_and_survives_a_file(few_pictures, tmp_path):
    untouched = torch.get_rng_state()
    steps = list(J.train(few_pictures, steps=40, batch=16, seed=5))
    assert torch.equal(torch.get_rng_state(), untouched)
    losses = [loss for _, loss in steps]
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    model = steps[-1][0].eval()
    J.write_atomically(tmp_path / J.WEIGHTS, model.state_dict(), {"vocabulary": J.vocabulary()})
    images = J.to_unit(torch.from_numpy(few_pictures.pixels))
    verdict = J.load_judge(tmp_path).verdict(images)
    assert torch.equal(verdict.kind, model.verdict(images).kind)
    assert J.score(verdict, few_pictures.labels)["kind"] > 0.5
