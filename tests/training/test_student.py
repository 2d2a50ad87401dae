"""The start of the encoder: widening keeps what the teacher computes, and words already weigh what they should."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel

from sparse_encoder.model import SpladeModel
from training.student import install_head, start_from_e5, without_skip
from training.vocabulary import NEVER, SPECIAL_TOKENS, Roles

WORDS = [f"낱말{i}" for i in range(40)]
PIECES = [*SPECIAL_TOKENS, *WORDS, "##낱말0", "##을"]
ROLES = Roles([NEVER] * 5 + list(range(5, 45)) + [5, NEVER])


def teacher() -> tuple[BertModel, Tokenizer]:
    torch.manual_seed(0)
    vocabulary = {piece: i for i, piece in enumerate(["<pad>", "<unk>", "<s>", "</s>", *WORDS, "을"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return BertModel(config, add_pooling_layer=False).eval(), tokenizer


def start(seed: int = 1) -> SpladeModel:
    model, tokenizer = teacher()
    lexical_bert = start_from_e5(model, tokenizer, PIECES, ROLES, seed=seed)
    lexical_bert.train(False)
    return SpladeModel(lexical_bert, torch.arange(5, 45))


def test_the_body_computes_what_the_teacher_does_where_a_word_is_one_of_its_pieces() -> None:
    splade = start()
    model, _ = teacher()
    ids = torch.tensor([[2, 5, 6, 7, 3]])  # whose pieces have the same ids here, but for the special ones
    theirs = torch.tensor([[2, 4, 5, 6, 3]])
    with torch.no_grad():
        ours = splade.hidden_states(ids, torch.ones_like(ids))
        torch.testing.assert_close(ours, model(input_ids=theirs)[0])


def installed(skip: bool = True) -> tuple[SpladeModel, torch.Tensor]:
    splade = start()
    own = torch.zeros(len(PIECES))
    own[5:45] = torch.linspace(0.5, 2.0, 40)
    rows = [[2, *range(5 + i, 11 + i), 46, 3] for i in range(0, 34, 2)]
    vectors = torch.randn((len(PIECES), 64), generator=torch.Generator().manual_seed(2)).numpy()
    measured = install_head(splade, vectors, own, rows, start_active=2, skip=skip)
    assert measured["active"] == pytest.approx(2, abs=1)
    return splade, own


def test_an_untrained_student_emits_each_word_at_its_weight_and_nothing_for_a_particle() -> None:
    splade, own = installed()
    texts = torch.tensor([[2, *range(5, 11), 46, 3], [2, *range(20, 26), 46, 3]])
    with torch.no_grad():
        weights = splade(texts, torch.ones_like(texts))
    for row, text in zip(weights, texts, strict=True):
        words = text[1:7]
        torch.testing.assert_close(row[words], own[words] * 6**-0.25)
    assert weights[:, [*range(5), 45, 46]].abs().max() == 0
    silent = torch.tensor([[2, 46, 46, 3]])
    assert splade(silent, torch.ones_like(silent)).abs().max() == 0


def test_a_piece_counts_as_the_word_that_it_is_emitted_as_and_repeats_saturate() -> None:
    splade, own = installed()
    text = torch.tensor([[2, 5, 45, 6, 3]])  # 낱말0 ##낱말0 낱말1
    with torch.no_grad():
        (weights,) = splade(text, torch.ones_like(text))
    assert float(weights[5]) == pytest.approx(float(own[5]) * 2 * 1.9 / 2.9 * 3**-0.25, rel=1e-5)
    assert float(weights[6]) == pytest.approx(float(own[6]) * 3**-0.25, rel=1e-5)


def test_without_skip_the_head_sees_no_token_itself_and_its_input_stays_what_it_was_on_average() -> None:
    splade, _ = installed()
    mlm = splade.mlm
    words = torch.tensor([[*range(5, 45)]])  # the tokens that speak, but for the piece of 낱말0
    words = torch.cat([words, torch.tensor([[45]])], dim=1)
    states = torch.zeros((1, 41, 64))
    with torch.no_grad():
        embedded = mlm.bert.embeddings.word_embeddings(words)
        before = (mlm.head.dense(states) + mlm.head.skip(embedded)).mean(1)
        assert not torch.equal(mlm.head_states(states, words)[0, 0], mlm.head_states(states, words)[0, 1])
        without_skip(mlm)
        torch.testing.assert_close(mlm.head.dense(states).mean(1), before)
        torch.testing.assert_close(mlm.head_states(states, words)[0, 0], mlm.head_states(states, words)[0, 1])
    assert not mlm.head.skip.weight.requires_grad


def test_a_head_that_is_installed_without_skip_reaches_as_many_words() -> None:
    splade, _ = installed(skip=False)
    assert splade.mlm.head.skip.weight.abs().max() == 0
    added = []
    for i in range(0, 34, 2):
        text = torch.tensor([[2, *range(5 + i, 11 + i), 46, 3]])
        with torch.no_grad():
            added.append(int((splade(text, torch.ones_like(text)) > 0).sum()) - 6)
    assert sum(added) / len(added) == pytest.approx(2, abs=1)
