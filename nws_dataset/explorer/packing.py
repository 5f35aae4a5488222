"""Arrays as text in a page: numbers in few bytes, and back.

A packed array is a JSON object. `type` is a typed array of JavaScript, `data` its bytes in base64 (little
endian), `shape` its axes. Codes of numbers have `scale`, `low` and `high`: the numbers are equally far from
each other, or their logarithms are.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np

Packed = dict[str, Any]
TYPES: dict[str, np.dtype[Any]] = {
    "Uint8Array": np.dtype("<u1"),
    "Uint16Array": np.dtype("<u2"),
    "Float32Array": np.dtype("<f4"),
}
MISSING = 0xFFFF  # the code of a number that is not known
LARGEST = 1e38  # float32, as the page has numbers, holds three times that
TOP = MISSING - 1  # the code of the largest number
DEFLATE_LEVEL = 6


def pack(values: np.ndarray) -> Packed:
    """An array of one of TYPES as a JSON object.

    Example:
        >>> pack(np.array([[1, 2]], np.uint8))
        {'type': 'Uint8Array', 'shape': [1, 2], 'data': 'AQI='}
    """
    names = {dtype: name for name, dtype in TYPES.items()}
    dtype = values.dtype.newbyteorder("<")
    data = base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode("ascii")
    return {"type": names[dtype], "shape": list(values.shape), "data": data}


def pack_codes(codes: np.ndarray) -> Packed:
    """Whole numbers from 0 to 65535, in as few bytes as they need."""
    return pack(codes.astype(np.uint8 if codes.size == 0 or codes.max() < 256 else np.uint16))


def quantize(values: np.ndarray, scale: str = "linear") -> Packed:
    """Numbers in two bytes each.

    Args:
        values: of any shape; what is not finite is missing, and no number is larger than LARGEST.
        scale: "linear" keeps differences: the error is at most 1/131,000 of the range. "log" keeps ratios;
            numbers that are not positive count as the smallest positive one.

    Example:
        >>> unpack(quantize(np.array([0.0, 0.5, 1.0, np.nan]))).round(4)
        array([0. , 0.5, 1. , nan])
    """
    found = np.asarray(values, np.float64)
    known = np.isfinite(found)
    found = found.clip(-LARGEST, LARGEST)
    if scale == "log":
        positive = found[known & (found > 0)]
        found = np.log(np.maximum(np.where(known, found, 1), positive.min() if positive.size else 1))
    low, high = (float(found[known].min()), float(found[known].max())) if known.any() else (0.0, 0.0)
    share = (np.where(known, found, low) - low) / ((high - low) or 1.0)
    codes = np.where(known, np.rint(share * TOP), MISSING).astype(np.uint16)
    return {**pack(codes), "scale": scale, "low": low, "high": high}


def unpack(packed: Packed) -> np.ndarray:
    """The array that `pack` or `quantize` was given; the script of the page does the same."""
    data = base64.b64decode(packed["data"])
    values = np.frombuffer(data, TYPES[packed["type"]]).reshape(packed["shape"])
    if "scale" not in packed:
        return values
    numbers = packed["low"] + values / TOP * (packed["high"] - packed["low"])
    numbers = np.exp(numbers) if packed["scale"] == "log" else numbers
    return np.where(values == MISSING, np.nan, numbers)


def to_text(contents: Any) -> str:
    """JSON, compressed and in base64: no letter of it means anything to HTML or a script.

    Raises:
        ValueError: if a number is not finite: JSON knows none such.
    """
    text = json.dumps(contents, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("ascii"), DEFLATE_LEVEL)).decode("ascii")


def from_text(text: str) -> Any:
    """What `to_text` was given."""
    return json.loads(zlib.decompress(base64.b64decode(text)))
