"""Where a zoo is trained and by what, as options and nws.json name it; torch is loaded only when a machine is
asked.
"""

from __future__ import annotations

import importlib.util

DEVICES = ("cpu", "cuda", "mps")  # "cuda" is AMD's GPUs too, "mps" Apple's
BACKENDS = ("fast", "torch")  # this project's steps for a CPU and for CUDA; plain stacked torch


def lacking(device: str, backend: str) -> str:
    """What this machine lacks to train on a device by a backend; empty if nothing.

    Triton comes with torch for CUDA on Linux alone.
    """
    import torch

    if device == "cpu":
        return ""
    if device == "mps" and backend == "fast":
        return "a fast step for it"
    if not (torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()):
        return "a GPU that torch can use"
    return "Triton" if backend == "fast" and not importlib.util.find_spec("triton") else ""
