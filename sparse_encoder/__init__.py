"""Text in, sparse vector out: the definition that training and serving share.

Import its modules by name: `vector`, `tokenizer`, `artifact`, `packed`, and `model`, the only one that needs torch.
"""
