"""The graph without its last step: what is at each position of a text, before the maximum over them is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from numpy.typing import NDArray
from openvino import opset15 as op

from app.encoders.graph.bert import bert_states
from app.encoders.graph.builder import Builder, index
from app.encoders.graph.lexical_bert import LexicalBertShape, OwnWords, lexical_states
from app.encoders.graph.splade import Kind, head_states, inputs, shape_of
from sparse_encoder.weights import Weights


def build_reading_graph(
    kind: Kind, config: Mapping[str, Any], weights: Weights, emitted_ids: NDArray[np.int32]
) -> ov.Model:
    """Inputs as those of `build_graph`; outputs by their names, without the head over the vocabulary:

    `states` f32 [B, L, hidden]: what that multiplies. `weights` f32 [B, L]: of own tokens, where the head weighs these.
    Of a LexicalBert `states`, and of its own words, parts behind them, [B, L x (1 + parts)], the `places` i32, the
    `weights` f32 and, if it has parts, the `shares` f32; if it has a table, what its words bring up, [B, L, related],
    `related` i32 and `added` f32.
    A column stands for the id that it has in `emitted_ids`, the one behind the last for none.

    :raises EncoderError: as `build_graph` does.
    """
    shape = shape_of(kind.architecture, config)
    build = Builder(weights, "lossless")
    ids, lengths, positions, mask = inputs()
    outputs: dict[str, ov.Node] = {}
    if isinstance(shape, LexicalBertShape):
        states = bert_states(build, shape.bert, ids, positions, mask)
        own = OwnWords(build, shape, emitted_ids, ids, mask)
        outputs["states"] = lexical_states(build, shape, states, ids)
        outputs["places"], outputs["weights"] = own.places, own.weights(states)
        if own.shares is not None:
            outputs["shares"] = own.shares
        if shape.related:
            outputs["related"], outputs["added"] = own.related(states, outputs["weights"])
    elif shape.own_weight:
        states = bert_states(build, shape, ids, positions, mask)
        outputs["weights"] = op.squeeze(op.relu(build.linear(shape.own_weight, states)), index([2]))
    else:
        outputs["states"] = head_states(build, shape, ids, positions, mask, blocks=True)
    for name, node in outputs.items():
        node.output(0).get_tensor().set_names({name})
    return ov.Model([op.result(node) for node in outputs.values()], [ids, lengths], "reading")
