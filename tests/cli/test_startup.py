"""Test how a process shares the CPU with other processes."""

import os
import subprocess
import sys
import time

import pytest

from hifa.cli.startup import share_cpu


@pytest.mark.parametrize(
    ("loadavg", "given", "set_to"),
    [
        ("1.90 0.70 0.10 1/95 7", {}, None),
        ("0.10 0.10 0.10 2/95 7", {}, "1000"),
        ("no such thing", {}, None),
        ("0.10 0.10 0.10 2/95 7", {"OMP_WAIT_POLICY": "active"}, None),
        ("0.10 0.10 0.10 2/95 7", {"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_threads_wait_asleep_on_a_busy_machine(tmp_path, monkeypatch, loadavg, given, set_to):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "loadavg").write_text(loadavg)
    monkeypatch.setattr("hifa.cli.startup.LOADAVG", tmp_path / "loadavg")
    share_cpu()
    assert os.environ.get("GOMP_SPINCOUNT") == set_to


def test_a_process_that_keeps_a_core_busy_is_seen(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(0.5)
        share_cpu()
        other.kill()
    assert os.environ.get("GOMP_SPINCOUNT") == "1000"
