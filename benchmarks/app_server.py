"""Run `python app.py` in a separate process on a free port, for benchmarks and screenshots."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx


class Server:
    """The app in a separate process. The context manager starts the process on entry and kills it on exit.

    Args:
        root: Folder for the runs. The output of the process goes to a `.log` file next to this folder.
    """

    def __init__(self, root: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url, self.root = f"http://127.0.0.1:{self.port}", root
        self.lives = 0

    def start(self) -> None:
        """Start the process and wait until the app answers requests.

        Raises:
            RuntimeError: If the process exits before the app answers.
        """
        self.lives += 1
        variables = {"HIFA_RUNS": str(self.root), "GRADIO_SERVER_PORT": str(self.port)}
        quiet = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SERVER_NAME": "127.0.0.1"}
        with self.root.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"], env=os.environ | variables | quiet, stdout=log, stderr=log
            )
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"The server exited before it answered. See {self.root.with_suffix('.log')}.")
            with contextlib.suppress(httpx.TransportError):
                httpx.get(self.url, timeout=5)
                return
            time.sleep(0.3)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def megabytes(self) -> float:
        """Return the resident memory of the process in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024
