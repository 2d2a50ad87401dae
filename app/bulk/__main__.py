"""`python -m app.bulk`: see `app.bulk.command`."""

from __future__ import annotations

import sys


def main() -> int:
    try:
        from app.bulk.command import main as command

        return command()
    except ModuleNotFoundError as error:
        print(f"error: app.bulk needs the extra bulk ({error}): pip install -e '.[bulk]'", file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())
