"""The plan: literal recipes and splits that zoos already built depend on, and that nothing ever redraws."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from builder.forecasting.costs import disk_bytes
from builder.plan import SHARD_BYTES, Model, image_sets_of, models_per_shard, plan, select, split_of
from builder.store import shard_of
from nws_dataset.format import shards
from nws_dataset.format.recipe import Recipe
from nws_dataset.format.subsets import SUBSETS
from nws_dataset.networks.cnn import Architecture
from nws_dataset.networks.layout import layout_of

MAIN_0 = Recipe(
    Architecture(filter_size=5, depth_conv=5, width_conv=4, depth_fc=4, width_fc=192),
    dataset="stl10",
    learning_rate=0.0013070639932165702,
    batch_size=128,
    optimizer="momentum",
    activation="sigmoid",
    initialization="normal",
    augmentation=False,
    dropout=0.5,
    l2=0.0,
    train_fraction=1.0,
    validation_fraction=0.1,
    balanced=True,
    learning_rate_decay=0.96,
    max_epochs=1000,
    early_stopping=True,
)
SMALL_CNN_7 = Recipe(
    Architecture(
        filter_size=3, depth_conv=3, width_conv=16, width_growth=1, stride=2, padding="valid", pooling="none",
        head="average", depth_fc=0,
        width_fc=None, batch_norm=False, dropout_place="conv", image_channels=1, image_size=32, pixel_min=-1,
    ),
    dataset="svhn",
    learning_rate=0.003002066889162103,
    batch_size=512,
    optimizer="adam",
    activation="tanh",
    initialization="random_normal",
    init_std=0.41856747922583926,
    dropout=0.6647163883828637,
    l2=3.978465048962886e-06,
    train_fraction=1.0,
    max_epochs=86,
)  # fmt: skip


def model(subset: str, number: int, seed: int = 0) -> Model:
    return next(itertools.islice(plan(SUBSETS[subset], seed), number, None))


@pytest.mark.parametrize(
    ("subset", "number", "recipe", "split"),
    [("main", 0, MAIN_0, "train"), ("small_cnn", 7, SMALL_CNN_7, "test")],
)
def test_golden_recipes(subset: str, number: int, recipe: Recipe, split: str) -> None:
    found = model(subset, number)
    assert found.recipe == recipe
    assert (found.id, found.number, found.split, found.block) == (f"{subset}-{number:06d}", number, split, 0)


def test_golden_splits() -> None:
    by_seed = {seed: "".join(split_of(f"main-{n:06d}", seed)[:2] for n in range(12)) for seed in (0, 1)}
    assert by_seed == {0: "trvatrtrtrtrtrtrtevatrtr", 1: "trtrtrtetrvatrvatrtrtrtr"}


def test_shares_of_the_splits() -> None:
    splits = [split_of(f"main-{n:06d}", 0) for n in range(20_000)]
    for name, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(splits.count(name) - 20_000 * share) < 4 * (20_000 * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_first_models_do_not_depend_on_how_many_are_taken(subset: str) -> None:
    few, many = select(SUBSETS[subset], 0, models=17), select(SUBSETS[subset], 0, models=200)
    assert few == many[:17]
    on_request = (
        {number for number in range(300) if (number + 1) % len(image_sets_of(SUBSETS[subset])) == 0}
        if SUBSETS[subset].on_request
        else set()
    )
    assert [model.number for model in many] == [n for n in range(300) if n not in on_request][:200]
    assert select(SUBSETS[subset], 0, models=0) == []


def test_beyond_what_is_drawn_at_once() -> None:
    """Models are drawn some thousands at a time; a smaller subset is the beginning of a larger one."""
    small = dataclasses.replace(SUBSETS["main"], num_models=4100)
    assert [m.recipe for m in itertools.islice(plan(SUBSETS["main"], 0), 4090, 4100)] == [
        m.recipe for m in select(small, 0)[4090:]
    ]


def test_subsets_seeds_and_models_differ() -> None:
    rates = [
        model(subset, number, seed).recipe.learning_rate
        for subset in ("main", "fixed")
        for number in (0, 1)
        for seed in (0, 1)
    ]
    assert len(set(rates)) == 8


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, -(2**63)])
def test_any_seed_has_a_plan(seed: int) -> None:
    assert select(SUBSETS["demo"], seed, models=3) != select(SUBSETS["demo"], 0, models=3)


def test_selecting_never_redraws() -> None:
    subset = SUBSETS["main"]
    whole = {m.number: m for m in select(subset, 0, models=200)}
    chosen = select(subset, 0, models=20, datasets=("svhn", "mnist"))
    assert len(chosen) == 20
    assert {m.recipe.dataset for m in chosen} == {"svhn", "mnist"}
    assert all(whole[m.number] == m for m in chosen)
    assert [m.number for m in chosen] == [
        n for n, m in whole.items() if m.recipe.dataset in ("svhn", "mnist")
    ][:20]
    capped = select(subset, 0, models=20, epochs=7)
    assert all(m.recipe == dataclasses.replace(whole[m.number].recipe, max_epochs=7) for m in capped)
    assert all((m.split, m.block) == (whole[m.number].split, whole[m.number].block) for m in capped)
    assert select(subset, 0, models=5, epochs=5000) == select(subset, 0, models=5)


def test_no_shard_is_too_large() -> None:
    """All shards of the largest subsets, none of whose models is ever moved to another."""
    for name, count in (("fixed", 3000), ("main", 4000), ("small_cnn", 20_000)):
        subset, members = SUBSETS[name], dict[str, list[Model]]()
        for m in select(subset, 0, models=count):
            members.setdefault(shard_of(m), []).append(m)
        for path, models in members.items():
            architecture = models[0].recipe.architecture
            value = len(shards.header(architecture)) + 4 * layout_of(architecture).num_weights
            assert len(models) * subset.num_snapshots * value <= SHARD_BYTES == 500_000_000, path
            assert disk_bytes(subset, models) < 1.1 * SHARD_BYTES, path
            assert {(m.split, m.recipe.architecture) for m in models} == {(models[0].split, architecture)}


def test_blocks_are_filled_in_order() -> None:
    subset = SUBSETS["fixed"]
    full = models_per_shard(Architecture(), subset.num_snapshots)
    train = [m for m in select(subset, 0) if m.split == "train"]
    assert len(train) > 3 * full
    assert [m.block for m in train] == [i // full for i in range(len(train))]


def test_a_network_larger_than_a_shard_has_one_of_its_own() -> None:
    assert models_per_shard(Architecture(width_fc=65536), 20) == 1
