"""One module for each stage between data and a published checkpoint; `training.pipeline` has them in their order."""
