"""What the operating system is asked of files beyond reading and writing them."""

from __future__ import annotations

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Waits until the file or the entries of the directory at `path` are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
