"""The start of the encoder: widening keeps what the teacher computes, and words already weigh what they should."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel

from sparse_encoder.model import SpladeModel
from training.config import ConfigError
from training.student import identity_codes, install_head, silent_code, widen_e5
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


def test_codes_are_shared_by_pieces_of_one_word_and_by_all_that_is_silent() -> None:
    codes = identity_codes(ROLES, 32, seed=1)
    assert torch.equal(codes[5], codes[45])  # 낱말0 and ##낱말0
    assert torch.equal(codes[0], codes[46])  # [PAD] and the particle
    torch.testing.assert_close(codes.std(1, correction=0), torch.ones(len(PIECES)))
    torch.testing.assert_close(codes[5:45] @ silent_code(codes, ROLES), torch.zeros(40), atol=1e-4, rtol=0)


def test_identity_size_must_fit_the_heads() -> None:
    model, tokenizer = teacher()
    with pytest.raises(ConfigError, match="multiple of the attention head size 16"):
        widen_e5(model, tokenizer, PIECES, identity_codes(ROLES, 24, seed=1), ["낱말1"], seed=1)


def test_an_untrained_student_emits_each_word_at_its_weight_and_nothing_for_a_particle() -> None:
    model, tokenizer = teacher()
    codes = identity_codes(ROLES, 64, seed=1)
    sample = [" ".join(WORDS[i : i + 6]) for i in range(0, 34, 2)]
    wide = widen_e5(model, tokenizer, PIECES, codes, sample, seed=1).eval()
    emitted = torch.arange(5, 45)
    splade = SpladeModel(wide, emitted)
    own = torch.zeros(len(PIECES))
    own[5:45] = torch.linspace(0.5, 2.0, 40)
    rows = [[2, *range(5 + i, 11 + i), 46, 3] for i in range(0, 34, 2)]
    words = [[2, i, 3] for i in range(5, 45)]
    vectors = torch.randn((len(PIECES), 64), generator=torch.Generator().manual_seed(2)).numpy()
    install_head(splade, ROLES, codes, vectors, own, rows, words, start_active=2)
    texts = torch.tensor(rows)
    with torch.no_grad():
        weights = splade(texts, torch.ones_like(texts))
        silent = torch.tensor([[2, 46, 46, 3]])
        states = splade.hidden_states(silent, torch.ones_like(silent))
        particles = splade.max_logits(states, torch.ones_like(silent))
    own_word = torch.zeros_like(weights, dtype=torch.bool).scatter_(1, texts[:, 1:7], True)
    assert weights[own_word].mean() > 5 * weights[~own_word].mean()
    assert torch.corrcoef(torch.stack([weights[own_word], own.expand_as(weights)[own_word]]))[0, 1] > 0.5
    assert float(particles.max()) < -4  # half of what silence takes off: no expansion gets over that
    assert weights[:, [*range(5), 45, 46]].abs().max() == 0
