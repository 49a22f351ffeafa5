"""The world of Toybox: its words, what is never trained on, and its renderer against closed forms."""

import re
from itertools import product

import numpy as np
import pytest

from hifa.cameras import VIEWS
from hifa.toybox import shapes, vocabulary, world
from hifa.toybox.models import MAX_TOKENS, build_tokenizer
from hifa.toybox.render import orbit_pose, render


# Written down so that nobody changes the split by accident: the prior was trained on what is not in it.
HELD_OUT_EXAMPLES = {("chair", "black"), ("donut", "orange"), ("house", "red"), ("mug", "blue"), ("snowman", "brown")}


def some_captions(seed: int, draws: int = 4) -> list[str]:
    """Captions of every kind and color and of pairs, in varied words; captions need no geometry."""
    rng, captions = np.random.default_rng(seed), []
    for kind, color in product(world.KINDS, world.COLORS):
        for _ in range(draws):
            scene = world.Scene(kind, color, None, None, shape=None)
            captions.append(world.caption(scene, rng, view=VIEWS[rng.integers(4)]))
    colors = list(world.COLORS)
    for kind, below in product(world.PAIR_TOPS, world.PAIR_BOTTOMS):
        for _ in range(20):
            scene = world.Scene(kind, colors[rng.integers(12)], below, colors[rng.integers(12)], shape=None)
            captions.append(world.caption(scene, rng, view=VIEWS[rng.integers(4)]))
    return captions


def test_enough_kinds_and_colors():
    assert len(world.KINDS) >= 24 and len(world.COLORS) >= 12
    assert list(vocabulary.KIND_WORDS) == list(world.KINDS)
    assert list(vocabulary.COLOR_WORDS) == list(world.COLORS)
    assert set(world.KINDS_WITH_FRONT) | set(world.PAIR_TOPS) | set(world.PAIR_BOTTOMS) <= set(world.KINDS)
    assert vocabulary.VIEWS == VIEWS


def test_synonyms_belong_to_one_kind_or_color():
    for table in (vocabulary.KIND_WORDS, vocabulary.COLOR_WORDS):
        phrases = [phrase for synonyms in table.values() for phrase in synonyms]
        assert len(phrases) == len(set(phrases))
        assert all(name in synonyms for name, synonyms in table.items())


def test_colors_are_far_apart():
    values = np.array(list(world.COLORS.values()))
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1) + 9 * np.eye(len(values))
    assert distances.min() > 0.25 and values.min() >= 0 and values.max() <= 1


def test_held_out_tenth_is_fixed():
    held_out, trained = world.combinations(held_out=True), world.combinations(held_out=False)
    assert len(held_out) == 28 and len(held_out) + len(trained) == 288
    assert not set(held_out) & set(trained)
    assert set(held_out) >= HELD_OUT_EXAMPLES
    assert all(world.is_held_out(*pair) for pair in held_out) and not world.is_held_out("mushroom", "red")
    # Every kind and every color is seen in training.
    assert {kind for kind, _ in trained} == set(world.KINDS) and {color for _, color in trained} == set(world.COLORS)


@pytest.mark.parametrize("pair_share, draws", [(0.0, 40), (1.0, 20)])
def test_held_out_combinations_are_never_sampled(pair_share, draws):
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(draws):
        scene = world.sample_scene(rng, pair_share)
        assert not world.is_held_out(scene.kind, scene.color)
        assert (scene.on_kind is not None) == (pair_share == 1)
        if scene.on_kind is not None:
            assert not world.is_held_out(scene.on_kind, scene.on_color)
            assert scene.kind in world.PAIR_TOPS and scene.on_kind in world.PAIR_BOTTOMS
        kinds.add(scene.kind)
    assert len(kinds) > 3


def test_scenes_are_a_function_of_the_generator():
    first, again, other = (world.sample_scene(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.kind == again.kind and np.array_equal(first.shape.size, again.shape.size)
    assert (first.kind, first.color) != (other.kind, other.color) or first.shape.size.shape != other.shape.size.shape


def shell(radius: float, n: int = 4000) -> np.ndarray:
    """Points spread evenly on a sphere (Fibonacci lattice): no gap wider than 0.05 radians."""
    i = np.arange(n) + 0.5
    polar, azimuth = np.arccos(1 - 2 * i / n), np.pi * (1 + 5**0.5) * i
    rim = np.sin(polar)
    return radius * np.stack([np.cos(azimuth) * rim, np.sin(azimuth) * rim, np.cos(polar)], 1).astype(np.float32)


def sticks_out(scene: world.Scene, radius: float) -> bool:
    return bool((shapes.signed_distance(scene.shape, shell(radius)) < 0).any())


@pytest.mark.parametrize("kind", world.KINDS)
def test_every_kind_fits_in_the_ball(kind):
    scene = world.make_scene(kind, "red")
    assert not sticks_out(scene, world.RADIUS + 0.005)
    assert sticks_out(scene, 0.9 * world.RADIUS), "and fills it"


def test_sampled_scenes_fit_in_the_ball_that_is_rendered():
    rng = np.random.default_rng(0)
    for pair_share in [0.0] * 10 + [1.0] * 5:
        scene = world.sample_scene(rng, pair_share)
        # What lies beyond 0.8, the default of `render`, is not seen.
        assert not sticks_out(scene, 0.8), (scene.kind, scene.on_kind)


@pytest.mark.parametrize(
    "arguments, wrong",
    [(("unicorn", "red"), "unicorn"), (("mug", "beige"), "beige"), (("ball", "red", "cloud", "red"), "cloud")],
)
def test_unknown_kinds_and_colors_are_refused_by_name(arguments, wrong):
    with pytest.raises(ValueError, match=wrong):
        (world.make_scene if len(arguments) == 2 else world.make_pair)(*arguments)


def test_plain_captions():
    def plain(*what, view=None):
        return world.caption(world.Scene(*what, shape=None), view=view)

    assert plain("mushroom", "red", None, None) == "a red mushroom"
    assert plain("mug", "orange", None, None, view="back view") == "an orange mug, back view"
    assert plain("ball", "red", "cube", "blue", view="front view") == "a red ball on a blue cube, front view"


def test_varied_captions_use_known_words_and_end_with_the_view():
    captions, known = some_captions(seed=0), set(vocabulary.all_words())
    for text in captions:
        assert text.endswith(tuple(f", {view}" for view in VIEWS)) and text.count(",") == 1
        assert set(vocabulary.words(text)) <= known, text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), f"article: {text}"
    # Wording varies, and synonyms of every kind and color occur.
    everything = " ".join(captions)
    assert len(set(captions)) > len(captions) / 2
    for synonyms in (*vocabulary.KIND_WORDS.values(), *vocabulary.COLOR_WORDS.values()):
        assert all(phrase in everything for phrase in synonyms), synonyms


def test_tokenizer_knows_every_caption():
    tokenizer, captions = build_tokenizer(), [*some_captions(seed=1, draws=2), ""]
    rows = tokenizer(captions).input_ids
    assert not any(tokenizer.unk_token_id in row for row in rows)
    assert max(map(len, rows)) <= MAX_TOKENS == tokenizer.model_max_length
    assert tokenizer("A RED Mushroom").input_ids == tokenizer("a red mushroom").input_ids
    assert tokenizer.unk_token_id in tokenizer("a red unicorn").input_ids
    assert len(tokenizer) == len(vocabulary.all_words()) + 3


def test_tokenizer_pads_with_the_end_and_marks_both_ends():
    tokenizer = build_tokenizer()
    row = tokenizer("a red ball", padding="max_length", max_length=MAX_TOKENS).input_ids
    assert len(row) == MAX_TOKENS
    assert row[0] == tokenizer.bos_token_id and set(row[4:]) == {tokenizer.eos_token_id}
    assert tokenizer.decode(row[1:4]) == "a red ball"


@pytest.mark.parametrize("word, near", [("mushrom", "mushroom"), ("Bunnny", "bunny"), ("crimsn", "crimson")])
def test_nearest_words(word, near):
    assert vocabulary.nearest_words(word)[0] == near


@pytest.mark.parametrize("word", ["dragon", "mushrom", "zzz", "Ж"])
def test_an_unknown_word_is_explained(word):
    text = vocabulary.explain_unknown_word(word)
    assert repr(word) in text and "\n" not in text
    assert all(repr(near) in text for near in vocabulary.nearest_words(word)) and vocabulary.nearest_words(word)
    assert all(kind in text for kind in world.KINDS) and all(color in text for color in world.COLORS)
    assert "from_pretrained" in text, "says how to use another prior"


@pytest.mark.parametrize("azimuth, elevation", [(0, 0), (70, 35), (200, 80)])
def test_render_of_a_ball_in_closed_form(azimuth, elevation):
    scene = world.make_scene("ball", "white")
    radius, size, fov = float(scene.shape.size[0, 0]), 48, 40.0
    np.testing.assert_allclose(scene.shape.center[0], 0, atol=1e-6)
    pose = orbit_pose(azimuth, elevation, 2.5)
    picture = render(scene.shape, pose, size, fov, background=(0.25, 0.5, 0.75), samples=1)
    # Rays through the pixel centers, as in hifa.cameras.
    focal = 0.5 * size / np.tan(np.radians(fov) / 2)
    v, u = np.meshgrid(*[(np.arange(size) + 0.5 - size / 2) / focal] * 2, indexing="ij")
    directions = np.stack([u, v, np.ones_like(u)], -1) @ pose[:, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    along = -directions @ pose[:, 3]
    impact = np.sqrt(2.5**2 - along**2)
    inside, outside, interior = impact < radius - 0.01, impact > radius + 0.01, impact < 0.9 * radius
    assert (picture.mask[inside] == 1).all() and (picture.mask[outside] == 0).all()
    depth = along - np.sqrt(np.maximum(radius**2 - impact**2, 0))
    np.testing.assert_allclose(picture.depth[interior], depth[interior], atol=5e-3)
    assert (picture.depth[outside] == 0).all() and (picture.normals[outside] == 0).all()
    normals = (pose[:, 3] + directions * depth[..., None]) / radius
    assert ((picture.normals * normals).sum(-1)[interior] > 0.999).all()
    np.testing.assert_allclose(
        picture.color[outside], np.broadcast_to([0.25, 0.5, 0.75], picture.color[outside].shape)
    )


def test_mask_is_the_covered_share_of_a_pixel():
    scene = world.make_scene("ball", "white")
    size, radius = 32, float(scene.shape.size[0, 0])
    mask = render(scene.shape, orbit_pose(0, 0, 2.5), size, samples=4).mask
    # The outline of a ball is a cone of half-angle asin(r / d): a disc of radius tan(asin(r / d)) on the image plane.
    disc = np.pi * np.tan(np.arcsin(radius / 2.5)) ** 2 / (2 * np.tan(np.radians(20))) ** 2
    assert mask.mean() == pytest.approx(disc, rel=0.01)
    assert ((mask > 0) & (mask < 1)).any(), "the rim is smooth"


def test_render_looks_the_same_as_the_world_turns_around_a_ball():
    scene = world.make_scene("ball", "green")
    first, second = (render(scene.shape, orbit_pose(a, 30, 2.5), 24).color for a in (0, 137))
    np.testing.assert_allclose(first, second, atol=2e-3)  # the light has no azimuth


def seen_from(scene: world.Scene, azimuth: float, elevation: float = 15) -> np.ndarray:
    return render(scene.shape, orbit_pose(azimuth, elevation, 2.5), 64, samples=1).color


def test_beak_and_eyes_of_a_duck_are_in_front():
    duck = world.make_scene("duck", "cyan")  # against cyan, the orange beak and the black eyes both stand out

    def beak(image):
        return int((image[..., 0] > image[..., 2] + 0.2).sum())

    def eyes(image):
        return int((image.max(-1) < 0.25).sum())

    front, back, left = (seen_from(duck, azimuth) for azimuth in (0, 180, 90))
    assert beak(front) > 10 and beak(back) == 0
    assert eyes(front) >= 4 and eyes(back) == 0
    # From azimuth 90, on +y, the front +x is on the left, since the right of the image is -x.
    columns = np.nonzero((left[..., 0] > left[..., 2] + 0.2).any(0))[0]
    assert len(columns) and columns.max() < 32


@pytest.mark.parametrize("kind", world.KINDS_WITH_FRONT)
def test_kinds_with_a_front_differ_from_behind(kind):
    scene = world.make_scene(kind, "green")
    assert np.abs(seen_from(scene, 0) - seen_from(scene, 180)).mean() > 1e-3


@pytest.mark.parametrize("kind", ["ball", "cube", "table", "bottle"])
def test_kinds_without_a_front_do_not(kind):
    scene = world.make_scene(kind, "green")
    assert np.abs(seen_from(scene, 0) - seen_from(scene, 180)).mean() < 1e-3


def test_a_pair_stands_and_touches():
    scene = world.make_pair("ball", "red", "cube", "blue")
    z = np.linspace(-0.74, 0.74, 400, dtype=np.float32)
    axis = np.stack([0 * z, 0 * z, z], 1)
    inside = shapes.signed_distance(scene.shape, axis) < 0
    # One unbroken run along the vertical axis: no gap between the two.
    assert inside.any() and (np.diff(inside.astype(int)) != 0).sum() <= 2
    image = seen_from(scene, 0, 0)
    red, blue = image[..., 0] > image[..., 2] + 0.3, image[..., 2] > image[..., 0] + 0.3
    assert red.sum() > 50 and blue.sum() > 50
    assert np.nonzero(red)[0].mean() < np.nonzero(blue)[0].mean(), "the ball is above"


# Signed distances, by hand.


@pytest.mark.parametrize(
    "primitive, size, point, expected",
    [
        (shapes.ELLIPSOID, (0.5, 0.5, 0.5), (1, 0, 0), 0.5),
        (shapes.ELLIPSOID, (0.5, 0.5, 0.5), (0, 0, 0), -0.5),
        (shapes.BOX, (0.5, 0.25, 0.25, 0), (0.9, 0.55, 0), 0.5),  # 0.4 and 0.3 beyond an edge
        (shapes.BOX, (0.5, 0.5, 0.5, 0.1), (0, 0, 0), -0.5),
        (shapes.CYLINDER, (0.3, 0.5, 0), (0.7, 0, 0.8), 0.5),
        (shapes.CYLINDER, (0.3, 0.5, 0), (0, 0, 0), -0.3),
        (shapes.CONE, (0.3, 0.3, 0.5), (0.7, 0, 0.8), 0.5),  # equal radii: a cylinder
        (shapes.TORUS, (0.5, 0.1), (0.5, 0, 0.3), 0.2),
        (shapes.TORUS, (0.5, 0.1), (0, 0, 0), 0.4),
        (shapes.CAPSULE, (0.1, 0.2), (0, 0, 0.5), 0.2),
        (shapes.CAPSULE, (0.1, 0.2), (0.3, 0, 0.1), 0.2),
        (shapes.PRISM, (0.3, 0.2, 0.5), (0, 0, -0.3), 0.1),
        (shapes.PRISM, (0.3, 0.2, 0.5), (0.7, 0, 0), 0.2),
    ],
)
def test_distances_by_hand(primitive, size, point, expected):
    shape = shapes.pack([shapes.Part(primitive, size, (0, 0, 0), (1, 1, 1))])
    shifted = shapes.pack([shapes.Part(primitive, size, (1.0, 2.0, 3.0), (1, 1, 1))])
    value = shapes.signed_distance(shape, np.array([point]))
    assert value[0] == pytest.approx(expected, abs=1e-6)
    assert shapes.signed_distance(shifted, np.array([point]) + np.array([1, 2, 3]))[0] == pytest.approx(
        expected, abs=1e-5
    )


def test_turns_and_cuts_by_hand():
    # A quarter turn about x lays the z axis of a capsule along -y or y.
    turned = shapes.pack([shapes.Part(shapes.CAPSULE, (0.1, 0.4), (0, 0, 0), (1, 1, 1), turn=(90, 0, 0))])
    values = shapes.signed_distance(turned, np.array([[0, 0.3, 0], [0, 0, 0.3]]))
    np.testing.assert_allclose(values, [-0.1, 0.2], atol=1e-6)
    ball = shapes.Part(shapes.ELLIPSOID, (0.5, 0.5, 0.5), (0, 0, 0), (1, 1, 1))
    lid = shapes.Part(shapes.BOX, (1, 1, 0.5, 0), (0, 0, 0.5), (1, 1, 1), operation=shapes.CUT)
    bowl = shapes.pack([ball, lid])
    np.testing.assert_allclose(
        shapes.signed_distance(bowl, np.array([[0, 0, 0.2], [0, 0, -0.1], [0, 0, -0.4]])), [0.2, -0.1, -0.1], atol=1e-6
    )
