"""Use the app from a program.

    python -m examples.gradio_client_example http://127.0.0.1:7860 "a red mushroom"

To use a Space, pass its name, such as USER/hifa, instead of the address. For a private Space, also set HF_TOKEN in the
environment.
"""

import argparse
import shutil
from pathlib import Path

from gradio_client import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "app", nargs="?", default="http://127.0.0.1:7860", help="address of the app or name of a Space"
    )
    parser.add_argument("prompt", nargs="?", default="a red mushroom")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("from-the-app.glb"))
    arguments = parser.parse_args()
    client = Client(arguments.app, verbose=False)
    job = client.submit(arguments.prompt, seed=0, steps=arguments.steps, api_name="/text_to_3d")
    for status, *_ in job:  # job.cancel() pauses the run; client.predict(run_id, api_name="/stop") ends it
        print(status["text"], flush=True)
    status, glb, *_ = job.result()
    if glb is None:
        raise SystemExit(f"There is no mesh: {status['text']}")
    shutil.copyfile(glb, arguments.output)
    print(f"{arguments.output}: {status['faces']:,} faces, {status['glb_megabytes']} MB, run {status['run_id']}")


if __name__ == "__main__":
    main()
