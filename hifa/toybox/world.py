"""The captioned 3D world of Toybox: scenes, captions, and the combinations that are held out from training.

    scene = sample_scene(rng)                        # one object, or one object on another
    scene = make_scene("mushroom", "red")            # a given object, without jitter
    image = render.render(scene.shape, pose)         # from a (3, 4) pose: color, mask, depth, normals
    caption(scene, rng, view="front view")           # "a crimson toadstool, front view"

World axes: z up, front along +x (azimuth 0), azimuth counterclockwise when viewed from above. Every scene is centered
at the origin and fits in a ball of radius `RADIUS`.
"""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from ..cameras import VIEWS, view_of
from .object_kinds import KINDS, KINDS_WITH_FRONT
from .shapes import Part, Shape, pack, solid_points, transform
from .vocabulary import COLOR_WORDS, COLORS, KIND_WORDS, OPENINGS, SIZE_WORDS


__all__ = [
    "COLORS", "KINDS", "KINDS_WITH_FRONT", "PAIR_BOTTOMS", "PAIR_TOPS", "RADIUS", "VIEWS", "Scene", "caption",
    "combinations", "is_held_out", "make_pair", "make_scene", "sample_scene", "view_of",
]  # fmt: skip

RADIUS = 0.8  # world units; every scene fits in a ball of this radius
FITTED_RADIUS = 0.75  # target of scaling, smaller because the grid is too coarse for the outermost corners
PAIR_TOPS = ("ball", "cube", "mushroom", "duck", "rabbit", "mug")
PAIR_BOTTOMS = ("cube", "table", "ball")


@dataclass(frozen=True)
class Scene:
    """One object, or `kind` on top of `on_kind`.

    Args:
        kind, color: Keys of `KINDS` and `COLORS`.
        on_kind, on_color: Keys for the object underneath; `None` for a single object.
        shape: Geometry for `render` and `shapes.signed_distance`.
    """

    kind: str
    color: str
    on_kind: str | None
    on_color: str | None
    shape: Shape


def combinations(held_out: bool) -> list[tuple[str, str]]:
    """Return the (kind, color) pairs that are held out from training (`held_out=True`), or all other pairs."""
    return [(k, c) for k in KINDS for c in COLORS if is_held_out(k, c) == held_out]


def is_held_out(kind: str, color: str) -> bool:
    """Return whether a pair is held out: whether its SHA-256 is among the smallest 10 %."""
    return (kind, color) in _held_out()


@functools.cache
def _held_out() -> frozenset[tuple[str, str]]:
    every = [(k, c) for k in KINDS for c in COLORS]
    every.sort(key=lambda pair: hashlib.sha256(" ".join(pair).encode()).hexdigest())
    return frozenset(every[: len(every) // 10])


def make_scene(kind: str, color: str, rng: np.random.Generator | None = None) -> Scene:
    """Make a scene with one object.

    With `rng`, proportions and color vary a little. Without `rng`, each value is the middle of the range.

    Raises:
        ValueError: If `kind` or `color` does not exist.
    """
    parts = _centered(_object_parts(kind, color, rng), FITTED_RADIUS)
    return Scene(kind, color, None, None, pack(parts))


def make_pair(kind: str, color: str, on_kind: str, on_color: str, rng: np.random.Generator | None = None) -> Scene:
    """Make a scene with a smaller `kind` standing on `on_kind`. Arguments and errors are as for `make_scene`."""
    top = _centered(_object_parts(kind, color, rng), 0.42)
    bottom = _centered(_object_parts(on_kind, on_color, rng), 0.62)
    # Place the lowest point of the upper object slightly below the highest point of the lower one, so that they touch.
    height = solid_points(bottom)[:, 2].max() - solid_points(top, reach=0.6)[:, 2].min() - 0.03
    # The upper object comes first, so that its cuts do not affect the lower object.
    parts = transform(top, 1.0, np.array([0, 0, height])) + bottom
    return Scene(kind, color, on_kind, on_color, pack(_centered(parts, FITTED_RADIUS)))


def sample_scene(rng: np.random.Generator, pair_share: float = 0.12) -> Scene:
    """Sample a scene of the training distribution. No held-out combination appears, alone or in a pair.

    Args:
        rng: Random generator.
        pair_share: Probability of a pair.
    """
    trained = combinations(held_out=False)
    kind, color = trained[rng.integers(len(trained))]
    if rng.random() >= pair_share:
        return make_scene(kind, color, rng)
    tops = [pair for pair in trained if pair[0] in PAIR_TOPS]
    bottoms = [pair for pair in trained if pair[0] in PAIR_BOTTOMS]
    (kind, color), (on_kind, on_color) = tops[rng.integers(len(tops))], bottoms[rng.integers(len(bottoms))]
    return make_pair(kind, color, on_kind, on_color, rng)


def caption(scene: Scene, rng: np.random.Generator | None = None, view: str | None = None) -> str:
    """Return a caption of the scene, with the view at the end. With `rng`, random synonyms and phrases are used."""
    text = _phrase(scene.kind, scene.color, rng, opening=True)
    if scene.on_kind is not None and scene.on_color is not None:
        joint = " on " if rng is None else rng.choice([" on ", " on ", " on top of ", " sitting on ", " standing on "])
        text += joint + _phrase(scene.on_kind, scene.on_color, rng, opening=False)
    return text if view is None else f"{text}, {view}"


def _phrase(kind: str, color: str, rng: np.random.Generator | None, opening: bool) -> str:
    if rng is None:
        return _with_article(f"{color} {kind}", "{a} ")
    # Use the plain word half of the time, otherwise any synonym.
    noun = kind if rng.random() < 0.5 else str(rng.choice(KIND_WORDS[kind]))
    hue = color if rng.random() < 0.5 else str(rng.choice(COLOR_WORDS[color]))
    size = str(rng.choice(SIZE_WORDS)) if opening else ""
    start = str(rng.choice(OPENINGS)) if opening else "{a} "
    return _with_article(f"{size}{hue} {noun}", start)


def _with_article(noun_phrase: str, opening: str) -> str:
    return opening.format(a="an" if noun_phrase[0] in "aeiou" else "a") + noun_phrase


def _object_parts(kind: str, color: str, rng: np.random.Generator | None) -> list[Part]:
    if kind not in KINDS:
        raise ValueError(f"Toybox has no kind {kind!r}. Choose one of {', '.join(KINDS)}.")
    if color not in COLORS:
        raise ValueError(f"Toybox has no color {color!r}. Choose one of {', '.join(COLORS)}.")
    if rng is None:
        return KINDS[kind](COLORS[color], lambda: 1.0)
    shade = np.clip(np.asarray(COLORS[color]) + rng.uniform(-0.03, 0.03, 3), 0.02, 0.98)
    return KINDS[kind](tuple(shade.tolist()), lambda: rng.uniform(0.92, 1.08))


def _centered(parts: list[Part], radius: float) -> list[Part]:
    """Center the bounding box at the origin, and scale the solid so that it just fits in a ball of `radius`."""
    points = solid_points(parts)
    middle = (points.min(0) + points.max(0)) / 2
    return transform(parts, radius / float(np.linalg.norm(points - middle, axis=1).max()), -middle)
