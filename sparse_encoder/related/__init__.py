"""A user's own related words: rows of the table of a published LexicalBert, changed without training."""
