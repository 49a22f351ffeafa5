"""Camera path of turntables."""

from ..cameras import Camera


def turntable_cameras(
    frames: int, *, elevation_deg: float = 15.0, radius: float = 2.5, fov_deg: float = 40.0
) -> list[Camera]:
    """Return the cameras of a full turn at one elevation, counterclockwise from the front.

    Args:
        frames: Number of cameras.
        elevation_deg: Elevation of the cameras in degrees.
        radius: Distance to the origin in world units.
        fov_deg: Field of view in degrees.
    """
    return [Camera(360.0 * i / frames, elevation_deg, radius, fov_deg) for i in range(frames)]
