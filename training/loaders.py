"""What makes a published directory load in other software beyond its own architecture's classes.

A LexicalBert brings its classes along, and other software asks for them with `trust_remote_code=True`. Any other
architecture is transformers' own; only `AutoModel` gets a class, whose output is the sparse vector.

sentence-transformers needs nothing more: it takes a `...ForMaskedLM` without `modules.json` for a SPLADE model with the
maximum over positions, which is what is published.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from sparse_encoder import modeling_lexical_bert
from sparse_encoder.architectures import Architecture
from training import modeling_splade

_LEXICAL_BERT = {
    "AutoConfig": modeling_lexical_bert.LexicalBertConfig,
    "AutoModelForMaskedLM": modeling_lexical_bert.LexicalBertForMaskedLM,
    "AutoModel": modeling_lexical_bert.LexicalBertSplade,
}


def add_loaders(directory: Path, architecture: Architecture) -> None:
    """Adds the classes that transformers' automatic ones take to a checkpoint of `architecture`."""
    if architecture == "LexicalBertForMaskedLM":
        source, classes = Path(modeling_lexical_bert.__file__), _LEXICAL_BERT
        code = source.read_text(encoding="utf-8")
    else:
        source, classes = Path(modeling_splade.__file__), {"AutoModel": modeling_splade.MaskedLMSplade}
        code = re.sub(r"\bBertForMaskedLM\b", architecture, source.read_text(encoding="utf-8"))
    (directory / source.name).write_text(code, encoding="utf-8")
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {name: f"{source.stem}.{kind.__name__}" for name, kind in classes.items()}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
