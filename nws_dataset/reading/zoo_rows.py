"""`ZooRows`: rows of weights that are read from a zoo when they are asked for."""

from __future__ import annotations

import numpy as np

from nws_dataset.reading.snapshots import Rows
from nws_dataset.reading.zoo import Zoo
from nws_dataset.views.slices import Indexed


class ZooRows(Indexed):
    """Rows of a zoo, of which slices are read when they are needed: from a folder these weights alone, from
    the Hub through its cache.

    Args:
        zoo: the zoo.
        rows: rows of its index (`zoo.filter(...)`).

    Example:
        >>> rows = zoo.filter(is_final=True)  # doctest: +SKIP
        >>> DeepMetaClassifier().fit(ZooRows(zoo, rows), rows["optimizer"])  # doctest: +SKIP
    """

    fixed = True

    def __init__(self, zoo: Zoo, rows: Rows) -> None:
        self.zoo, self.rows, self.lengths = zoo, rows, np.asarray(rows["num_weights"], dtype=np.intp)

    def slices(self, numbers: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        widths = np.minimum(length, self.lengths[numbers] - starts)
        batch_BL = np.zeros((len(numbers), length), np.float32)
        for width in np.unique(widths).tolist():
            alike = np.flatnonzero(widths == width)
            batch_BL[alike, :width] = self.zoo.slices(self.rows[numbers[alike]], starts[alike], width)
        return batch_BL
