"""Which kind of checkpoint a directory holds, and where its parts lie."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparse_encoder.architectures import Head
from sparse_encoder.artifact import MANIFEST, Activation, Pooling
from sparse_encoder.checkpoint.directory import Directory, SourceError

MODULES, ROUTER = "modules.json", "router_config.json"
#: Of BGE-M3, beside an encoder whose other heads are not read.
OWN_WEIGHTS = ("sparse_linear.safetensors", "sparse_linear.pt")
#: Names of sentence-transformers; it means a logarithm after either.
_ACTIVATIONS: dict[str, Activation] = {"relu": "log1p_relu", "log1p_relu": "log1p_log1p_relu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A checkpoint as its files describe it."""

    kind: str  #: for people
    encoder: Directory  #: of config.json, weights and tokenizer
    activation: Activation = "log1p_relu"
    pooling: Pooling = "max"
    max_length: int | None = None  #: tokens, where the checkpoint says so in so many words
    trusts_tokenizer: bool = False  #: whether the length of its tokenizer is meant, however long
    prompt_document: str = ""  #: stands before each text
    prompt_query: str = ""
    max_active_tokens: int = 0  #: kept of a vector; 0: all
    query_weights: Directory | None = None  #: of a module with a fixed weight for each token of a query
    queries: Shape | None = None  #: of the encoder that queries have for themselves
    own_weight: str | None = None  #: name of the file with a head that weighs own tokens

    @property
    def head(self) -> Head:
        return "own" if self.own_weight else "vocabulary"


def is_artifact(path: Path) -> bool:
    """Whether the directory is one of ours, damaged or not. Others call files manifest.json too."""
    try:
        document = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return True  # whoever reads it says what is wrong
    return not isinstance(document, dict) or "format_version" in document


def find_shape(directory: Directory) -> Shape:
    """What `directory` holds.

    :raises SourceError: if it is no checkpoint of a sparse encoder that can be served.
    """
    if own_weight := next((name for name in OWN_WEIGHTS if directory.file(name)), None):
        return Shape(
            kind=f"BGE-M3, its sparse head ({own_weight})",
            encoder=directory,
            activation="relu",
            own_weight=own_weight,
        )
    if directory.file(MODULES):
        return _sentence_transformers(directory)
    config = directory.settings("config.json")
    if not config:
        raise SourceError(
            f"{directory.root} has no config.json, modules.json or {MANIFEST}: give the directory of a checkpoint"
        )
    names = config.get("architectures") or ["masked language model"]
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise SourceError(f"{directory.root}/config.json has architectures that are no names: repair the file")
    kind = f"transformers, {names[0][:80]}"
    if config.get("auto_map"):
        kind += " (its own code is not run)"
    return Shape(kind=kind, encoder=directory)


def _sentence_transformers(directory: Directory) -> Shape:
    modules = directory.json(MODULES)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise SourceError(f"{directory.root / MODULES} must hold a list of modules: download it again")
    route = [(_class_name(module.get("type")), _folder(directory, module.get("path"))) for module in modules]
    if route and route[0][0] == "Router":
        shape = _routed(route[0][1], route[1:])
    else:
        shape = _pipeline(route)
        shape = replace(shape, kind=f"sentence-transformers, {' + '.join(name for name, _ in route)}")
    told = {"trusts_tokenizer": True, **_settings(directory)}
    return replace(shape, queries=shape.queries and replace(shape.queries, **told), **told)


def _routed(directory: Directory, rest: list[tuple[str, Directory]]) -> Shape:
    """`rest`: modules that both ways lead to."""
    router = directory.settings(ROUTER)
    types, structure = router.get("types"), router.get("structure")
    if not isinstance(types, dict) or not isinstance(structure, dict):
        raise SourceError(f"{directory.root / ROUTER} has no types and structure: download the checkpoint again")
    routes = {}
    for side in ("query", "document"):
        parts = structure.get(side)
        if not isinstance(parts, list) or not all(isinstance(part, str) and part in types for part in parts):
            raise SourceError(f"{directory.root / ROUTER} has no route for a {side}: use a checkpoint with both")
        routes[side] = [*((_class_name(types[part]), _folder(directory, part)) for part in parts), *rest]
    document = _pipeline(routes["document"])
    if structure["query"] == structure["document"]:
        return replace(document, kind="sentence-transformers, router with one way")
    if [name for name, _ in routes["query"]] != ["SparseStaticEmbedding"]:
        kind = "sentence-transformers, router with two encoders"
        return replace(document, kind=kind, queries=replace(_pipeline(routes["query"]), kind=kind))
    return replace(
        document,
        kind="sentence-transformers, router with inference-free queries",
        query_weights=routes["query"][0][1],
    )


def _pipeline(modules: list[tuple[str, Directory]]) -> Shape:
    names = [name for name, _ in modules]
    if len(names) != 2 or names[0] not in ("Transformer", "MLMTransformer") or names[1] != "SpladePooling":
        raise SourceError(
            f"its modules are {', '.join(names) or 'none'}: served are a masked language model and SpladePooling, and "
            "for queries in a router SparseStaticEmbedding as well"
        )
    (_, encoder), (_, pooling) = modules
    transformer = encoder.settings("sentence_bert_config.json")
    task = transformer.get("transformer_task")
    if task not in (None, "fill-mask") or (task is None and names[0] == "Transformer"):
        raise SourceError(f"its Transformer has the task {task!r}, which has no logits to pool: served is 'fill-mask'")
    if transformer.get("do_lower_case"):
        raise SourceError("its Transformer lowers the case of texts: put that into the normalizer of tokenizer.json")
    settings = {} if pooling.root == encoder.root else pooling.settings("config.json")
    strategy, activation = settings.get("pooling_strategy", "max"), settings.get("activation_function", "relu")
    if strategy not in ("max", "sum"):
        raise SourceError(f"SpladePooling has pooling_strategy {strategy!r}, served are max and sum")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise SourceError(f"SpladePooling has activation_function {activation!r}, served are {', '.join(_ACTIVATIONS)}")
    length = transformer.get("max_seq_length")
    if length is not None and (type(length) is not int or length < 3):
        raise SourceError(f"sentence_bert_config.json has max_seq_length {length!r}: it must be a number of tokens")
    return Shape(kind="", encoder=encoder, activation=_ACTIVATIONS[activation], pooling=strategy, max_length=length)


def _settings(directory: Directory) -> dict[str, Any]:
    """What sentence-transformers says of all modules: prompts, and how many tokens a vector keeps."""
    settings = directory.settings("config_sentence_transformers.json")
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not isinstance(default, str | None):
        raise SourceError(
            "config_sentence_transformers.json must name its prompts in an object, and one of them as "
            f"default_prompt_name, got {str(prompts)[:80]} and {str(default)[:80]}: repair the file"
        )
    if default not in (None, "query", "document") and prompts.get(default):
        raise SourceError(
            f"it puts the prompt {prompts[default]!r} ({default}) before texts that are neither a query nor a "
            "document, and here each is one of them: name the prompts query and document"
        )
    wanted = {f"prompt_{side}": prompts.get(side) or "" for side in ("document", "query")}
    if not all(isinstance(prompt, str) for prompt in wanted.values()):
        raise SourceError(f"config_sentence_transformers.json has a prompt that is no text in {str(prompts)[:80]}")
    most = settings.get("max_active_dims") or 0
    if type(most) is not int or most < 0:
        raise SourceError(f"config_sentence_transformers.json has max_active_dims {most!r}: it must be a number")
    return {**wanted, "max_active_tokens": most}


def _class_name(type_name: Any) -> str:
    return str(type_name).rpartition(".")[2][:80]


def _folder(directory: Directory, path: Any) -> Directory:
    if not isinstance(path, str):
        raise SourceError(f"{directory.root} has a module without a path: download it again")
    return directory.folder(path) if path else directory
