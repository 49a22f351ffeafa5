"""The words for a view, which end a prompt after a comma."""

# In the order of the prompt embeddings.
VIEWS = ("front view", "side view", "back view", "overhead view")


def view_of(azimuth_deg: float, elevation_deg: float) -> str:
    """View words of a camera: overhead above 60 degrees, front or back within 45 of azimuth 0 or 180, else side."""
    if elevation_deg > 60:
        return "overhead view"
    away = abs((azimuth_deg + 180) % 360 - 180)
    return "front view" if away < 45 else "back view" if away > 135 else "side view"
