"""sentence-transformers with its OpenVINO backend, in an environment of its own: it needs other versions than we do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from app.models.loaded import default_cache_dir

REQUIREMENTS = [
    "torch==2.13.0",
    "sentence-transformers==6.2.0",
    "optimum-intel[openvino,nncf]==2.2.0",
    "datasets",
    "huggingface-hub<2",
]
WORKER = Path(__file__).with_name("worker.py")
#: For calibration; of our own writing, and not among the texts that are measured.
CALIBRATION = [
    "전세 계약이 끝났는데 집주인이 보증금을 돌려주지 않는다.",
    "혈압이 높은 사람은 소금을 적게 먹는 것이 좋다.",
    "회사는 다음 달부터 재택 근무를 줄이기로 했다.",
    "The index is rebuilt every night from the source documents.",
    "비행기가 늦어져 환승을 놓치면 항공사가 다음 편을 마련한다.",
    "이 식당은 국물이 진하고 반찬이 자주 바뀐다.",
]


def python() -> Path:
    """The interpreter of that environment, which is made the first time (some minutes, 5 GB)."""
    directory = default_cache_dir() / "peer-venv"
    interpreter, stamp = directory / "bin" / "python", directory / "requirements.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != REQUIREMENTS:
        print(f"making {directory} for {', '.join(REQUIREMENTS)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        stamp.write_text(json.dumps(REQUIREMENTS))
    return interpreter
