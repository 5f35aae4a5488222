"""The image that each network represents: one order of a set's images for all zoos and seeds.

Images are numbered from 0, training images first, then test images. Networks of test images are the test
split, networks of the last training images the validation split.
"""

from __future__ import annotations

import functools

import numpy as np

from builder import philox
from builder.image_sets import IMAGE_SETS, ImageSetFacts

MAX_VALIDATION = 5000  # images; a tenth of the training images if that is less


def split_sizes(facts: ImageSetFacts) -> dict[str, int]:
    """Split -> number of its images; their numbers follow in this order."""
    validation = min(MAX_VALIDATION, facts.train_images // 10)
    return {
        "train": facts.train_images - validation,
        "validation": validation,
        "test": facts.test_images,
    }


@functools.cache
def image_order(dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of a set in the order in which networks represent them.

    In every prefix each split has its share to within one image.

    Returns:
        [N] numbers of images, and [N] the index in `split_sizes` of each image's split.
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
    """[sum of sizes]: the class at each place; in every prefix each class has its share to within one.

    The next class is the one with the earliest deadline among those that would not get too far ahead
    (Tijdeman 1980, "The chairman assignment problem").
    """
    total, shares = int(sizes.sum()), sizes.tolist()
    taken, found = [0] * len(shares), np.empty(int(sizes.sum()), np.int64)
    slack = 2 * len(shares) - 2
    for n in range(1, total + 1):
        due = [
            # the last place at which the class may come again; integers, so that it is exact
            (-(-total * (slack * (count + 1) - 1) // (slack * share)), split)
            for split, (count, share) in enumerate(zip(taken, shares, strict=True))
            if count < share and slack * (n * share - count * total) >= total
        ]
        _, split = min(due)
        taken[split] += 1
        found[n - 1] = split
    return found
