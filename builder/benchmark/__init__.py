"""How fast training is, beside PyTorch as usually written, carefully written, and mapped over models."""
