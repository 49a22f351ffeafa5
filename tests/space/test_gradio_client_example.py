"""The program that README names as an example for programs, as it is run."""

import subprocess
import sys

import trimesh

from hifa.space.deploy.push import ROOT
from tests.helpers.space import PATIENCE, AppServer


def test_it_follows_a_run_and_saves_its_mesh(tiny_prior, tmp_path):
    output = tmp_path / "a car.glb"
    with AppServer(tmp_path, tiny_prior) as served:
        arguments = [served.url, "a blue car", "--steps", "12", "--output", str(output)]
        done = subprocess.run(
            [sys.executable, "-m", "examples.gradio_client_example", *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        *news, last = done.stdout.splitlines()
        run = served.store.open(last.rpartition(" ")[2])
        record = run.read()
        assert record.request.prompt == "a blue car" and record.status == "finished" and record.steps == 12
        assert output.read_bytes() == (run.files / record.files["glb"]).read_bytes()
    assert any("Step " in line for line in news), "it says how far the run is"
    faces = len(trimesh.load(output, force="mesh").faces)
    assert faces > 100 and f"{output}: {faces:,} faces, " in last
