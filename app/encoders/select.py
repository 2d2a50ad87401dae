"""Which encoder runs a checkpoint: by the device, and by what the processor can do."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from app.encoders.base import Encoder, EncoderError, Precision
from app.encoders.openvino_encoder import OpenVINOEncoder, has_bfloat16
from app.encoders.openvino_encoder import Precision as CpuPrecision
from sparse_encoder.artifact import Artifact

log = logging.getLogger(__name__)


def build_encoder(
    artifact: Artifact,
    device: str,
    precision: Precision,
    threads: int,
    cache_dir: Path,
    is_room: Callable[[int], bool] = lambda weight_bytes: True,
) -> Encoder:
    """`device`: auto, cpu, cuda, cuda:N or mps. `threads`: of the CPU, 0 for all. `cache_dir`: for what is quantised.
    `is_room`: whether the CPU has memory to load weights of so many bytes, in f32, once more.

    :raises EncoderError: if the device is not there, lacks software, or cannot compute in `precision`.
    """
    if device == "auto":
        device = _find_device()
    if device == "cpu":
        return OpenVINOEncoder(artifact, cpu_precision(precision, cpu_flags()), threads, cache_dir, is_room)
    if not _torch_is_installed():
        raise EncoderError(f"--device {device} needs torch: install the extra `torch`, or use --device cpu")
    return _torch_encoder(artifact, device, precision)


def cpu_precision(precision: Precision, flags: set[str]) -> CpuPrecision:
    """`flags`: of the processor, as Linux names them.

    :raises EncoderError: if OpenVINO does not compute in `precision` on a CPU.
    """
    if precision == "auto":
        if "amx_bf16" in flags:
            return "bf16"
        return "int8" if flags & {"avx512_vnni", "avx_vnni"} else "f32"
    if precision == "f16":
        raise EncoderError("a CPU does not compute in f16: use --precision auto, f32, bf16, int8 or int8-static")
    if precision == "bf16" and not has_bfloat16():
        raise EncoderError("this CPU has no bf16 instructions: use --precision auto, f32 or int8")
    return precision


def _torch_encoder(artifact: Artifact, device: str, precision: Precision) -> Encoder:
    import torch

    from app.encoders.torch_encoder import TorchEncoder

    if precision == "auto":
        native = device.startswith("cuda") and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if native else "f16"
    if precision == "int8" or precision == "int8-static":
        raise EncoderError(f"torch does not compute in {precision} here: use --precision auto, f32, bf16 or f16")
    try:
        return TorchEncoder(artifact, device, precision)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that is not there
        raise EncoderError(f"--device {device} cannot be used ({error}): use --device auto or cpu") from error


def _find_device() -> str:
    """torch takes seconds and hundreds of megabytes to import, so it is asked only where there may be a GPU."""
    if not _torch_is_installed():
        if Path("/dev/nvidiactl").exists():
            log.warning("there is a GPU, but no torch to use it: install the extra `torch`; running on the CPU")
        return "cpu"
    if Path("/dev/nvidiactl").exists():
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return "mps" if sys.platform == "darwin" else "cpu"


def _torch_is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def cpu_flags() -> set[str]:
    """Empty where Linux does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
