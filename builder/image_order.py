"""Which image each network stands for: an order of an image set's images that every zoo shares, whatever its
seed.

Images are numbered through, training images first, then test images. The last training images are for
validation: networks of test images are the test split.
"""

from __future__ import annotations

import functools

import numpy as np

from builder import philox
from builder.image_sets import IMAGE_SETS, ImageSetFacts

MAX_VALIDATION = 5000  # images; a tenth of the training images where these are fewer


def split_sizes(facts: ImageSetFacts) -> dict[str, int]:
    """Split -> its images, in the order of their numbers."""
    validation = min(MAX_VALIDATION, facts.train_images // 10)
    return {
        "train": facts.train_images - validation,
        "validation": validation,
        "test": facts.test_images,
    }


@functools.cache
def image_order(dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of a set in the order in which networks stand for them.

    In every prefix the splits have their shares to within one image.

    Returns:
        [N] numbers of images, and [N] the index of each one's split among those of `split_sizes`.
    """
    sizes = np.array(list(split_sizes(IMAGE_SETS[dataset]).values()))
    splits = _interleaved(sizes)
    key, first = philox.key_of(0, f"images/{dataset}"), 0
    numbers = np.empty(len(splits), np.int64)
    for split, size in enumerate(sizes.tolist()):
        images = np.arange(first, first + size)
        words = philox.draw(key, philox.Purpose.IMAGES, index=images)
        numbers[splits == split] = images[np.argsort(philox.key64(words[0], words[1]), kind="stable")]
        first += size
    return numbers, splits


def _interleaved(sizes: np.ndarray) -> np.ndarray:
    """[sum of sizes] the class at each place, so that in every prefix each class has its share to within one.

    Of those that may come next without being ahead, the one whose deadline is the first (Tijdeman 1980, "The
    chairman assignment problem").
    """
    total, shares = int(sizes.sum()), sizes.tolist()
    taken, found = [0] * len(shares), np.empty(int(sizes.sum()), np.int64)
    slack = 2 * len(shares) - 2
    for n in range(1, total + 1):
        due = [
            # the place by which the class must come again, exactly: integers all the way
            (-(-total * (slack * (count + 1) - 1) // (slack * share)), split)
            for split, (count, share) in enumerate(zip(taken, shares, strict=True))
            if count < share and slack * (n * share - count * total) >= total
        ]
        _, split = min(due)
        taken[split] += 1
        found[n - 1] = split
    return found
