"""Command line that uploads this checkout as a Space: `python -m hifa.space push USER/NAME`.

Without `--yes` the command is a dry run.
"""

import argparse
import sys

from .deploy.push import ROOT, push_space, space_files


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m hifa.space", description="Deploy the app as a Space.")
    push = parser.add_subparsers(required=True, metavar="push").add_parser(
        "push", help="upload the files that the Space needs", description="Upload the files that the Space needs."
    )
    push.add_argument("repo", metavar="USER/NAME")
    push.add_argument("--yes", action="store_true", help="upload the files; default: only list them")
    push.add_argument("--public", action="store_true", help="make a new Space public; default: private")
    push.add_argument("--endpoint", help="URL of the Hub; default: the public Hub")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Command line arguments. Default: those of the process.

    Returns:
        Exit status: 0, or 2 after an error. The error is printed to stderr in one line.
    """
    arguments = build_parser().parse_args(argv)
    from ..export.hub import check_repo_id

    try:
        check_repo_id(arguments.repo)
        files = space_files()
        size = sum((ROOT / path).stat().st_size for path in files)
        for path in files:
            print(f"{(ROOT / path).stat().st_size:>10,}  {path}")
        print(f"{len(files)} files, {size / 1e6:.1f} MB for {arguments.repo}")
        if not arguments.yes:
            print("Dry run: nothing was uploaded. Add --yes to upload. Log in with HF_TOKEN or `hf auth login`.")
            return 0
        url = push_space(arguments.repo, private=not arguments.public, endpoint=arguments.endpoint)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"The Space is at {url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
