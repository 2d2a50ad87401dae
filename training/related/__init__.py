"""The table of related words: for each word some forty others with a weight, made once from what texts hold.

`matrix` counts the words of a corpus, `cooccurrence` finds which belong together in it, `neighbours` which stand in a
like place, `table` makes one table of all.
"""
