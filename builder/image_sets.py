"""The image sets that models are trained on, and what is known of each without loading it."""

from __future__ import annotations

from dataclasses import dataclass

from nws_dataset.networks.base import NUM_CLASSES


@dataclass(frozen=True)
class ImageSetFacts:
    """An image set: what it contains, where to get it, and what its authors permit."""

    train_images: int
    test_images: int
    smallest_class: int  # training images of the smallest class
    largest_test_class: int  # test images of the largest class
    size: int  # height and width in pixels
    terms: str  # its authors' terms of use
    folders: tuple[str, ...] = ()  # names of its folder below --images; case, `-` and `_` are ignored
    hub: str | None = None  # repository on the Hub; None: there is none
    config: str | None = None  # configuration of that repository
    column: str = "image"  # Parquet column of the images; the labels are in `label`
    channels: int = 1  # 3: colour
    classes: int = NUM_CLASSES
    # the set whose test images these are, the first ones for training; None: a set of its own
    part_of: str | None = None

    @property
    def majority_rate(self) -> float:
        """The test accuracy of a constant answer."""
        return self.largest_test_class / self.test_images


IMAGE_SETS = {
    "mnist": ImageSetFacts(
        train_images=60_000,
        test_images=10_000,
        smallest_class=5_421,
        largest_test_class=1_135,
        size=28,
        terms="no explicit licence of its authors; copies are given as CC BY-SA 3.0 or as MIT",
        folders=("mnist",),
        hub="ylecun/mnist",
    ),
    "fashion_mnist": ImageSetFacts(
        train_images=60_000,
        test_images=10_000,
        smallest_class=6_000,
        largest_test_class=1_000,
        size=28,
        terms="MIT",
        folders=("fashion_mnist", "fashion"),
        hub="zalando-datasets/fashion_mnist",
    ),
    "kmnist": ImageSetFacts(
        train_images=60_000,
        test_images=10_000,
        smallest_class=6_000,
        largest_test_class=1_000,
        size=28,
        terms="CC BY-SA 4.0",
        folders=("kmnist",),
    ),
    "kmnist_10k": ImageSetFacts(
        train_images=8_000,
        test_images=2_000,
        smallest_class=785,
        largest_test_class=215,
        size=28,
        terms="CC BY-SA 4.0",
        part_of="kmnist",
    ),
    "cifar10": ImageSetFacts(
        train_images=50_000,
        test_images=10_000,
        smallest_class=5_000,
        largest_test_class=1_000,
        size=32,
        channels=3,
        terms="no explicit licence",
        folders=("cifar10", "plain_text"),
        hub="uoft-cs/cifar10",
        column="img",
    ),
    "svhn": ImageSetFacts(
        train_images=73_257,
        test_images=26_032,
        smallest_class=4_659,
        largest_test_class=5_099,
        size=32,
        channels=3,
        terms="for non-commercial use only",
        folders=("svhn", "cropped_digits"),
        hub="ufldl-stanford/svhn",
        config="cropped_digits",
    ),
    "stl10": ImageSetFacts(
        train_images=5_000,
        test_images=8_000,
        smallest_class=500,
        largest_test_class=800,
        size=96,
        channels=3,
        terms="no explicit licence; its images come from ImageNet, whose terms allow non-commercial "
        "research and education",
        folders=("stl10",),
        hub="tanganke/stl10",
    ),
    "digits": ImageSetFacts(
        train_images=1_437,
        test_images=360,
        smallest_class=141,
        largest_test_class=37,
        size=8,
        terms="CC BY 4.0 (UCI's optical recognition of handwritten digits, as it comes with scikit-learn)",
    ),
}  # a recipe's `dataset` -> its facts
