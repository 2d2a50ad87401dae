"""A vocabulary of words: what people write and search for is one piece each, whatever it is cut from.

`counts` says how often what is written, `cong` what general Korean uses, `candidates` which words deserve a piece,
`choice` which get one in place of which old ones, `roles` as what each piece is emitted, `parts` for which words it
speaks as well.
"""
