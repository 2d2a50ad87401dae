"""`python -m benchmarks.swap_soak`: publish twenty versions, some broken, to a real service that fifty clients use.

What the test suite does in twenty seconds, as long as wanted. Fails if an answer was wrong or not 200.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from tests.app.soak import publish_under_load, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap_soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = asyncio.run(publish_under_load(Path(directory), options.seconds, options.versions, options.clients))
    print(table(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
