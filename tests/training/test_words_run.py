"""The line from a trained checkpoint to one under a vocabulary of words, on the sample: every stage once."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import load_file

from sparse_encoder.model import load_masked_lm
from sparse_encoder.modeling_lexical_bert import LexicalBertForMaskedLM
from sparse_encoder.packed import pack, unpack
from sparse_encoder.query_tokens import QueryTokens
from tests.training.commands import ROOT, recipe_with
from training.config import Config, RunError, load_config
from training.export import export
from training.former import FormerVectors
from training.module import load_module
from training.pipeline import train
from training.run import Run, record_origin
from training.stages import publish
from training.stages import related as related_stage_module
from training.stages.related import related_stage
from training.stages.start import fresh_model, save_module
from training.stages.vocabulary import Vocabulary, vocabulary_stage
from training.trained import trained_checkpoint
from training.vocabulary import NEVER, Roles, analyse, build_vocabulary

SAMPLE = ROOT / "training" / "sample"
MOST = 4_000
WORDS = f"""
[[data.corpora]]
name = "sample"
path = "passages.jsonl"
fields = ["title", "text"]
title = "title"

[vocabulary]
words = {MOST}

[related]
words = 8

[related.corpora.sample]
shrinkage = 1
"""
LOSS = """
[loss]
former = 1.0
former_start = 0.25
unsupported = 1.0
look_alike = 1.0
"""
# The analyser is loaded several times.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
TENSORS = ("own_token", "last_token", "part_token", "own_share", "related_token", "related_weight")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("start")
    fresh = load_config(SAMPLE / "recipe.toml", data_root=SAMPLE)
    sentences = [json.loads(line)["text"] for line in (SAMPLE / "passages.jsonl").read_text().splitlines()]
    tokenizer, roles = build_vocabulary(analyse(sentences, workers=1), 1500, folder / "vocabulary")
    model = fresh_model(fresh, roles, torch.ones(len(roles.emitted_as)))
    save_module(model, Vocabulary(tokenizer, roles), folder / "trained")
    recipe = recipe_with(
        folder / "recipe.toml",
        ("[vocabulary]\nsize = 1500\n", WORDS),
        ('start = "fresh"', f'start = "checkpoint"\ncheckpoint = "{folder / "trained"}"\ne5_path = ""'),
        ("steps = 20\n", "steps = 2\n"),
        ("[publish]", f"{LOSS}\n[publish]\nmax_expansion_rate = 0.2"),
    )
    return load_config(recipe, data_root=SAMPLE)


@pytest.fixture(scope="module")
def trained(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's directory."""
    run = tmp_path_factory.mktemp("run")
    record_origin(run, Path("recipe.toml"))
    train(config, run)
    return run


def test_the_vocabulary_holds_as_many_words_as_it_may(config: Config, trained: Path) -> None:
    vocabulary = vocabulary_stage(Run(config, trained))
    report = json.loads((trained / "words" / "report.json").read_text(encoding="utf-8"))
    assert len(vocabulary.roles.emitted) == report["emitted"] == MOST
    assert report["pieces"] == len(vocabulary.pieces) > MOST
    assert {"everyday", "letters"} <= set(report["new words by source"])
    assert vocabulary.neighbours is not None
    assert vocabulary.neighbours.nnz > 0


def test_the_table_says_what_each_source_gave(config: Config, trained: Path) -> None:
    report = json.loads((trained / "related" / "report.json").read_text(encoding="utf-8"))
    assert set(report["alone"]) == {"sample", "neighbours"}
    assert report["alone"]["neighbours"]["rows"] > 100
    assert report["alone"]["sample"]["everyday"]["two_related"] == 0.0  # the sample has no corpus
    assert report["table"]["entries"] > 0
    assert 0 <= report["table"]["everyday"]["all"] <= 1
    # every passage of the sample is trained on
    assert report["texts"]["sample"]["training passage"] > 10
    related = related_stage(Run(config, trained), vocabulary_stage(Run(config, trained)))
    assert related
    assert np.diff(related.table.indptr).max() == 8


def test_the_checkpoint_and_the_start_teach_how_pairs_score(config: Config, trained: Path) -> None:
    former = FormerVectors.read(trained / "former")
    pairs = Run(config, trained).data.pairs
    sides = [pair.query for pair in pairs], [pair.passage for pair in pairs]
    expected = np.zeros((2, 2))
    for folder, weight in ((Path(config.model.checkpoint), 1.0), (trained / "grown", 0.25)):
        module = load_module(folder, max_tokens=config.train.max_tokens, bf16=False)
        with torch.no_grad():
            queries, passages = (
                module(module.preprocess(texts[:2], task=task))["sentence_embedding"].numpy()
                for texts, task in zip(sides, ("query", "document"), strict=True)
            )
        expected += weight * queries @ passages.T
    scores = former.scores(torch.tensor([0, 1])).numpy()
    np.testing.assert_allclose(scores, expected, rtol=0.03)  # in bfloat16
    log = json.loads((trained / "train" / "log.json").read_text(encoding="utf-8"))
    assert any("former" in row for row in log)


def test_queries_that_ask_for_alike_passages_are_near() -> None:
    alike = sp.csr_matrix(np.repeat(np.eye(4, 12), 3, axis=0))
    topics = FormerVectors(alike, alike).topics(seed=1).astype(np.float32)
    near = topics @ topics.T
    assert (near > 0.9).tolist() == np.kron(np.eye(4, dtype=bool), np.ones((3, 3), dtype=bool)).tolist()


def test_a_stopped_run_goes_on_from_the_sources_that_it_has(
    config: Config, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("words", "morphemes", "related.sources"):
        (tmp_path / name).symlink_to(trained / name)
    monkeypatch.setattr(related_stage_module, "cooccurrence", None)  # is not asked again
    run = Run(config, tmp_path)
    again = related_stage(run, vocabulary_stage(run))
    before = related_stage(Run(config, trained), vocabulary_stage(run))
    assert again
    assert before
    assert (again.table.toarray() == before.table.toarray()).all()


def test_a_trained_model_of_words_ships_as_it_is(config: Config, trained: Path, tmp_path: Path) -> None:
    final = trained / "train" / "final"
    grown, learned = load_file(trained / "grown" / "model.safetensors"), load_file(final / "model.safetensors")
    assert not torch.equal(grown["decoder.weight"], learned["decoder.weight"])
    run = Run(config, trained)
    export(final, trained / "export", config, run.data)
    shipped = load_file(trained / "export" / "model.safetensors")
    for name in TENSORS:  # rounded to a 127th of the largest of a row
        rounding = 0.005 * float(grown[name].max()) if grown[name].is_floating_point() else 0
        torch.testing.assert_close(shipped[name], grown[name], rtol=0, atol=rounding, msg=name)
    roles = vocabulary_stage(run).roles
    assert Roles.load(trained / "export" / "roles.json") == roles

    with_related = config.publish.model_copy(update={"related_query_factor": 2.0})
    artifact = publish.write(config.model_copy(update={"publish": with_related}), trained, tmp_path, {}, {})
    tokens = QueryTokens.read(artifact, len(roles.emitted_as))
    assert tokens
    assert tokens.emitted_as.tolist() == roles.emitted_as
    word = int((shipped["related_token"] >= 0).sum(1).argmax())
    assert set(tokens.vector([word]).ids.tolist()) > {word}  # queries without the model have related words, too
    packed = pack(artifact, tmp_path / "packed")
    small = {name for part in packed.glob("packed-*") for name in load_file(part)}
    assert {"related_weight:int8", "own_share:int8", "bert.embeddings.word_embeddings.weight:int8"} <= small
    unpacked = unpack(packed, tmp_path / "unpacked")
    assert (unpacked.path / "model.safetensors").read_bytes() == (artifact / "model.safetensors").read_bytes()

    going = config.model_copy(update={"model": config.model.model_copy(update={"checkpoint": str(artifact)})})
    start = trained_checkpoint(Run(going, tmp_path / "further"))
    assert Roles.load(start / "roles.json") == roles


def test_related_words_come_up_and_parts_count_as_own_words(config: Config, trained: Path) -> None:
    model = load_masked_lm(trained / "grown")
    assert isinstance(model, LexicalBertForMaskedLM)
    with_parts = (model.part_token[:, 0] != NEVER).nonzero()[:, 0]
    word = next(int(i) for i in with_parts if int(model.own_token[i]) == int(i) and int(model.related_token[i, 0]) >= 0)
    module = load_module(trained / "grown", max_tokens={"query": 8, "document": 8}, bf16=False).eval()
    features = module({"input_ids": torch.tensor([[2, word, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)})
    (vector,) = features["sentence_embedding"].detach()
    weights = dict(zip(module.roles.emitted.tolist(), vector.tolist(), strict=True))
    assert weights[word] > 0
    assert weights[int(model.part_token[word, 0])] > 0
    assert int(model.related_token[word, 0]) not in (word, int(model.part_token[word, 0]))


def test_a_checkpoint_that_is_no_lexical_bert_is_refused(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    Roles([NEVER]).save(folder / "roles.json")
    other = config.model_copy(update={"model": config.model.model_copy(update={"checkpoint": str(folder)})})

    with pytest.raises(RunError, match="is no LexicalBert: leave it out"):
        vocabulary_stage(Run(other, tmp_path / "run"))
