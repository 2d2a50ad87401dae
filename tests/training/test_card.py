"""The card's recipe, small: a pretrained ModernBERT with a tokenizer of its own, triplets, from data to artifact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from sparse_encoder.model import SpladeModel
from sparse_encoder.store import Store
from sparse_encoder.tokenizer import Tokenizer
from tests.tiny import SPECIAL_TOKENS, build_tokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "training" / "recipes" / "card.toml"


def pretrained(folder: Path) -> Path:
    """A random ModernBERT whose decoder is tied to its input embedding, as transformers saves it."""
    backend = build_tokenizer()
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    torch.manual_seed(5)
    config = ModernBertConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=2,
        cls_token_id=2,
        eos_token_id=3,
        sep_token_id=3,
    )
    ModernBertForMaskedLM(config).save_pretrained(folder)
    return folder


def small(recipe: Path, checkpoint: Path) -> Path:
    """The card's recipe on the sample's terms, with another base and little time; its loss and schedule as they are."""
    text = RECIPE.read_text(encoding="utf-8")
    start, end = text.index("[[data.triplets]]"), text.index("[model]")
    source = '[[data.triplets]]\npath = "terms.tsv"\nanchor = "term"\npositive = "related"\nnegative = ""\n'
    text = text[:start] + source + '[[data.retrieval_sets]]\nname = "sample"\n\n' + text[end:]
    for old, new in (
        ('root = "data"', f'root = "{ROOT}/training/sample"'),
        ('retrieval = "retrieval_dev"', 'retrieval = "retrieval"'),
        ("skt/A.X-Encoder-base", str(checkpoint)),
        ("epochs = 25", "epochs = 8\nthreads = 1\nlog_steps = 1"),
        ("batch = 64", "batch = 8"),
        ("learning_rate = 3e-6", "learning_rate = 3e-3"),
        ("active_query = [2, 64]", "active_query = [0, 5000]"),
        ("active_document = [4, 256]", "active_document = [0, 5000]"),
    ):
        assert old in text
        text = text.replace(old, new)
    recipe.write_text(text, encoding="utf-8")
    return recipe


@pytest.mark.timeout(300)
def test_the_cards_recipe_goes_from_triplets_to_an_artifact(tmp_path: Path) -> None:
    recipe, run = small(tmp_path / "recipe.toml", pretrained(tmp_path / "base")), tmp_path / "run"
    for command, *extra in (["train"], ["evaluate"], ["publish", "--store", str(tmp_path / "store"), "--alias", "v"]):
        arguments = [sys.executable, "-m", "training", command, str(recipe), "--run", str(run), *extra]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    counts = json.loads((run / "data.json").read_text())
    assert counts["terms triplets held out"] > 0
    read = counts["terms triplets read"] - counts["terms triplets repeated"]
    assert read == sum(
        n for name, n in counts.items() if name.removeprefix("terms triplets ") not in ("read", "repeated")
    )
    log = [row for row in json.loads((run / "train" / "log.json").read_text()) if "loss" in row]
    assert {"self", "synonym", "margin", "flops"} <= set(log[0])
    assert np.mean([row["synonym"] for row in log[-5:]]) < np.mean([row["synonym"] for row in log[:5]])
    assert json.loads((run / "evaluation" / "report.json").read_text())["terms"]["terms"] > 0

    store = Store(str(tmp_path / "store"))
    artifact = store.fetch(store.resolve("v"), tmp_path / "cache")
    assert artifact.manifest.architecture == "ModernBertForMaskedLM"
    model = AutoModelForMaskedLM.from_pretrained(artifact.path).eval()
    tokenizer = Tokenizer.from_file(artifact.path / "tokenizer.json")
    golden = next(iter(artifact.golden()))
    ids = torch.tensor([tokenizer.encode_batch([golden.text], 64)[0].ids])
    with torch.no_grad():
        row = torch.log1p(torch.relu(model(input_ids=ids).logits.amax(1)))[0]
    assert sorted(golden.ids) == row.nonzero()[:, 0].tolist()


def test_every_known_head_gives_the_maximum_of_its_own_logits(tmp_path: Path) -> None:
    torch.manual_seed(1)
    roberta = RobertaForMaskedLM(
        RobertaConfig(vocab_size=90, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    electra = ElectraForMaskedLM(
        ElectraConfig(vocab_size=90, embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    distil = DistilBertForMaskedLM(DistilBertConfig(vocab_size=90, dim=32, n_layers=1, n_heads=2, hidden_dim=32))
    modern = AutoModelForMaskedLM.from_pretrained(pretrained(tmp_path / "base"))
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    for mlm in (roberta.eval(), modern.eval(), electra.eval(), distil.eval()):
        splade = SpladeModel(mlm)
        with torch.no_grad():
            logits = mlm(input_ids=ids, attention_mask=mask).logits.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf)
            expected = torch.log1p(torch.relu(logits.amax(1)))
            torch.testing.assert_close(splade(ids, mask), expected, rtol=1e-4, atol=1e-5)


def test_an_architecture_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear is not known; known are BertForMaskedLM"):
        SpladeModel(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
