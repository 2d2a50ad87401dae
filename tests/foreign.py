"""Small checkpoints of every shape that others publish, as transformers and sentence-transformers write them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers.sparse_encoder.modules
import tokenizers
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, UnigramTrainer

from tests.tiny import SENTENCES, SPECIAL_TOKENS, build_tokenizer

ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 70,
}
OF_ROBERTA = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
XLM_R_TOKENS = 250_002
TEXTS = ["손해배상", "당뇨병 치료 방법", SENTENCES[1], "OpenSearch cluster 설정", " ".join(SENTENCES)]

configs: Any = transformers  # whose configs are typed too narrowly for the sizes in a dict
modules: Any = sentence_transformers.sparse_encoder.modules


def wordpiece() -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """As BERT has it; [PAD] is 0."""
    return build_tokenizer(), {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}


def padded_last() -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """As v1 has it: [PAD] is the last id, special tokens are not where config.json says."""
    backend, names = wordpiece()
    vocabulary = backend.get_vocab()
    del vocabulary["[PAD]"]
    order = sorted(vocabulary, key=vocabulary.__getitem__)
    return _with_vocabulary(backend, {token: token_id for token_id, token in enumerate([*order, "[PAD]"])}), names


def _with_vocabulary(backend: tokenizers.Tokenizer, vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    other = tokenizers.Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    other.normalizer, other.pre_tokenizer, other.decoder = backend.normalizer, backend.pre_tokenizer, backend.decoder
    other.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    other.add_special_tokens(SPECIAL_TOKENS)
    return other


def byte_level() -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """As RoBERTa has it."""
    backend = tokenizers.Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return _of_roberta(
        backend,
        BpeTrainer(
            vocab_size=500,
            special_tokens=list(OF_ROBERTA.values()),
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        ),
    )


def unigram() -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """As XLM-RoBERTa has it."""
    backend = tokenizers.Tokenizer(Unigram())
    backend.pre_tokenizer = Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    return _of_roberta(
        backend,
        UnigramTrainer(
            vocab_size=400, special_tokens=list(OF_ROBERTA.values()), unk_token="<unk>", show_progress=False
        ),
    )


def unigram_of_xlm_r() -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """As many tokens as XLM-RoBERTa has; most of them stand in no text."""
    backend, names = unigram()
    document = json.loads(backend.to_str())
    vocabulary = document["model"]["vocab"]
    vocabulary += [[f"▁남는{number}", -30.0] for number in range(XLM_R_TOKENS - len(vocabulary))]
    return tokenizers.Tokenizer.from_str(json.dumps(document)), names


def _of_roberta(backend: tokenizers.Tokenizer, trainer: Any) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    backend.train_from_iterator(SENTENCES, trainer)
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", ids)
    return backend, {**OF_ROBERTA, "cls_token": "<s>", "sep_token": "</s>"}


def build(config: Any, seed: int = 7) -> Any:
    """A masked language model with random weights, biases and norms too, that activates a part of its vocabulary."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.AutoModelForMaskedLM.from_config(config)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if (bias := model.get_output_embeddings().bias) is not None:
            bias.sub_(0.5)
    return model.eval()


def save(model: Any, tokenizer: tuple[tokenizers.Tokenizer, dict[str, str]], target: Path, **options: Any) -> Path:
    backend, names = tokenizer
    model.save_pretrained(target, **options)
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names).save_pretrained(target)
    return target


def _size(tokenizer: tuple[tokenizers.Tokenizer, dict[str, str]]) -> int:
    return int(tokenizer[0].get_vocab_size())


def bert(target: Path, **options: Any) -> Path:
    tokenizer = wordpiece()
    return save(build(configs.BertConfig(vocab_size=_size(tokenizer), **{**ENCODER, **options})), tokenizer, target)


def cased_by_its_settings(target: Path) -> Path:
    """tokenizer.json lowers the case, tokenizer_config.json says not to."""
    tokenizer = wordpiece()
    tokenizer[0].normalizer = BertNormalizer(lowercase=True, strip_accents=False)
    config = configs.BertConfig(vocab_size=_size(tokenizer), **ENCODER)
    save(build(config), tokenizer, target)
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": False}
    path.write_text(json.dumps(settings), encoding="utf-8")
    return target


def untied(target: Path) -> Path:
    return bert(target, tie_word_embeddings=False)


def spare_rows(target: Path) -> Path:
    """More rows than tokens, as of models whose vocabulary was rounded up."""
    tokenizer = wordpiece()
    return save(build(configs.BertConfig(vocab_size=_size(tokenizer) + 27, **ENCODER)), tokenizer, target)


def sharded(target: Path) -> Path:
    tokenizer = wordpiece()
    model = build(configs.BertConfig(vocab_size=_size(tokenizer), **ENCODER))
    save(model, tokenizer, target, max_shard_size="60KB")
    assert (target / "model.safetensors.index.json").is_file()
    return target


def half(target: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    tokenizer = wordpiece()
    return save(build(configs.BertConfig(vocab_size=_size(tokenizer), **ENCODER)).to(dtype), tokenizer, target)


def float16(target: Path) -> Path:
    return half(target, torch.float16)


def legacy(target: Path) -> Path:
    """The names of 2019: gamma and beta, a pooler and position ids besides, the decoder written out."""
    bert(target)
    weights = load_file(target / "model.safetensors")
    for name in list(weights):
        if "LayerNorm" in name:
            weights[name.replace("weight", "gamma").replace("bias", "beta")] = weights.pop(name)
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].copy()
    weights["bert.pooler.dense.weight"] = weights["bert.encoder.layer.0.output.dense.weight"][:, :32].copy()
    weights["cls.seq_relationship.weight"] = weights["bert.encoder.layer.0.output.dense.weight"][:2, :32].copy()
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def distilbert(target: Path) -> Path:
    tokenizer = wordpiece()
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 70}
    return save(build(configs.DistilBertConfig(vocab_size=_size(tokenizer), **sizes)), tokenizer, target)


def roberta(target: Path) -> Path:
    tokenizer = byte_level()
    return save(build(configs.RobertaConfig(vocab_size=_size(tokenizer), **ENCODER)), tokenizer, target)


def xlm_roberta(target: Path) -> Path:
    tokenizer = unigram()
    return save(build(configs.XLMRobertaConfig(vocab_size=_size(tokenizer), **ENCODER)), tokenizer, target)


def xlm_roberta_of_all_tokens(target: Path) -> Path:
    """The vocabulary of XLM-RoBERTa, of which some words come up, and small layers."""
    tokenizer = unigram_of_xlm_r()
    model = build(configs.XLMRobertaConfig(vocab_size=_size(tokenizer), **{**ENCODER, "max_position_embeddings": 514}))
    save(model, tokenizer, target)
    fast = transformers.AutoTokenizer.from_pretrained(target)
    with torch.no_grad():
        inputs = fast(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
        highest = model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).logits.amax(1)
        model.get_output_embeddings().bias.sub_(float(np.quantile(highest.numpy(), 1 - 200 / XLM_R_TOKENS)))
    model.save_pretrained(target)
    return target


def camembert(target: Path) -> Path:
    tokenizer = unigram()
    return save(build(configs.CamembertConfig(vocab_size=_size(tokenizer), **ENCODER)), tokenizer, target)


def electra(target: Path) -> Path:
    tokenizer = wordpiece()
    config = configs.ElectraConfig(vocab_size=_size(tokenizer), embedding_size=24, **ENCODER)
    return save(build(config), tokenizer, target)


def mpnet(target: Path) -> Path:
    tokenizer = wordpiece()
    return save(build(configs.MPNetConfig(vocab_size=_size(tokenizer), **ENCODER)), tokenizer, target)


def deberta_v2(target: Path, **options: Any) -> Path:
    """As v3 has it."""
    tokenizer = wordpiece()
    config = configs.DebertaV2Config(
        vocab_size=_size(tokenizer),
        relative_attention=True,
        pos_att_type="p2c|c2p",
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        **{**ENCODER, **options},
    )
    return save(build(config), tokenizer, target)


def deberta_v2_new_head(target: Path) -> Path:
    """With the head of the authors' own code."""
    return deberta_v2(target, legacy=False)


def gte(target: Path) -> Path:
    tokenizer = wordpiece()
    rope = {"rope_type": "default", "rope_theta": 500.0}
    config = configs.GteConfig(vocab_size=_size(tokenizer), pad_token_id=0, rope_parameters=rope, **ENCODER)
    return save(build(config), tokenizer, target)


def gte_new(target: Path) -> Path:
    """As the class had it that came with the checkpoints: its names, packed weights and config."""
    gte(target)
    stored = {
        name: tensor.numpy()
        for name, tensor in transformers.AutoModelForMaskedLM.from_pretrained(target).state_dict().items()
    }
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    theta = config.pop("rope_parameters")["rope_theta"]
    config |= {"model_type": "new", "architectures": ["NewForMaskedLM"], "rope_theta": theta, "rope_scaling": None}
    config |= {"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "pack_qkv": True}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {}
    for name, tensor in stored.items():
        rows = [tensor]
        if ".q_proj." in name:
            rows = [stored[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
        if ".up_proj." in name:
            rows.append(stored[name.replace(".up_proj.", ".gate_proj.")])
        if not any(part in name for part in (".k_proj.", ".v_proj.", ".gate_proj.")):
            for now, before in (
                ("gte.", "new."),
                (".layers.", ".encoder.layer."),
                (".self_attn.q_proj.", ".attention.qkv_proj."),
                (".self_attn.", ".attention."),
                (".up_proj.", ".up_gate_proj."),
                (".post_attention_layernorm.", ".attn_ln."),
                (".post_mlp_layernorm.", ".mlp_ln."),
                ("lm_head.layer_norm.", "lm_head.norm."),
            ):
                name = name.replace(now, before)
            weights[name] = np.concatenate(rows)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def modernbert(target: Path, **options: Any) -> Path:
    """Four layers, the first and the last of which see everything; the others 8 tokens."""
    tokenizer = padded_last()
    size = _size(tokenizer)
    sizes = {**ENCODER, "num_hidden_layers": 4, "local_attention": 8, "max_position_embeddings": 200}
    ids = {"pad_token_id": size - 1, "cls_token_id": 0, "sep_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
    return save(build(configs.ModernBertConfig(vocab_size=size, **sizes, **ids, **options)), tokenizer, target)


def modernbert_biased(target: Path) -> Path:
    """Every bias that the architecture can have, and an output matrix of its own."""
    biases = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True)
    return modernbert(target, **biases, tie_word_embeddings=False)


def modernbert_unbiased(target: Path) -> Path:
    """Without the output bias."""
    return modernbert(target, decoder_bias=False)


def modernbert_legacy(target: Path) -> Path:
    """The config of transformers 4, as v1 has it."""
    modernbert(target)
    path = target / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    ropes = config.pop("rope_parameters")
    del config["layer_types"]
    config["global_attn_every_n_layers"] = 3
    config["global_rope_theta"] = ropes["full_attention"]["rope_theta"]
    config["local_rope_theta"] = ropes["sliding_attention"]["rope_theta"]
    path.write_text(json.dumps(config), encoding="utf-8")
    return target


def base_shape(target: Path, layers: int = 22) -> Path:
    """The sizes of v1, without its wrapper; random weights, which take 600 MB with 22 layers."""
    backend, names = wordpiece()
    tokens = sorted(set(backend.get_vocab()) - {"[PAD]"}, key=backend.get_vocab().__getitem__)
    tokens += [f"남는{number}" for number in range(49_999 - len(tokens))]
    vocabulary = {token: token_id for token_id, token in enumerate([*tokens, "[PAD]"])}
    backend = _with_vocabulary(backend, vocabulary)
    config = configs.ModernBertConfig(
        vocab_size=50_000,
        num_hidden_layers=layers,
        max_position_embeddings=16_384,
        pad_token_id=49_999,
        cls_token_id=0,
        sep_token_id=1,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        model = transformers.AutoModelForMaskedLM.from_config(config).eval()
        model.get_output_embeddings().bias.sub_(1.0)
    return save(model, (backend, names), target)


def large_vocabulary(target: Path) -> Path:
    """More tokens than a sparse_vector field has ids."""
    backend, names = wordpiece()
    tokens = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    tokens += [f"남는{number}" for number in range(33_000 - len(tokens))]
    backend = _with_vocabulary(backend, {token: token_id for token_id, token in enumerate(tokens)})
    config = configs.BertConfig(vocab_size=len(tokens), **{**ENCODER, "hidden_size": 8})
    return save(build(config), (backend, names), target)


def v1_wrapper(target: Path) -> Path:
    """The shape of v1: a class of its own around ModernBERT, so one more prefix before each name."""
    modernbert_legacy(target)
    return wrap(target)


def wrap(target: Path) -> Path:
    """As v1 is published."""
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": ["SPLADEModel"], "auto_map": {"AutoModel": "modeling_splade.SPLADEModel"}}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(target / "model.safetensors")
    weights = {f"model.{name}": tensor for name, tensor in weights.items()}
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def holes(target: Path) -> Path:
    """Ids that no token has, in the middle and before an added token."""
    backend, names = wordpiece()
    ids = backend.get_vocab()
    moved = {token: token_id + 7 * (token_id > 400) for token, token_id in ids.items()}
    other = _with_vocabulary(backend, moved)
    return save(build(configs.BertConfig(vocab_size=max(moved.values()) + 1, **ENCODER)), (other, names), target)


def sentencepiece(target: Path) -> Path:
    """The model of sentencepiece alone, as before there were fast tokenizers."""
    import sentencepiece as library

    target.mkdir(parents=True)
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(target / "sentencepiece.bpe"),
        vocab_size=300,
        minloglevel=2,
    )
    (target / "sentencepiece.bpe.vocab").unlink()
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 64}
    (target / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    build(configs.XLMRobertaConfig(vocab_size=302, **ENCODER)).save_pretrained(target)  # with <pad> and <mask>
    return target


def no_tokenizer_json(target: Path) -> Path:
    """The vocabulary alone, as before there were fast tokenizers."""
    bert(target)
    vocabulary = tokenizers.Tokenizer.from_file(str(target / "tokenizer.json")).get_vocab()
    (target / "tokenizer.json").unlink()
    lines = sorted(vocabulary, key=vocabulary.__getitem__)
    (target / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": False, "model_max_length": 64}
    (target / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def torch_file(target: Path) -> Path:
    """Its weights as before there were safetensors: the state of the model, as torch saves it."""
    bert(target)
    model = transformers.AutoModelForMaskedLM.from_pretrained(target)
    (target / "model.safetensors").unlink()
    torch.save(model.state_dict(), target / "pytorch_model.bin")
    return target


def torch_files(target: Path) -> Path:
    """The same in two files with an index, in bfloat16."""
    torch_file(target)
    weights = torch.load(target / "pytorch_model.bin", weights_only=True)
    (target / "pytorch_model.bin").unlink()
    names = list(weights)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:9], names[9:]), start=1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: weights[name].bfloat16() for name in part}, target / file)
        weight_map |= dict.fromkeys(part, file)
    (target / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8"
    )
    return target


def bge_m3_of_all_tokens(target: Path) -> Path:
    """With the vocabulary and the positions that it has, and small layers."""
    return bge_m3(target, unigram_of_xlm_r(), max_position_embeddings=8194)


def bge_m3(target: Path, tokenizer: tuple[tokenizers.Tokenizer, dict[str, str]] | None = None, **options: Any) -> Path:
    """An encoder with heads beside it, each in a file of torch, as BAAI publishes it."""
    tokenizer = tokenizer or unigram()
    config = configs.XLMRobertaConfig(vocab_size=_size(tokenizer), **{**ENCODER, **options})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        model = transformers.XLMRobertaModel(config)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        save(model, tokenizer, target)
        (target / "model.safetensors").unlink()
        torch.save(model.state_dict(), target / "pytorch_model.bin")
        for name, size in (("sparse_linear", 1), ("colbert_linear", 32)):
            torch.save(torch.nn.Linear(32, size).half().state_dict(), target / f"{name}.pt")
    parts = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (target / "modules.json").write_text(json.dumps(parts), encoding="utf-8")
    return target


@torch.no_grad()
def by_bge_m3(directory: Path, length: int) -> NDArray[np.float32]:
    """What FlagEmbedding makes of the checkpoint, one text after the other: [texts, vocabulary]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    encoder = transformers.XLMRobertaModel.from_pretrained(directory, dtype=torch.float32).eval()
    head = {name: tensor.float() for name, tensor in torch.load(directory / "sparse_linear.pt").items()}
    rows = np.zeros((len(TEXTS), len(tokenizer)), np.float32)
    for text, row in zip(TEXTS, rows, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        weights = torch.relu(encoder(**inputs).last_hidden_state @ head["weight"].T + head["bias"])
        for token, weight in zip(inputs["input_ids"][0].tolist(), weights[0, :, 0].tolist(), strict=True):
            row[token] = max(row[token], weight)
        row[tokenizer.all_special_ids] = 0
    return rows


def _in_memory(target: Path) -> Path:
    return bert(target.with_name(f"{target.name}.source"))


def _save_modules(parts: list[Any], target: Path) -> None:
    sentence_transformers.sparse_encoder.SparseEncoder(modules=parts).save_pretrained(str(target))


def splade(target: Path, pooling: str = "max", activation: str = "relu") -> Path:
    transformer = modules.Transformer(str(_in_memory(target)), transformer_task="fill-mask")
    _save_modules([transformer, modules.SpladePooling(pooling, activation)], target)
    return target


def splade_double(target: Path) -> Path:
    return splade(target, "max", "log1p_relu")


def splade_sum(target: Path) -> Path:
    return splade(target, "sum")


def splade_prompted(target: Path) -> Path:
    """With a prompt for each side, and eight tokens a vector."""
    transformer = modules.Transformer(str(_in_memory(target)), transformer_task="fill-mask")
    encoder = sentence_transformers.sparse_encoder.SparseEncoder(
        modules=[transformer, modules.SpladePooling("max")],
        prompts={"query": "인공지능 질의: ", "document": "감기 문서: "},
        max_active_dims=8,
    )
    encoder.save_pretrained(str(target))
    return target


def splade_long(target: Path) -> Path:
    """Longer than what is usual, as its tokenizer says alone."""
    source = bert(target.with_name(f"{target.name}.source"), max_position_embeddings=700)
    transformer = modules.Transformer(
        str(source), transformer_task="fill-mask", processor_kwargs={"model_max_length": 600}
    )
    _save_modules([transformer, modules.SpladePooling("max")], target)
    return target


def splade_short(target: Path) -> Path:
    """With a length of its own, as sentence-transformers before 5.4 wrote it."""
    splade(target)
    path = target / "sentence_bert_config.json"
    path.write_text(json.dumps({"max_seq_length": 12, "do_lower_case": False}), encoding="utf-8")
    parts = json.loads((target / "modules.json").read_text(encoding="utf-8"))
    parts[0]["type"] = "sentence_transformers.sparse_encoder.models.MLMTransformer"
    (target / "modules.json").write_text(json.dumps(parts), encoding="utf-8")
    return target


def static_weights(size: int) -> torch.Tensor:
    """[size]; no weight for a few tokens."""
    weights = torch.linspace(0.5, 6.0, size)
    weights[40:60] = 0
    return weights


def routed(target: Path) -> Path:
    transformer = modules.MLMTransformer(str(_in_memory(target)), _from_auto_load=True)
    static = modules.SparseStaticEmbedding(
        transformer.tokenizer, static_weights(len(transformer.tokenizer)), frozen=True
    )
    _save_modules(
        [modules.Router.for_query_document([static], [transformer, modules.SpladePooling("max", "log1p_relu")])], target
    )
    return target


def routed_from_root(target: Path) -> Path:
    """As OpenSearch publishes it: the encoder lies beside the router."""
    routed(target)
    inner = target / "document_0_MLMTransformer"
    for file in inner.iterdir():
        shutil.move(file, target / file.name)
    inner.rmdir()
    path = target / "router_config.json"
    router = json.loads(path.read_text(encoding="utf-8"))
    router["types"][""] = router["types"].pop("document_0_MLMTransformer")
    router["structure"]["document"][0] = ""
    path.write_text(json.dumps(router), encoding="utf-8")
    return target


def small(target: Path, seed: int = 11) -> Path:
    """An encoder for queries: other sizes and positions, the same vocabulary."""
    tokenizer = wordpiece()
    sizes = {**ENCODER, "hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 40}
    return save(build(configs.BertConfig(vocab_size=_size(tokenizer), **sizes), seed=seed), tokenizer, target)


def small_of_another_seed(target: Path) -> Path:
    return small(target, seed=12)


def routed_pair(target: Path) -> Path:
    """An encoder for each side, which differ in all that may differ."""
    documents = modules.Transformer(
        str(distilbert(target.with_name(f"{target.name}.documents"))), transformer_task="fill-mask"
    )
    queries = modules.Transformer(
        str(small(target.with_name(f"{target.name}.queries"))),
        transformer_task="fill-mask",
        processor_kwargs={"model_max_length": 24},
    )
    router = modules.Router.for_query_document(
        [queries, modules.SpladePooling("sum", "log1p_relu")], [documents, modules.SpladePooling("max")]
    )
    encoder = sentence_transformers.sparse_encoder.SparseEncoder(
        modules=[router], prompts={"query": "질의: ", "document": "문서: "}
    )
    encoder.save_pretrained(str(target))
    return target


def routed_pair_then_pooled(target: Path) -> Path:
    """The pooling stands behind the router, once for both."""
    documents, queries = (
        modules.Transformer(str(make(target.with_name(f"{target.name}.{make.__name__}"))), transformer_task="fill-mask")
        for make in (bert, small)
    )
    router = modules.Router.for_query_document([queries], [documents])
    _save_modules([router, modules.SpladePooling("max")], target)
    return target


def with_idf(target: Path) -> Path:
    bert(target)
    (target / "idf.json").write_text(json.dumps(_weight_table(), ensure_ascii=False), encoding="utf-8")
    return target


def with_weight_lines(target: Path) -> Path:
    bert(target)
    lines = "".join(f"{token}\t{weight}\n" for token, weight in _weight_table().items())
    (target / "query_token_weights.txt").write_text(lines, encoding="utf-8")
    return target


def _weight_table() -> dict[str, float]:
    backend, _ = wordpiece()
    weights = static_weights(backend.get_vocab_size()).tolist()
    return {str(backend.id_to_token(token_id)): weight for token_id, weight in enumerate(weights) if weight}


#: Of masked language models, by transformers; each reads as itself by `AutoModelForMaskedLM`, but for the wrapper.
MASKED_LM: Mapping[str, Callable[[Path], Path]] = {
    make.__name__: make
    for make in (
        bert,
        untied,
        cased_by_its_settings,
        spare_rows,
        sharded,
        half,
        float16,
        legacy,
        distilbert,
        roberta,
        xlm_roberta,
        camembert,
        electra,
        deberta_v2,
        deberta_v2_new_head,
        mpnet,
        gte,
        modernbert,
        modernbert_biased,
        modernbert_unbiased,
        modernbert_legacy,
        v1_wrapper,
        no_tokenizer_json,
        sentencepiece,
        holes,
        torch_file,
        torch_files,
    )
}
#: By sentence-transformers, which also reads them.
SENTENCE_TRANSFORMERS: Mapping[str, Callable[[Path], Path]] = {
    make.__name__: make
    for make in (
        splade,
        splade_double,
        splade_sum,
        splade_short,
        splade_long,
        splade_prompted,
        routed,
        routed_from_root,
    )
}
#: Of two encoders, one for queries.
PAIRS: Mapping[str, Callable[[Path], Path]] = {make.__name__: make for make in (routed_pair, routed_pair_then_pooled)}
#: Whose queries have fixed weights.
INFERENCE_FREE: Mapping[str, Callable[[Path], Path]] = {
    make.__name__: make for make in (routed, routed_from_root, with_idf, with_weight_lines)
}


@torch.no_grad()
def by_transformers(directory: Path, length: int) -> NDArray[np.float32]:
    """The formula over `AutoModelForMaskedLM`, all texts in one padded batch: [texts, vocabulary]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForMaskedLM.from_pretrained(directory, dtype=torch.float32).eval()
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=length, return_tensors="pt")
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    weights = logits.relu().log1p() * inputs["attention_mask"].unsqueeze(-1)
    return np.asarray(weights.amax(1).numpy())
