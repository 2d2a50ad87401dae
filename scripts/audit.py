"""Which known vulnerabilities the versions of constraints.txt have, by pip-audit and the open database OSV.

    python -m scripts.audit

Ends with 0 if there are none, 1 if there are, and 2 if nothing was learned, as where the database cannot be reached.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NONE, SOME, UNKNOWN = 0, 1, 2
#: Nothing is resolved or installed: the file has every version.
COMMAND = (
    *("pip_audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip"),
    *("--vulnerability-service", "osv", "--format", "json", "--progress-spinner", "off"),
)


def verdict(output: str, errors: str) -> tuple[int, str]:
    """The exit code and what to say, of what pip-audit wrote to standard output and to standard error.

    Its own exit code is 1 both for a vulnerability and for a database that is away.
    """
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        return UNKNOWN, (
            "nothing was audited: pip-audit did not get through. If its database (OSV) cannot be reached from here, "
            f"run this where it can. It said: {last}"
        )
    left_out = [
        f"{package['name']}: not audited, {package['skip_reason']}" for package in packages if "vulns" not in package
    ]
    found = []
    for package in packages:
        for hole in package.get("vulns", ()):
            mended = ", ".join(hole["fix_versions"]) or "no version"
            found.append(f"{package['name']} {package['version']}: {hole['id']}, mended in {mended}")
    if not packages or len(left_out) == len(packages):
        return UNKNOWN, "\n".join([*left_out, "nothing was audited: no package was looked up"])
    counts = f"{len(packages) - len(left_out)} packages audited, {len(found)} known vulnerabilities"
    return (SOME if found else NONE), "\n".join([*found, *left_out, counts])


def main() -> int:
    done = subprocess.run([sys.executable, "-m", *COMMAND], cwd=ROOT, capture_output=True, text=True, check=False)
    code, said = verdict(done.stdout, done.stderr)
    print(said, file=sys.stderr if code == UNKNOWN else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
