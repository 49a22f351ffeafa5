"""View suffixes, which are appended to a prompt after a comma."""

# In the order of the prompt embeddings.
VIEWS = ("front view", "side view", "back view", "overhead view")


def view_of(azimuth_deg: float, elevation_deg: float) -> str:
    """Return the view suffix of a camera.

    The suffix is overhead above an elevation of 60 degrees, front or back within 45 degrees of azimuth 0 or 180, and
    side otherwise.
    """
    if elevation_deg > 60:
        return "overhead view"
    away = abs((azimuth_deg + 180) % 360 - 180)
    return "front view" if away < 45 else "back view" if away > 135 else "side view"
