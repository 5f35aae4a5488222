"""How fast training is, beside PyTorch as it is usually written, carefully written, and mapped over
models.
"""
