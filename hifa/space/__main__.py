"""python -m hifa.space push USER/NAME: upload this checkout as a Space; a dry run unless --yes is given."""

import argparse
import sys

from .push import ROOT, push_space, space_files


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hifa.space", description="The app as a Hugging Face Space.")
    push = parser.add_subparsers(required=True, metavar="push").add_parser(
        "push", help="upload exactly what the Space needs", description="Upload exactly what the Space needs."
    )
    push.add_argument("repo", metavar="USER/NAME")
    push.add_argument("--yes", action="store_true", help="upload; without it the files are listed only")
    push.add_argument("--public", action="store_true", help="make a new Space public; default: private")
    push.add_argument("--endpoint", help="address of the Hub, if it is another than the usual one")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0, or 2 after an error, which is reported in one line."""
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
            print("Dry run: nothing was uploaded. Add --yes to upload, with HF_TOKEN or `hf auth login`.")
            return 0
        url = push_space(arguments.repo, private=not arguments.public, endpoint=arguments.endpoint)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"The Space is at {url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
