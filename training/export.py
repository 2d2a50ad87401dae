"""From a trained checkpoint to the weights that ship: what must not be emitted closed, every matrix rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as BackendTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sparse_encoder.artifact import CLOSED_BIAS, file_record
from sparse_encoder.model import SpladeModel, load_masked_lm
from sparse_encoder.packed import dequantise, quantise
from sparse_encoder.tokenizer import Tokenizer
from training.calibrate import excess_bias
from training.config import Config, RunError
from training.data import TrainingData
from training.vocabulary import SPECIAL_TOKENS, Roles

_CALIBRATION_PAIRS = 1000
_CALIBRATION_TOKENS = 256


@torch.no_grad()
def export(trained: Path, out: Path, config: Config, data: TrainingData) -> None:
    """Write ``trained`` as a plain transformers checkpoint, rounded, with never-emitted ids closed, into ``out``.

    The decoder bias is shifted and calibrated as ``config.publish`` says, on a sample of the training texts.
    Every matrix is rounded to what int8 blocks with a float scale can hold, so the figures measured afterwards are
    those of the weights that ship, in whichever form they are stored.
    """
    if not (trained / "roles.json").is_file():
        raise RunError(f"{trained}: no trained checkpoint there; run `python -m training train` to its end first")
    roles = Roles.load(trained / "roles.json")
    mlm: Any = load_masked_lm(trained)
    decoder = mlm.get_output_embeddings()
    decoder.weight[roles.never_emitted] = 0.0
    settings = config.publish
    if settings.max_expansion_rate:
        model = SpladeModel(mlm, roles.emitted)
        tokenizer = Tokenizer.from_file(trained / "tokenizer.json")
        sample = data.pairs[-_CALIBRATION_PAIRS:]
        excess = [
            excess_bias(model, tokenizer, roles, texts, settings.max_expansion_rate, settings.bias_shift, length)
            for texts, length in (
                ([pair.query for pair in sample], settings.max_length_query),
                ([pair.passage for pair in sample], _CALIBRATION_TOKENS),
            )
        ]
        decoder.bias[model.emitted] -= torch.maximum(*excess)
    decoder.bias += settings.bias_shift
    decoder.bias[roles.never_emitted] = CLOSED_BIAS
    if hasattr(mlm, "cls"):
        mlm.cls.predictions.bias.copy_(decoder.bias)  # newer transformers keep it twice; other software reads either
    for tensor in mlm.state_dict().values():
        if not torch.isfinite(tensor).all():
            raise RunError(f"{trained}: its weights hold NaN or infinity: the run diverged")
        if tensor.dim() == 2 and tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(dequantise(*quantise(tensor.numpy()))))
    mlm.save_pretrained(str(out))
    if config.model.start == "pretrained":
        own = AutoTokenizer.from_pretrained(config.model.checkpoint)
        own.model_max_length = settings.max_length_document
        own.save_pretrained(str(out))
    else:
        names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL_TOKENS, strict=True))
        PreTrainedTokenizerFast(
            tokenizer_object=BackendTokenizer.from_file(str(trained / "tokenizer.json")),
            model_max_length=settings.max_length_document,
            **{f"{name}_token": token for name, token in names.items()},
        ).save_pretrained(str(out))
    roles.save(out / "roles.json")


def weights_hash(exported: Path) -> str:
    """Ties an evaluation to the weights that it measured."""
    return file_record(exported / "model.safetensors").sha256
