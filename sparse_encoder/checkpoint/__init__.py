"""Checkpoints that others made: found, understood, and written as an artifact of ours, or refused with the reason.

Nothing of a checkpoint is executed: its JSON and its safetensors are read as data, by numpy and `tokenizers`.
"""
