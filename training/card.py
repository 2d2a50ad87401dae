"""The model card of a published artifact: what it is, its use, its figures, its training, its limits."""

from __future__ import annotations

from sparse_encoder.artifact import Description
from training.report import table

_TEMPLATE = """---
language: ko
license: apache-2.0
library_name: sentence-transformers
pipeline_tag: feature-extraction{base_model}
tags:
- sentence-transformers
- sparse-encoder
- sparse
- splade
- korean
- opensearch
---

# {version}

A learned sparse encoder (SPLADE) for Korean: a text becomes weighted words, its own and related ones, that a plain
inverted index can search. Architecture `{architecture}`, vocabulary {vocabulary:,} of which {emitted:,} can be
emitted.{kind}

## Use

Weight of word j: `log1p(relu(max over unmasked positions t of logits[t, j]))`; the relevance of a document to a query
is the dot product of their vectors. At most {document} tokens for documents and {query} for queries. Words that must
not be emitted (particles, endings, punctuation, special tokens) are closed in the weights, so all of the following give
the same vectors.

With `transformers`, by the class that lies beside the weights:

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory"{trust})
model = AutoModel.from_pretrained("path/to/this/directory", trust_remote_code=True).eval()
inputs = tokenizer("손해배상", return_tensors="pt")
with torch.no_grad():
    sparse_repr, token_weights = model(**inputs)
values, ids = sparse_repr[0].topk(20)
for weight, token_id in zip(values.tolist(), ids.tolist()):
    if weight > 0:
        print(tokenizer.decode([token_id]).strip(), round(weight, 2))
```

With `transformers`, by the logits{code}:

```python
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory"{trust})
model = AutoModelForMaskedLM.from_pretrained("path/to/this/directory"{trust}).eval()
inputs = tokenizer(["손해배상"], return_tensors="pt")
with torch.no_grad():
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
logits = logits.masked_fill(inputs["attention_mask"].unsqueeze(-1) == 0, float("-inf"))
weights = torch.log1p(torch.relu(logits.max(dim=1).values))[0]
for weight, token in zip(*weights.topk(10)):
    print(tokenizer.convert_ids_to_tokens(int(token)), round(float(weight), 2))
```

With `sentence-transformers`:

```python
from sentence_transformers import SparseEncoder

model = SparseEncoder("path/to/this/directory"{trust})
query = model.encode_query("손해배상")
documents = model.encode_document(["고의로 남에게 손해를 끼친 사람은 배상할 책임이 있다."])
print(model.similarity(query, documents), model.decode(query, top_k=10))
```

With the service that it is made for: `python -m app --model path/to/this/directory`, and OpenSearch.

## Examples

{examples}

## Figures

{figures}

Sparse vectors are cut to their heaviest {top_document} words (documents) and {top_query} (queries). BM25 has k1 1.2,
b 0.75 over the morphemes of kiwipiepy. {limit} queries a set, always the whole corpus, encoded in bfloat16; the sets
were used to develop the model, never to train it.

## Training

Base: {base}. Command: `{command}` at commit `{commit}`. Data:

{origin}

## Limits

{limits} Documents and queries must be encoded with the same version.

## Citation

SPLADE v2: Formal et al. 2021, arXiv:2109.10086.{citation}
"""

_LEXICAL_BERT = """ The words of a text
itself weigh by construction, as in BM25: a weight of their own, saturated by their count, less in long texts, times how
important the network finds them there; what the network adds are other words."""
_E5_CITATION = " multilingual-e5: Wang et al. 2024, arXiv:2402.05672."


def model_card(description: Description, examples: dict[str, dict[str, float]], limits: str) -> str:
    """The README.md of an artifact. ``examples``: heaviest words of some texts."""
    evaluation = description.evaluation
    prune = evaluation.get("prune", {})
    own_code = description.architecture == "LexicalBertForMaskedLM"
    return _TEMPLATE.format(
        version=description.version,
        architecture=description.architecture,
        kind=_LEXICAL_BERT if own_code else "",
        code="" if own_code else ", without any code from here",
        trust=", trust_remote_code=True" if own_code else "",
        vocabulary=description.vocabulary_size,
        emitted=description.vocabulary_size - len(description.never_emitted_ids),
        document=description.max_length_document,
        query=description.max_length_query,
        examples="\n".join(
            f"- {text} → " + ", ".join(f"{word} {weight:.2f}" for word, weight in words.items())
            for text, words in examples.items()
        ),
        figures=table(dict(evaluation)) if evaluation.get("retrieval") else "Not measured.",
        top_document=prune.get("top_k_document", "all"),
        top_query=prune.get("top_k_query", "all"),
        limit=f"At most {limit:,}" if (limit := evaluation.get("query_limit")) else "All",
        limits=limits,
        citation=_E5_CITATION if "e5" in description.training.base else "",
        base=description.training.base,
        base_model="" if description.training.base == "none" else f"\nbase_model: {description.training.base}",
        command=description.training.command,
        commit=description.training.commit,
        origin="\n".join(f"- {line}" for line in description.training.data_origin) or "- none named",
    )
