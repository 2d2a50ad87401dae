"""The ingest pipeline: what of a document is encoded, and where the vector goes. Pure.

The processors of OpenSearch work on fields of the pipeline's own (`SCRATCH`), whatever the document's are called and
hold. A script before them fills these, and one after them puts the vectors where they belong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LONGEST_WORD = 40  #: characters
SCRATCH = "sparse_encoder_{what}_{number}"  #: `what`: text, chunks, vector

#: What both scripts begin with: where a field is, which a document may hold as {"a": {"b": ...}} or as {"a.b": ...}.
_FIND = """
Map holderOf(Map document, Map field) {
  if (document.containsKey(field.name)) { return document; }
  Map holder = document;
  for (int i = 0; i < field.path.length - 1; i++) {
    def next = holder[field.path[i]];
    if (next instanceof List) {
      throw new IllegalArgumentException("the field [" + field.name + "] is in an array of objects, of which each "
        + "would need a vector of its own: index these objects as documents");
    }
    if (!(next instanceof Map)) { return null; }
    holder = next;
  }
  return holder;
}
String keyIn(Map document, Map field) {
  return document.containsKey(field.name) ? field.name : field.path[field.path.length - 1];
}
"""
#: A vector that came with the document goes: it may be of another text. Texts beyond what the service takes lose their
#: end.
PREPARE = (
    _FIND
    + """
String textOf(def value, String name) {
  if (value == null) { return ""; }
  if (value instanceof String) { return value; }
  if (value instanceof Number || value instanceof Boolean) { return value.toString(); }
  if (value instanceof List) {
    StringBuilder text = new StringBuilder();
    for (def item : value) { text.append(textOf(item, name)).append((char) 10); }
    return text.toString().trim();
  }
  throw new IllegalArgumentException("the field [" + name + "] holds an object, which has no text to encode: name the "
    + "field in it by --field, as in " + name + ".title");
}
for (def field : params.fields) {
  Map holder = holderOf(ctx, field);
  if (holder == null) { continue; }
  String key = keyIn(ctx, field);
  holder.remove(key + "_sparse");
  holder.remove(key + "_chunks");
  String text = textOf(holder[key], field.name);
  if (text.trim().isEmpty()) { continue; }
  if (text.length() > params.most_characters) {
    int end = params.most_characters;
    if (Character.isHighSurrogate(text.charAt(end - 1))) { end--; }
    text = text.substring(0, end);
  }
  ctx["sparse_encoder_text_" + field.number] = text;
}
"""
)
#: Cut between words, or within one that is as long as some; a tenth of a chunk is also in the next. Not by OpenSearch's
#: text_chunking, which refuses texts of more than 10,000 words, at the latest in an index that it has yet to make.
CHUNK = """
for (def field : params.fields) {
  def text = ctx["sparse_encoder_text_" + field.number];
  if (text == null) { continue; }
  List words = new ArrayList();
  StringTokenizer rest = new StringTokenizer(text);
  while (rest.hasMoreTokens()) {
    String word = rest.nextToken();
    while (word.length() > params.longest_word) {
      words.add(word.substring(0, params.longest_word));
      word = word.substring(params.longest_word);
    }
    words.add(word);
  }
  List chunks = new ArrayList();
  int start = 0;
  while (start < words.size()) {
    int end = (int) Math.min(start + params.words, words.size());
    chunks.add(String.join(" ", words.subList(start, end)));
    start = end == words.size() ? end : end - params.words / 10;
  }
  ctx["sparse_encoder_chunks_" + field.number] = chunks;
}
"""
#: A vector is put into an array of its own, because an update with doc_as_upsert merges objects, and replaces arrays.
#: For the same reason a text that is there and has no vector gets an empty array: it replaces the vector of the text
#: before.
FINISH = (
    _FIND
    + """
for (def field : params.fields) {
  def vector = ctx.remove("sparse_encoder_vector_" + field.number);
  def chunks = ctx.remove("sparse_encoder_chunks_" + field.number);
  ctx.remove("sparse_encoder_text_" + field.number);
  Map holder = holderOf(ctx, field);
  if (holder == null) { continue; }
  String key = keyIn(ctx, field);
  if (!holder.containsKey(key)) { continue; }
  if (vector instanceof Map) { vector = vector.isEmpty() ? [] : params.arrays ? [vector] : vector; }
  holder[key + "_sparse"] = vector == null ? [] : vector;
  if (params.chunks) { holder[key + "_chunks"] = chunks == null ? [] : chunks; }
}
"""
)


def ingest_pipeline(
    fields: Sequence[str],
    model: str,
    *,
    batch_size: int,
    most_characters: int,
    arrays: bool,
    html: bool = False,
    tokens_of_a_chunk: int | None = None,
) -> dict[str, Any]:
    """Encodes each of `fields` by `model` (its id, or a reference to it).

    `most_characters`: of a text that are encoded; `arrays`: a vector is put into an array of its own; `html`: markup is
    no text; `tokens_of_a_chunk`: of the encoder, for which long texts are cut into chunks, each with a vector of its
    own.
    """
    described = [{"name": name, "path": name.split("."), "number": number} for number, name in enumerate(fields)]

    def scratch(what: str) -> list[str]:
        return [SCRATCH.format(what=what, number=number) for number in range(len(fields))]

    sources = scratch("text" if tokens_of_a_chunk is None else "chunks")
    chunks = tokens_of_a_chunk is not None
    processors = [_script(PREPARE, fields=described, most_characters=most_characters)]
    if html:
        processors += [{"html_strip": {"field": name, "ignore_missing": True}} for name in scratch("text")]
    if tokens_of_a_chunk is not None:
        # A word, or eojeol, takes 2 to 3 tokens of the model.
        words = max(1, tokens_of_a_chunk * 2 // 5)
        processors.append(_script(CHUNK, fields=described, words=words, longest_word=LONGEST_WORD))
    field_map = dict(zip(sources, scratch("vector"), strict=True))
    processors.append({"sparse_encoding": {"model_id": model, "batch_size": batch_size, "field_map": field_map}})
    processors.append(_script(FINISH, fields=described, chunks=chunks, arrays=arrays))
    return {"processors": processors}


def _script(source: str, **params: object) -> dict[str, Any]:
    return {"script": {"lang": "painless", "source": source, "params": params}}
