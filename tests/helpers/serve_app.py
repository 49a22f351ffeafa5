"""Serve the app with tiny models, as a process that a test can kill.

Usage: `python -m tests.helpers.serve_app ROOT MODEL PORT [HUB]`
"""

import sys
from pathlib import Path

import pytest

import app
from tests.helpers.space import LearningPipeline, small, tiny_model_cache, tiny_pipeline


def main() -> None:
    root, model, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    hub = sys.argv[4] if len(sys.argv) > 4 else None
    small(pytest.MonkeyPatch())
    demo = app.build_demo(root / "runs", tiny_model_cache(model, LearningPipeline), tiny_pipeline, hub=hub)
    app.launch(demo, server_port=port, quiet=True, allowed_paths=app.given_away(root / "runs"))


if __name__ == "__main__":
    main()
