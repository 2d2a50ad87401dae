"""What makes a published directory load in other software beyond `AutoModelForMaskedLM`.

sentence-transformers needs nothing: it takes a `...ForMaskedLM` without `modules.json` for a SPLADE model with the
maximum over positions, which is what is published.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from training import modeling_splade

_CLASS = f"modeling_splade.{modeling_splade.SpladeModel.__name__}"


def add_loaders(directory: Path) -> None:
    """Adds the class that `AutoModel` takes, with `trust_remote_code=True`, to a checkpoint of `BertForMaskedLM`."""
    source = Path(modeling_splade.__file__)
    shutil.copyfile(source, directory / source.name)
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModel": _CLASS}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
