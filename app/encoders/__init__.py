"""Implementations of the contract in `base`."""

import sys

# `import openvino` sends a usage event to its maker, from a thread of its own, unless it finds this package missing.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
