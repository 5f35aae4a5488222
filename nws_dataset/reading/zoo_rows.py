"""`ZooRows`: rows of a zoo whose slices are read when they are needed."""

from __future__ import annotations

import numpy as np

from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo
from nws_dataset.views.slices import Indexed


class ZooRows(Indexed):
    """Rows of a zoo whose slices are read when they are needed.

    From a folder only these weights are read, from the Hub whole rows, through the cache.

    Args:
        zoo: the zoo.
        snapshots: lines of its index (`zoo.filter(...)`).

    Example:
        >>> from nws_dataset import DeepMetaClassifier, Zoo
        >>> zoo = Zoo("nws")
        >>> snapshots = zoo.filter()
        >>> rows = ZooRows(zoo, snapshots)
        >>> rows.slices(np.array([0, 1]), np.array([0, 5]), 100).shape
        (2, 100)
        >>> classifier = DeepMetaClassifier(slice_length=100, epochs=1, width=1 / 16, random_state=0)
        >>> classifier.fit(rows, snapshots["activation"]).predict(rows).shape
        (30,)
    """

    fixed = True

    def __init__(self, zoo: Zoo, snapshots: Snapshots) -> None:
        self.zoo, self.snapshots, self.lengths = (
            zoo,
            snapshots,
            np.asarray(snapshots["num_weights"], dtype=np.intp),
        )

    def slices(self, indices: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """Slices of rows.

        Args:
            indices: [B], which rows.
            starts: [B], the position of each slice's first weight in its row.
            length: L, weights in a slice.

        Returns:
            [B, L] float32, padded with zeros after a row's end.

        Raises:
            ZooError: as `Zoo.slices`.
        """
        widths = np.minimum(length, self.lengths[indices] - starts)
        batch_BL = np.zeros((len(indices), length), np.float32)
        for width in np.unique(widths).tolist():
            alike = np.flatnonzero(widths == width)
            batch_BL[alike, :width] = self.zoo.slices(self.snapshots[indices[alike]], starts[alike], width)
        return batch_BL
