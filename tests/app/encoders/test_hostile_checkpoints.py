"""Checkpoints that are broken or hostile in one way each: refused with the reason by every way in, and without harm."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from app.main import create_app
from app.settings import Settings
from sparse_encoder.__main__ import main
from sparse_encoder.artifact import ArtifactError
from sparse_encoder.checkpoint.locate import locate
from tests import foreign

pytestmark = pytest.mark.slow

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "cls.predictions.transform.dense.weight"
WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """To copy from: one of each kind that the cases below break."""
    folder = tmp_path_factory.mktemp("sources")
    makers = (
        foreign.bert,
        foreign.modernbert,
        foreign.splade,
        foreign.routed,
        foreign.sharded,
        foreign.with_idf,
        foreign.deberta_v2,
        foreign.deberta_v2_new_head,
    )
    return {make.__name__: make(folder / make.__name__) for make in makers}


def change_json(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """`change` works in place, or returns what is written instead."""

    def apply(directory: Path) -> None:
        document = json.loads((directory / name).read_text(encoding="utf-8"))
        document = change(document) or document
        (directory / name).write_text(json.dumps(document), encoding="utf-8")

    return apply


def change_config(**fields: Any) -> Callable[[Path], None]:
    return change_json("config.json", lambda config: config | fields)


def change_weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        weights = load_file(directory / WEIGHTS)
        change(weights)
        save_file(weights, directory / WEIGHTS)

    return apply


def set_to(name: str, value: float) -> Callable[[dict[str, Any]], None]:
    def change(weights: dict[str, Any]) -> None:
        weights[name][3] = value

    return change


def truncated(directory: Path) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[: len(content) // 2])


def claims_two_gigabytes(directory: Path) -> None:
    header = json.dumps(
        {WORDS: {"dtype": "F32", "shape": [500_000, 1000], "data_offsets": [0, 2_000_000_000]}}
    ).encode()
    (directory / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(1024 - 8 - len(header)))
    assert (directory / WEIGHTS).stat().st_size == 1024


def claims_a_header_of_two_gigabytes(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((2_000_000_000).to_bytes(8, "little") + bytes(1016))


class Harm:
    """Pickled, it writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def pickle_renamed(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(pickle.dumps(Harm(directory.parent / "harm"), protocol=4))


def torch_file_renamed(directory: Path) -> None:
    torch.save({"harm": Harm(directory.parent / "harm")}, directory / WEIGHTS)


def pickle_only(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    torch.save({"harm": Harm(directory.parent / "harm")}, directory / "pytorch_model.bin")


def old_torch_file(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    torch.save({"w": torch.ones(2)}, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def torch_file_of_columns(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    torch.save({"w": torch.ones(2, 3).T}, directory / "pytorch_model.bin")


def torch_file_cut_off(directory: Path) -> None:
    torch_file_of_columns(directory)
    content = (directory / "pytorch_model.bin").read_bytes()
    (directory / "pytorch_model.bin").write_bytes(content[: len(content) // 2])


def torch_file_with_less(directory: Path) -> None:
    """Its pickle claims four numbers more than the archive holds."""
    (directory / WEIGHTS).unlink()
    path = directory / "pytorch_model.bin"
    torch.save({"w": torch.ones(4)}, directory / "whole")
    with zipfile.ZipFile(directory / "whole") as whole, zipfile.ZipFile(path, "w") as less:
        for entry in whole.infolist():
            content = whole.read(entry)
            less.writestr(entry.filename, content[:8] if "/data/" in entry.filename else content)
    (directory / "whole").unlink()


def pickled_head(directory: Path) -> None:
    change_config(model_type="xlm-roberta", pad_token_id=1)(directory)
    torch.save({"weight": Harm(directory.parent / "harm")}, directory / "sparse_linear.pt")


def only(name: str) -> Callable[[Path], None]:
    """The weights have another name."""
    return lambda directory: (directory / WEIGHTS).rename(directory / name).touch()


def no_weights(directory: Path) -> None:
    (directory / WEIGHTS).unlink()


def no_head(weights: dict[str, Any]) -> None:
    for name in [name for name in weights if name.startswith("cls.")]:
        del weights[name]


def adapter(weights: dict[str, Any]) -> None:
    weights["bert.encoder.layer.0.attention.self.query.lora_A.weight"] = np.ones((2, 32), np.float32)


def other_shape(weights: dict[str, Any]) -> None:
    weights[HEAD] = weights[HEAD][:, :16].copy()


def whole_numbers(weights: dict[str, Any]) -> None:
    weights[HEAD] = weights[HEAD].astype(np.int8)


def larger_tokenizer(directory: Path) -> None:
    tokenizer = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["하나더"] = len(vocabulary)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def ids_with_a_gap(tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[next(reversed(vocabulary))] = len(vocabulary) + 5


def link_out(name: str) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / name).rename(directory.parent / "elsewhere")
        (directory / name).symlink_to(directory.parent / "elsewhere")

    return apply


def shard_outside(index: dict[str, Any]) -> None:
    index["weight_map"][WORDS] = "../outside.safetensors"


def absolute_shard(index: dict[str, Any]) -> None:
    index["weight_map"][WORDS] = "/etc/passwd"


def missing_shard(index: dict[str, Any]) -> None:
    index["weight_map"][WORDS] = "model-00099-of-00099.safetensors"


def module_path(path: Any) -> Callable[[Path], None]:
    def change(modules: list[dict[str, Any]]) -> None:
        modules[1]["path"] = path

    return change_json("modules.json", change)


def module_type(number: int, name: str) -> Callable[[Path], None]:
    def change(modules: list[dict[str, Any]]) -> None:
        modules[number]["type"] = name

    return change_json("modules.json", change)


def routed_outside(router: dict[str, Any]) -> None:
    router["types"]["../../outside"] = router["types"].pop("document_0_MLMTransformer")
    router["structure"]["document"][0] = "../../outside"


def queries_by_another_model(router: dict[str, Any]) -> None:
    router["structure"]["query"] = ["document_0_MLMTransformer"]


def static_weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda directory: change_weights(change)(directory / "query_0_SparseStaticEmbedding")


def other_static_vocabulary(directory: Path) -> None:
    larger_tokenizer(directory / "query_0_SparseStaticEmbedding")


def write(name: str, text: str) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / name).write_text(text, encoding="utf-8")

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


#: What is wrong -> (of which source, the change, what the refusal says)
CASES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "truncated": ("bert", truncated, r"model\.safetensors is truncated or no safetensors file .*: download it again"),
    "claims two gigabytes": ("bert", claims_two_gigabytes, r"is truncated or no safetensors file .*1,024 bytes"),
    "header of two gigabytes": ("bert", claims_a_header_of_two_gigabytes, "is truncated or no safetensors file"),
    "pickle renamed": ("bert", pickle_renamed, "is a pickle of another form or name.*not opened.*convert it"),
    "torch file renamed": ("bert", torch_file_renamed, "is a pickle of another form or name.*not opened.*convert it"),
    "pickle only": ("bert", pickle_only, r"pytorch_model\.bin is a pickle.*asks for (posix|nt)\.mkdir.*Convert it"),
    "old torch file": ("bert", old_torch_file, "is a pickle of another form or name.*not opened.*convert it"),
    "torch file of columns": ("bert", torch_file_of_columns, "a tensor whose rows do not follow each other"),
    "torch file cut off": ("bert", torch_file_cut_off, "is truncated or no safetensors|of another form|is damaged"),
    "torch file with less": ("bert", torch_file_with_less, "has more numbers than the file holds"),
    "head of a pickle": ("bert", pickled_head, r"sparse_linear\.pt is a pickle.*asks for (posix|nt)\.mkdir"),
    "adapter": ("bert", only("adapter_model.safetensors"), "holds an adapter.*merge both"),
    "ONNX only": ("bert", only("model.onnx"), "has its weights in ONNX only.*exported from"),
    "no weights": ("bert", no_weights, r"has no model\.safetensors: give"),
    "missing decoder": (
        "bert",
        change_config(tie_word_embeddings=False),
        r"lack the decoder cls\.predictions\.decoder",
    ),
    "no head": ("bert", change_weights(no_head), "without a language model head: no sparse encoder"),
    "no bias": ("bert", change_weights(lambda w: w.pop("cls.predictions.bias")), r"lack cls\.predictions\.bias"),
    "NaN": ("bert", change_weights(set_to(HEAD, np.nan)), "holds NaN or infinity: its training diverged"),
    "infinity": ("bert", change_weights(set_to("cls.predictions.bias", np.inf)), "holds NaN or infinity"),
    "a weight of no float": ("bert", change_weights(whole_numbers), "is I8, expected one of F64, F32, F16, BF16: save"),
    "other shape": ("bert", change_weights(other_shape), r"has the shape \[32, 16\], by config\.json it is \[32, 32\]"),
    "unknown weights": ("bert", change_weights(adapter), "lora_A.weight: what they do is not known"),
    "larger tokenizer": ("bert", larger_tokenizer, "tokenizer has 814 tokens, its weights are for 813"),
    "smaller vocabulary": (
        "bert",
        change_config(vocab_size=500),
        "its weights are for 500: they are of different models",
    ),
    "ids beyond the weights": (
        "bert",
        change_json("tokenizer.json", ids_with_a_gap),
        "tokenizer has 819 tokens, its weights are for 813",
    ),
    "no tokenizer": ("bert", write("tokenizer.json", '{"model": 1}'), r"tokenizer\.json is no readable tokenizer"),
    "no config": ("bert", remove("config.json"), r"has no config\.json, modules\.json or manifest\.json: give"),
    "config is no JSON": ("bert", write("config.json", "{"), r"config\.json is no JSON"),
    "config is nested": ("bert", write("config.json", "[" * 100_000), r"config\.json is no JSON"),
    "config is a list": ("bert", write("config.json", "[1]"), r"config\.json must hold a JSON object"),
    "weights link out": ("bert", link_out(WEIGHTS), r"is a link to .*elsewhere, outside of the checkpoint: copy"),
    "tokenizer links out": ("bert", link_out("tokenizer.json"), "is a link to .*elsewhere, outside of the checkpoint"),
    "another model type": ("bert", change_config(model_type="deberta"), "model_type 'deberta', served are bert"),
    "a convolution": (
        "deberta_v2",
        change_config(conv_kernel_size=3),
        "conv_kernel_size '3', this software computes 0",
    ),
    "a kind of attention": (
        "deberta_v2",
        change_config(pos_att_type="p2p"),
        "pos_att_type 'p2p', .* computes c2p, p2c",
    ),
    "distances that do not count": ("deberta_v2", change_config(relative_attention=False), "has no relative_attention"),
    "another head than it says": ("deberta_v2_new_head", change_config(legacy=True), "its weights lack .*cls.predict"),
    "a model type that is none": ("bert", change_config(model_type=["bert"]), "has model_type .* served are bert"),
    "relative positions": ("bert", change_config(position_embedding_type="relative_key"), "'relative_key'.* absolute"),
    "an unknown function": (
        "bert",
        change_config(hidden_act="mish"),
        "hidden_act 'mish', this software computes one of",
    ),
    "a billion layers": ("bert", change_config(num_hidden_layers=10**9), "num_hidden_layers '1000000000'.* 1 to 200"),
    "a negative size": ("bert", change_config(hidden_size=-32), "hidden_size '-32'"),
    "heads that do not divide": ("bert", change_config(num_attention_heads=5), "no multiple of num_attention_heads 5"),
    "scaled rotation": ("modernbert", change_config(rope_scaling={"type": "yarn"}), "rope_scaling.*does not compute"),
    "too few kinds": ("modernbert", change_config(layer_types=["full_attention"]), "for each of its 4 layers"),
    "shard outside": ("sharded", change_json(INDEX, shard_outside), r"names '\.\./outside\.safetensors', no plain"),
    "absolute shard": ("sharded", change_json(INDEX, absolute_shard), "names '/etc/passwd', no plain"),
    "missing shard": ("sharded", change_json(INDEX, missing_shard), "lacks model-00099-of-00099.safetensors, which"),
    "module outside": (
        "splade",
        module_path("../outside"),
        r"names '\.\./outside', which leads out of it: do not trust",
    ),
    "absolute module": ("splade", module_path("/etc"), "names '/etc', which leads out of it"),
    "module without a path": ("splade", module_path(None), "a module without a path"),
    "unknown module": ("splade", module_type(1, "evil.Module"), "modules are Transformer, Module: served are"),
    "autoencoder": ("splade", module_type(1, "x.SparseAutoEncoder"), "modules are Transformer, SparseAutoEncoder"),
    "prompt": (
        "splade",
        change_json(
            "config_sentence_transformers.json",
            lambda c: c | {"prompts": {"title": "find: "}, "default_prompt_name": "title"},
        ),
        "puts the prompt 'find: ' .title. before texts that are neither",
    ),
    "cuts off the beginning": (
        "bert",
        change_json("tokenizer_config.json", lambda c: c | {"truncation_side": "left"}),
        "truncation_side 'left'., this service the end",
    ),
    "no logits": (
        "splade",
        change_json("sentence_bert_config.json", lambda c: c | {"transformer_task": "feature-extraction"}),
        "task 'feature-extraction', which has no logits to pool",
    ),
    "another pooling": (
        "splade",
        change_json("1_SpladePooling/config.json", lambda c: c | {"pooling_strategy": "mean"}),
        "pooling_strategy 'mean', served are max and sum",
    ),
    "another activation": (
        "splade",
        change_json("1_SpladePooling/config.json", lambda c: c | {"activation_function": "gelu"}),
        "activation_function 'gelu', served are relu, log1p_relu",
    ),
    "routed outside": (
        "routed",
        change_json("router_config.json", routed_outside),
        r"'\.\./\.\./outside', which leads out",
    ),
    "another way for queries": (
        "routed",
        change_json("router_config.json", queries_by_another_model),
        "its modules are MLMTransformer: served are a masked language model and SpladePooling, and for queries",
    ),
    "static weights that are NaN": ("routed", static_weights(set_to("weight", np.nan)), "holds NaN or infinity"),
    "static weights of another vocabulary": ("routed", other_static_vocabulary, "another vocabulary than the encoder"),
    "static weights outside": (
        "routed",
        change_json("query_0_SparseStaticEmbedding/config.json", lambda c: c | {"path": "../../idf.json"}),
        r"names '\.\./\.\./idf\.json', which leads out",
    ),
    "idf of words": (
        "with_idf",
        write("idf.json", '{"손해": "NaN"}'),
        "gives '손해' the weight 'NaN': it must be a number",
    ),
    "idf of NaN": ("with_idf", write("idf.json", '{"손해": NaN}'), "gives '손해' the weight nan: it must be a number"),
    "idf of nothing": ("with_idf", write("idf.json", "{}"), "weights for the tokens of queries are all 0"),
}


@pytest.fixture(params=CASES)
def broken(request: pytest.FixtureRequest, sources: dict[str, Path], tmp_path: Path) -> tuple[Path, str]:
    """A checkpoint that is broken, and what its refusal says."""
    source, change, message = CASES[request.param]
    model = tmp_path / "model"
    shutil.copytree(sources[source], model)
    change(model)
    return model, message


def test_inspect_and_convert_refuse(broken: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    model, message = broken
    for command in (["inspect", str(model)], ["convert", str(model), str(model.with_name("out"))]):
        assert main(command) == 1
        captured = capsys.readouterr()
        assert re.search(message, captured.err), captured.err
        assert "will be served" not in captured.out
    assert left_beside(model) <= {"elsewhere"}


async def test_the_service_refuses_to_start(broken: tuple[Path, str]) -> None:
    model, message = broken
    with pytest.raises(ArtifactError, match=message):
        await start(str(model), model.with_name("cache"))
    assert left_beside(model) <= {"elsewhere", "cache", "converted"}


async def start(model: str, cache: Path) -> None:
    """Starts the service and stops it."""
    settings = Settings(model=model, cache_dir=cache, precision="f32", encoder_threads=1, log_level="error")
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        pass


def left_beside(model: Path) -> set[str]:
    return {path.name for path in model.parent.rglob("*") if not path.is_relative_to(model)}


HARM = "import pathlib; pathlib.Path({!r}).mkdir()\nclass Harm: pass\n"


@pytest.mark.parametrize("shape", ["v1_wrapper", "no_tokenizer_json", "splade"])
async def test_code_of_a_checkpoint_is_never_run(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place where other software would look for code names a file that writes to the disk when it is run."""
    model, harm = getattr(foreign, shape)(tmp_path / "model"), tmp_path / "harm"
    (model / "harm.py").write_text(HARM.format(str(harm)), encoding="utf-8")
    change_config(auto_map=dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForMaskedLM"), "harm.Harm"))(model)
    tokenizers_own = {"AutoTokenizer": ["harm.Harm", "harm.Harm"]}
    change_json("tokenizer_config.json", lambda config: config | {"auto_map": tokenizers_own})(model)
    monkeypatch.chdir(model)  # where an import would find it
    assert main(["inspect", str(model)]) == 0
    assert main(["convert", str(model), str(tmp_path / "out")]) == 0
    await start(str(model), tmp_path / "cache")
    assert not harm.exists()
    exec((model / "harm.py").read_text(encoding="utf-8"), {})  # it would have written
    assert harm.is_dir()


OUTSIDE = [
    "../m",
    "a/../b",
    "/etc/passwd",
    "a/b/../c",
    "a/b/.c",
    "a/b//c",
    "a/b/",
    "a/b@../../c",
    "a/b@c/../d",
    ".a/b",
    "a/.b",
    "a/b@",
    "a\\b/c",
    "~/m",
]


@pytest.mark.parametrize("name", OUTSIDE)
async def test_names_that_lead_somewhere_else_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="is no directory and no name on the hub: give the path"):
        locate(name)
    with pytest.raises(ArtifactError, match="is no directory and no name on the hub: give the path"):
        await start(name, tmp_path / "cache")
    assert main(["inspect", name]) == 1
