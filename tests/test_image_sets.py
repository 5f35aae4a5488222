"""What is told of image sets, held against the sets themselves.

scikit-learn's digits are always there. `NWS_IMAGES=DIR` names a folder with others, as `nws-build --images`
takes it; those that it lacks are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.image_sets import IMAGE_SETS
from builder.images import load_image_set
from nws_dataset.errors import ZooError
from nws_dataset.format.recipe import LEGAL_VALUES
from nws_dataset.format.subsets import SUBSETS


def test_every_image_set_of_a_recipe_has_facts() -> None:
    drawn = {
        dataset
        for subset in SUBSETS.values()
        for family in subset.families
        for dataset in _values(family["dataset"])
    }
    assert drawn <= set(IMAGE_SETS) == set(LEGAL_VALUES["dataset"])


def _values(draw: Any) -> Iterator[str]:
    yield from getattr(draw, "values", None) or (draw,)


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_facts_are_plausible(name: str) -> None:
    facts = IMAGE_SETS[name]
    assert 0.1 <= facts.majority_rate < 0.2
    assert facts.smallest_class <= facts.train_images / facts.classes
    assert facts.folders or facts.part_of or name == "digits"


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_facts_are_those_of_the_set(name: str) -> None:
    directory = os.environ.get("NWS_IMAGES")
    if name != "digits" and directory is None:
        pytest.skip("NWS_IMAGES names no folder of image sets")
    try:
        images = load_image_set(name, None if name == "digits" else Path(str(directory)))
    except ZooError as error:
        pytest.skip(f"{directory} lacks a whole set: {error}")
    facts = IMAGE_SETS[name]
    assert images.train_images.shape == (facts.train_images, facts.channels, facts.size, facts.size)
    assert images.test_images.shape == (facts.test_images, facts.channels, facts.size, facts.size)
    assert np.bincount(images.train_labels).min() == facts.smallest_class
    assert np.bincount(images.test_labels).max() == facts.largest_test_class
    assert len(np.unique(images.train_labels)) == facts.classes
