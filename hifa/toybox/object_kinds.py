"""The 24 kinds of Toybox objects. Each function returns the parts of one object whose front faces +x.

`c` is the color that the caption names. The largest visible part has this color, so that "a red snowman" is red. `j()`
draws a factor near 1 that varies proportions. Objects are built around the origin in arbitrary units. `world` centers
and scales the objects.
"""

from collections.abc import Callable

import numpy as np

from .shapes import BOX, CAPSULE, CONE, CUT, CYLINDER, ELLIPSOID, PRISM, TORUS, Part


Color = tuple[float, float, float]
Jitter = Callable[[], float]

WHITE, INK, WOOD, STEEL = (0.93, 0.93, 0.91), (0.07, 0.07, 0.08), (0.50, 0.33, 0.18), (0.62, 0.65, 0.68)
GLASS, DOUGH, BEAK, CREAM, YELLOW = (
    (0.55, 0.75, 0.86),
    (0.85, 0.65, 0.40),
    (0.98, 0.55, 0.08),
    (0.95, 0.85, 0.68),
    (0.98, 0.86, 0.25),
)


def _eyes(x: float, y: float, z: float, r: float) -> list[Part]:
    return [Part(ELLIPSOID, (r, r, r), (x, side * y, z), INK) for side in (-1, 1)]


def ball(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a ball."""
    return [Part(ELLIPSOID, (0.7, 0.7, 0.7), (0, 0, 0), c)]


def cube(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a cube."""
    return [Part(BOX, (0.5, 0.5, 0.5, 0.03), (0, 0, 0), c)]


def donut(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a donut."""
    tube = 0.24 * j()
    return [
        Part(TORUS, (0.48, tube), (0, 0, -0.03), DOUGH),
        Part(TORUS, (0.48, tube * 1.03), (0, 0, 0.03), c),
    ]


def mug(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a mug."""
    h = 0.5 * j()
    inner = tuple(v * 0.8 for v in c)
    return [
        Part(CYLINDER, (0.44, h, 0.04), (0, 0, 0), c),
        Part(CYLINDER, (0.35, h, 0.02), (0, 0, 0.12), inner, operation=CUT),
        # The handle is at the back, so that front and back differ.
        Part(TORUS, (0.25 * j(), 0.065), (-0.5, 0, 0), c, turn=(90, 0, 0)),
        Part(CYLINDER, (0.35, 0.5, 0.0), (0, 0, 0.5 - h + 0.12), inner, operation=CUT),
    ]


def mushroom(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a mushroom."""
    cap = 0.42 * j()
    spots = [(0.0, 0.0), (55, 20), (55, 92), (55, 164), (55, 236), (55, 308)]
    parts = [
        Part(ELLIPSOID, (0.66, 0.66, cap), (0, 0, 0.1), c),
        Part(BOX, (1, 1, 0.5, 0), (0, 0, -0.42), tuple(0.5 * v + 0.45 for v in c), operation=CUT),
        Part(CONE, (0.22, 0.15, 0.36), (0, 0, -0.36), WHITE),
    ]
    for polar, azimuth in spots:
        s, a = np.sin(np.radians(polar)), np.radians(azimuth)
        center = (0.66 * s * np.cos(a), 0.66 * s * np.sin(a), 0.1 + cap * np.cos(np.radians(polar)))
        parts.append(Part(ELLIPSOID, (0.12, 0.12, 0.1), center, WHITE))
    return parts


def chair(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a chair."""
    back = 0.42 * j()
    legs = [Part(CYLINDER, (0.06, 0.28, 0), (sx * 0.32, sy * 0.32, -0.3), WOOD) for sx in (-1, 1) for sy in (-1, 1)]
    return [
        Part(BOX, (0.42, 0.42, 0.08, 0.03), (0, 0, 0), c),
        Part(BOX, (0.07, 0.42, back, 0.03), (-0.36, 0, back), c),
        # Without cushions, the front view would differ from the back view only by the edge of the seat.
        Part(BOX, (0.3, 0.32, 0.06, 0.05), (0.04, 0, 0.1), CREAM),
        Part(BOX, (0.05, 0.3, back * 0.62, 0.04), (-0.29, 0, back * 1.1), CREAM),
        *legs,
    ]


def table(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a table."""
    h = 0.3 * j()
    legs = [Part(CYLINDER, (0.07, h, 0), (sx * 0.5, sy * 0.38, -h), WOOD) for sx in (-1, 1) for sy in (-1, 1)]
    return [Part(BOX, (0.66, 0.52, 0.07, 0.02), (0, 0, 0.03), c), *legs]


def house(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a house."""
    h = 0.34 * j()
    return [
        Part(BOX, (0.45, 0.45, h, 0.01), (0, 0, 0), CREAM),
        Part(PRISM, (0.6, 0.28, 0.52), (0, 0, h + 0.22), c),
        Part(BOX, (0.03, 0.13, 0.2, 0), (0.45, -0.15, 0.2 - h), WOOD),
        Part(BOX, (0.03, 0.11, 0.11, 0), (0.45, 0.22, 0.05), GLASS),
        *[Part(BOX, (0.12, 0.03, 0.12, 0), (0, side * 0.45, 0.02), GLASS) for side in (-1, 1)],
        Part(BOX, (0.07, 0.07, 0.2, 0), (-0.22, 0.26, h + 0.36), (0.45, 0.3, 0.28)),
    ]


def car(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a car."""
    cabin = 0.16 * j()
    wheels = [
        Part(CYLINDER, (0.16, 0.07, 0.03), (sx * 0.4, sy * 0.31, -0.16), INK, turn=(90, 0, 0))
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]
    hubs = [
        Part(CYLINDER, (0.07, 0.075, 0), (sx * 0.4, sy * 0.315, -0.16), STEEL, turn=(90, 0, 0))
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]
    return [
        Part(BOX, (0.7, 0.32, 0.16, 0.07), (0, 0, 0), c),
        Part(BOX, (0.36, 0.28, cabin, 0.07), (-0.12, 0, 0.24), c),
        Part(BOX, (0.02, 0.22, cabin * 0.55, 0), (0.235, 0, 0.27), GLASS),
        Part(BOX, (0.02, 0.22, cabin * 0.5, 0), (-0.475, 0, 0.27), INK),
        *[Part(BOX, (0.26, 0.02, cabin * 0.5, 0), (-0.12, side * 0.275, 0.27), GLASS) for side in (-1, 1)],
        # Large headlights, as on a toy car. At 64 pixels, smaller headlights would be smaller than a latent pixel.
        *[Part(ELLIPSOID, (0.07, 0.1, 0.09), (0.67, side * 0.2, 0.03), YELLOW) for side in (-1, 1)],
        Part(BOX, (0.02, 0.09, 0.06, 0), (0.7, 0, 0.0), INK),
        Part(BOX, (0.02, 0.2, 0.07, 0.02), (-0.7, 0, 0.0), WHITE),
        *wheels,
        *hubs,
    ]


def rocket(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a rocket."""
    h = 0.42 * j()
    fins = [
        Part(
            BOX, (0.17, 0.04, 0.16, 0.01), (0.28 * np.cos(a), 0.28 * np.sin(a), -h), STEEL, turn=(0, 0, np.degrees(a))
        )
        for a in np.radians([45, 135, 225, 315])
    ]
    return [
        Part(CYLINDER, (0.25, h, 0.02), (0, 0, 0), c),
        Part(CONE, (0.25, 0.02, 0.2), (0, 0, h + 0.2), WHITE),
        # A window with a frame, large enough to distinguish front and back at 64 pixels.
        Part(ELLIPSOID, (0.07, 0.17, 0.17), (0.22, 0, 0.14), INK),
        Part(ELLIPSOID, (0.08, 0.13, 0.13), (0.23, 0, 0.14), GLASS),
        Part(CONE, (0.18, 0.1, 0.08), (0, 0, -h - 0.06), INK),
        *fins,
    ]


def snowman(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a snowman."""
    top = 0.2 * j()
    return [
        Part(ELLIPSOID, (0.38, 0.38, 0.36), (0, 0, -0.42), c),
        Part(ELLIPSOID, (0.28, 0.28, 0.27), (0, 0, 0.06), c),
        Part(ELLIPSOID, (top, top, top), (0, 0, 0.44), c),
        Part(CYLINDER, (0.26, 0.025, 0), (0, 0, 0.57), INK),
        Part(CYLINDER, (0.16, 0.13, 0.02), (0, 0, 0.7), INK),
        Part(CONE, (0.08, 0.01, 0.16), (top + 0.12, 0, 0.42), BEAK, turn=(0, 90, 0)),
        *_eyes(top * 0.84, 0.1, 0.5, 0.05),
        *[Part(ELLIPSOID, (0.06, 0.06, 0.06), (0.26, 0, z), INK) for z in (-0.04, 0.14)],
        *[Part(ELLIPSOID, (0.06, 0.06, 0.06), (0.36, 0, z), INK) for z in (-0.3,)],
    ]


def ice_cream(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of an ice cream cone."""
    r = 0.4 * j()
    return [
        Part(CONE, (0.03, 0.32, 0.45), (0, 0, -0.42), DOUGH),
        Part(ELLIPSOID, (r, r, r * 0.95), (0, 0, 0.22), c),
        Part(TORUS, (0.32, 0.09), (0, 0, 0.06), c),
    ]


def tree(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a fir tree."""
    w = j()
    return [
        Part(CYLINDER, (0.1, 0.18, 0), (0, 0, -0.62), WOOD),
        Part(CONE, (0.5 * w, 0.1, 0.25), (0, 0, -0.28), c),
        Part(CONE, (0.4 * w, 0.06, 0.23), (0, 0, 0.07), c),
        Part(CONE, (0.3 * w, 0.01, 0.23), (0, 0, 0.42), c),
    ]


def duck(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a duck."""
    head = 0.26 * j()
    return [
        Part(ELLIPSOID, (0.5, 0.36, 0.32), (-0.08, 0, -0.2), c),
        Part(CONE, (0.2, 0.04, 0.16), (-0.56, 0, -0.02), c, turn=(0, -50, 0)),
        Part(ELLIPSOID, (head, head, head), (0.26, 0, 0.26), c),
        Part(ELLIPSOID, (0.18, 0.14, 0.06), (0.52, 0, 0.2), BEAK),
        *_eyes(0.26 + head * 0.72, head * 0.55, 0.26 + head * 0.42, 0.05),
        *[Part(ELLIPSOID, (0.28, 0.07, 0.16), (-0.12, side * 0.34, -0.14), c, turn=(0, 12, 0)) for side in (-1, 1)],
    ]


def teddy_bear(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a teddy bear."""
    head = 0.3 * j()
    parts = [
        Part(ELLIPSOID, (0.3, 0.34, 0.36), (0, 0, -0.22), c),
        Part(ELLIPSOID, (0.12, 0.22, 0.25), (0.22, 0, -0.22), CREAM),
        Part(ELLIPSOID, (head, head * 1.05, head * 0.95), (0.02, 0, 0.32), c),
        Part(ELLIPSOID, (0.13, 0.14, 0.11), (head * 0.9, 0, 0.26), CREAM),
        Part(ELLIPSOID, (0.05, 0.06, 0.045), (head * 0.9 + 0.12, 0, 0.3), INK),
        *_eyes(head * 0.88, 0.12, 0.42, 0.04),
    ]
    for side in (-1, 1):
        parts.append(Part(ELLIPSOID, (0.08, 0.12, 0.12), (0, side * 0.25, 0.58), c))
        parts.append(Part(ELLIPSOID, (0.12, 0.22, 0.11), (0.08, side * 0.42, -0.08), c, turn=(side * -25, 0, 0)))
        parts.append(Part(ELLIPSOID, (0.24, 0.14, 0.13), (0.2, side * 0.24, -0.52), c))
    return parts


def bottle(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a bottle."""
    h = 0.38 * j()
    return [
        Part(CYLINDER, (0.24, h, 0.05), (0, 0, -0.25), c),
        Part(CONE, (0.23, 0.09, 0.12), (0, 0, h - 0.15), c),
        Part(CYLINDER, (0.085, 0.16, 0), (0, 0, h + 0.1), c),
        Part(CYLINDER, (0.1, 0.06, 0.01), (0, 0, h + 0.26), STEEL),
        Part(CYLINDER, (0.247, 0.17, 0), (0, 0, -0.28), WHITE),
    ]


def lamp(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a lamp."""
    h = 0.26 * j()
    return [
        Part(CONE, (0.5, 0.24, h), (0, 0, 0.38), c),
        Part(CYLINDER, (0.05, 0.42, 0), (0, 0, -0.2), STEEL),
        Part(CYLINDER, (0.3, 0.05, 0.02), (0, 0, -0.62), STEEL),
    ]


def sailboat(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a sailboat."""
    h = 0.5 * j()
    return [
        Part(ELLIPSOID, (0.7, 0.28, 0.3), (0, 0, -0.3), c),
        Part(BOX, (1, 1, 0.3, 0), (0, 0, 0.0), WOOD, operation=CUT),
        Part(CYLINDER, (0.04, h + 0.1, 0), (0.1, 0, h - 0.2), WOOD),
        # Two sails in the plane y = 0. The larger sail is behind the mast.
        Part(PRISM, (0.58, h * 0.9, 0.05), (0.05, 0, h - 0.18), WHITE, turn=(0, 0, 90)),
        Part(BOX, (0.5, 0.1, 1.2, 0), (0.62, 0, h), WHITE, operation=CUT),
        Part(PRISM, (0.36, h * 0.6, 0.05), (0.2, 0, h * 0.6 - 0.2), c, turn=(0, 0, 90)),
    ]


def airplane(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of an airplane."""
    span = 0.68 * j()
    return [
        Part(ELLIPSOID, (0.7, 0.19, 0.19), (0, 0, 0), c),
        Part(BOX, (0.19, span, 0.045, 0.03), (0.08, 0, -0.02), STEEL),
        Part(BOX, (0.12, 0.3, 0.04, 0.03), (-0.56, 0, 0.06), STEEL),
        Part(BOX, (0.12, 0.04, 0.18, 0.03), (-0.56, 0, 0.22), c),
        Part(ELLIPSOID, (0.18, 0.12, 0.12), (0.34, 0, 0.13), GLASS),
        # The propeller is at the front. A rudder in the color of the body is at the back.
        Part(BOX, (0.02, 0.05, 0.32, 0.02), (0.68, 0, 0), INK),
        Part(ELLIPSOID, (0.12, 0.11, 0.11), (0.68, 0, 0), YELLOW),
    ]


def umbrella(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of an umbrella."""
    h = 0.4 * j()
    return [
        Part(ELLIPSOID, (0.68, 0.68, h), (0, 0, 0.15), c),
        Part(ELLIPSOID, (0.63, 0.63, h - 0.05), (0, 0, 0.12), tuple(v * 0.8 for v in c), operation=CUT),
        Part(BOX, (1, 1, 0.5, 0), (0, 0, -0.37), c, operation=CUT),
        Part(CYLINDER, (0.035, 0.66, 0), (0, 0, -0.02), INK),
        Part(TORUS, (0.1, 0.04), (0.1, 0, -0.66), WOOD, turn=(90, 0, 0)),
    ]


def sofa(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a sofa."""
    back = 0.26 * j()
    cushion = tuple(min(1.0, v * 0.8 + 0.16) for v in c)
    return [
        Part(BOX, (0.34, 0.66, 0.15, 0.04), (0, 0, -0.2), c),
        Part(BOX, (0.12, 0.66, back, 0.06), (-0.28, 0, back - 0.15), c),
        *[Part(BOX, (0.34, 0.11, 0.25, 0.06), (0, side * 0.6, -0.08), c) for side in (-1, 1)],
        *[Part(BOX, (0.25, 0.23, 0.06, 0.04), (0.1, side * 0.25, -0.01), cushion) for side in (-1, 1)],
    ]


def rabbit(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a rabbit."""
    ear = 0.26 * j()
    return [
        Part(ELLIPSOID, (0.38, 0.3, 0.32), (-0.1, 0, -0.3), c),
        Part(ELLIPSOID, (0.24, 0.22, 0.22), (0.2, 0, 0.12), c),
        *[
            Part(ELLIPSOID, (0.06, 0.085, ear), (0.1, side * 0.11, 0.26 + ear), c, turn=(-side * 12, 0, 0))
            for side in (-1, 1)
        ],
        *[
            Part(
                ELLIPSOID,
                (0.03, 0.045, ear * 0.7),
                (0.15, side * 0.11, 0.26 + ear),
                (0.96, 0.7, 0.72),
                turn=(-side * 12, 0, 0),
            )
            for side in (-1, 1)
        ],
        Part(ELLIPSOID, (0.13, 0.13, 0.13), (-0.48, 0, -0.26), WHITE),
        Part(ELLIPSOID, (0.05, 0.06, 0.04), (0.44, 0, 0.1), (0.95, 0.5, 0.55)),
        *_eyes(0.37, 0.12, 0.2, 0.045),
        *[Part(ELLIPSOID, (0.18, 0.08, 0.07), (0.12, side * 0.2, -0.56), c) for side in (-1, 1)],
    ]


def robot(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a robot."""
    head = 0.2 * j()
    parts = [
        Part(BOX, (0.24, 0.34, 0.32, 0.03), (0, 0, -0.08), c),
        Part(BOX, (0.02, 0.22, 0.16, 0), (0.24, 0, -0.02), STEEL),
        Part(BOX, (head, head * 1.2, head, 0.03), (0, 0, 0.44), c),
        Part(BOX, (0.02, 0.13, 0.03, 0), (head, 0, 0.35), INK),
        Part(CYLINDER, (0.025, 0.1, 0), (0, 0, 0.44 + head + 0.08), STEEL),
        Part(ELLIPSOID, (0.06, 0.06, 0.06), (0, 0, 0.44 + head + 0.2), (0.95, 0.25, 0.2)),
    ]
    for side in (-1, 1):
        parts.append(Part(ELLIPSOID, (0.04, 0.06, 0.06), (head, side * 0.1, 0.49), YELLOW))
        parts.append(Part(CAPSULE, (0.08, 0.2), (0, side * 0.44, -0.08), STEEL))
        parts.append(Part(BOX, (0.15, 0.1, 0.15, 0.02), (0.03, side * 0.18, -0.52), STEEL))
    return parts


def top_hat(c: Color, j: Jitter) -> list[Part]:
    """Return the parts of a top hat."""
    h = 0.36 * j()
    band = WHITE if sum(c) < 1.2 else INK
    return [
        Part(CYLINDER, (0.68, 0.05, 0.04), (0, 0, -0.35), c),
        Part(CONE, (0.36, 0.42, h), (0, 0, h - 0.35), c),
        Part(CYLINDER, (0.385, 0.07, 0), (0, 0, -0.2), band),
    ]


KINDS: dict[str, Callable[[Color, Jitter], list[Part]]] = {
    "ball": ball,
    "cube": cube,
    "donut": donut,
    "mug": mug,
    "mushroom": mushroom,
    "chair": chair,
    "table": table,
    "house": house,
    "car": car,
    "rocket": rocket,
    "snowman": snowman,
    "ice cream": ice_cream,
    "tree": tree,
    "duck": duck,
    "teddy bear": teddy_bear,
    "bottle": bottle,
    "lamp": lamp,
    "sailboat": sailboat,
    "airplane": airplane,
    "umbrella": umbrella,
    "sofa": sofa,
    "rabbit": rabbit,
    "robot": robot,
    "top hat": top_hat,
}

# Kinds whose front view differs from the back view.
KINDS_WITH_FRONT = (
    "mug", "chair", "house", "car", "snowman", "duck", "teddy bear", "sofa", "rabbit", "robot", "airplane", "rocket",
)  # fmt: skip
