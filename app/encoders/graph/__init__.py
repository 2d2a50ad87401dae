"""A masked language model as an OpenVINO graph that ends in the SPLADE weights of each text, from its own weights."""
