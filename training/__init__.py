"""Train, evaluate and publish sparse encoder checkpoints; the published directory is all that serving ever sees."""
