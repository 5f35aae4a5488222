"""The page to look into a zoo: it holds what the zoo does, stays small, and a browser draws and filters."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from nws_dataset import explorer
from nws_dataset.errors import ZooError
from nws_dataset.explorer import command, contents, page, weights
from nws_dataset.explorer.packing import TOP, from_text, quantize, to_text, unpack
from nws_dataset.explorer.picture import write_picture
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo
from nws_dataset.views.statistics import zoo_features
from testing import zoo_factory
from testing.loopback_hub import LoopbackHub
from testing.planned_zoo import make_planned_zoo
from testing.zoo_factory import make_zoo

MAX_BYTES, MAX_CHARTS_BYTES = 5_000_000, 1_200_000
HOSTILE = '</script><img src=x onerror="window.hacked=1">\'"{{7*7}}'


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Zoo]:
    folder = tmp_path_factory.mktemp("zoos")
    make_zoo(folder / "cnn", models=24)
    make_planned_zoo(folder / "siren", "siren", 12)
    make_planned_zoo(folder / "kan", "kan", 6)
    return {path.name: Zoo(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def found(zoos: dict[str, Zoo]) -> dict[str, dict[str, Any]]:
    return {name: page.contents_of(zoo, name) for name, zoo in zoos.items()}


@pytest.fixture(scope="module")
def charts() -> str:
    return page.charts_library()


def named(parts: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (part,) = [part for part in parts if part["name"] == name]
    return part


# What the page holds


def test_numbers_survive() -> None:
    numbers = np.array([[0.125, np.nan], [1e-9, 37.5]])
    linear, log = unpack(quantize(numbers)), unpack(quantize(numbers, "log"))
    np.testing.assert_allclose(linear, numbers, atol=37.5 / TOP)
    np.testing.assert_allclose(log, numbers, rtol=np.log(37.5e9) / TOP)
    assert np.isnan(unpack(quantize(np.full(3, np.nan)))).all()
    assert unpack(quantize(np.array([2.0, 2.0]))).tolist() == [2, 2]


def test_page_holds_the_index(zoos: dict[str, Zoo], found: dict[str, dict[str, Any]], charts: str) -> None:
    html = page.page_of(found["cnn"], charts)
    held = from_text(re.search(r'id="data">([^<]*)<', html)[1])
    final = zoos["cnn"].filter(is_final=True)
    assert held["ids"] == final["model_id"].tolist()
    optimizer = named(held["fields"], "dataset")
    codes = unpack(optimizer["codes"])
    assert [optimizer["values"][code] for code in codes] == final["dataset"].tolist()
    rates = unpack(named(held["fields"], "learning_rate")["numbers"])
    np.testing.assert_allclose(rates, final["learning_rate"], rtol=1e-6)
    accuracies = unpack(named(held["metrics"], "test_accuracy")["codes"])
    for model, identifier in enumerate(held["ids"]):
        own = zoos["cnn"].filter(model_id=identifier)
        ordered = own["test_accuracy"][np.argsort(own["snapshot"])]
        np.testing.assert_allclose(accuracies[model], ordered, atol=1 / TOP)
    shared = {entry["name"]: entry["value"] for entry in held["same"]}
    assert shared["optimizer"] == "adam" and "optimizer" not in [field["name"] for field in held["fields"]]


def test_ranges_say_what_is_missing(zoos: dict[str, Zoo], found: dict[str, dict[str, Any]]) -> None:
    losses = unpack(named(found["cnn"]["metrics"], "validation_loss")["codes"])
    missing = np.isnan(zoos["cnn"].filter(is_final=True)["validation_loss"])
    assert missing.any() and (np.isnan(losses).all(1) == missing).all()


def test_principal_components(zoos: dict[str, Zoo], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LEAST_MODELS", 10)
    zoo = zoos["cnn"]
    shown = contents.Shown.of(zoo)
    components = weights.components_of(zoo, shown, np.arange(len(shown)), lambda _: None)
    for fit in components["weights"]["architectures"]:
        own = shown.final["architecture"] == fit["architecture"]
        rows = zoo.weights(shown.final[own])
        expected = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
        projected = unpack(components["weights"]["coordinates"])[:, own]
        np.testing.assert_allclose(np.linalg.norm(projected, axis=1), expected[1][:2], rtol=1e-3)
        np.testing.assert_allclose(
            fit["shares"], (expected[1] ** 2)[:2] / (expected[1] ** 2).sum(), rtol=1e-3
        )
    assert len(components["weights"]["architectures"]) == 2
    values, names = zoo_features(zoo, shown.final, "layers")
    common = values[:, ~np.isnan(values).any(0)]
    assert 0 < common.shape[1] < len(names)  # the architectures differ
    assert components["statistics"]["features"] == common.shape[1] + 7  # and those of the whole row
    assert components["statistics"]["models"] == len(shown)


def test_diverged_networks_do_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LEAST_MODELS", 3)
    plain = zoo_factory.make_metadata
    lost = {0: 1e30}  # model -> its weights

    def with_diverged(recipe: Any, *, number: int, **names: Any) -> dict[str, Any]:
        made = plain(recipe, number=number, **names)
        return {**made, "diverged": number in lost, "train_loss": 1e300 if number in lost else 1.0}

    monkeypatch.setattr(zoo_factory, "make_metadata", with_diverged)
    zoo = Zoo(make_zoo(tmp_path / "nws"))
    rows = zoo.weights

    def large(snapshots: Any) -> np.ndarray:
        found = rows(snapshots)
        return np.where(snapshots["diverged"][:, None], np.float32(lost[0]), 1) * found

    monkeypatch.setattr(zoo, "weights", large)
    held = page.contents_of(zoo, "nws")
    projected = unpack(held["weights"]["coordinates"])
    own = zoo.filter(is_final=True)["diverged"]
    assert own.sum() == 1 and np.isfinite(projected).all()
    assert any("diverged" in note for note in held["notes"])
    assert len(np.unique(projected[:, ~own])) > 10 and np.abs(projected).max() < 100
    assert all(0 < share < 1 for fit in held["weights"]["architectures"] for share in fit["shares"])
    assert all(fit["fitted"] in (4, 5) for fit in held["weights"]["architectures"])
    assert unpack(named(held["metrics"], "train_loss")["codes"]).max() < 1e39
    from_text(to_text(held))


def test_one_model_is_enough(chromium: Any, charts: str, tmp_path: Path) -> None:
    held = page.contents_of(Zoo(make_zoo(tmp_path / "nws", models=1, snapshots=1)), "nws")
    assert held["statistics"] is None and not held["weights"]["architectures"]
    file = tmp_path / "page.html"
    file.write_text(page.page_of(held, charts), encoding="utf-8")
    tab = Tab(chromium, file)
    assert tab.drawn() == 1
    tab.close()


def test_histograms(zoos: dict[str, Zoo], found: dict[str, dict[str, Any]]) -> None:
    zoo, shown = zoos["cnn"], contents.Shown.of(zoos["cnn"])
    assert sum(len(unpack(part["models"])) for part in found["cnn"]["histograms"]) == len(shown)
    for part in found["cnn"]["histograms"]:
        model, place = unpack(part["models"])[0], unpack(part["snapshots"])[0, -1]
        snapshot = shown.lines[int(shown.at[model, place])]
        assert snapshot["is_final"]
        spec = zoo.layout(snapshot)[part["tensors"][0]]
        values = zoo.row(snapshot)[spec.offset : spec.stop]
        counts = np.histogram(values, weights.BINS, tuple(unpack(part["ranges"])[0, 0]))[0]
        shares = unpack(part["counts"])[0, 0, -1] / unpack(part["counts"])[0, 0].max()
        assert counts.sum() > 0.9 * len(values)
        highest = counts.max() / shares.max()
        np.testing.assert_allclose(shares * highest, counts, atol=1.01)  # rounding; a number on a bin's edge


def test_images_and_edges(zoos: dict[str, Zoo], found: dict[str, dict[str, Any]]) -> None:
    zoo, shown = zoos["siren"], contents.Shown.of(zoos["siren"])
    for part in found["siren"]["images"]:
        final = shown.final[unpack(part["models"]).astype(int)]
        assert (unpack(part["pixels"])[:, -1] == zoo.images(final)).all()
    zoo, shown = zoos["kan"], contents.Shown.of(zoos["kan"])
    shares = unpack(named(found["kan"]["fields"], "kept_edges")["numbers"])
    for part in found["kan"]["edges"]:
        models = unpack(part["models"]).astype(int)
        kept = (
            zoo.edge_scores(shown.final[models])
            >= shown.final["edge_threshold"][models].astype(float)[:, None]
        )
        assert (np.unpackbits(unpack(part["kept"]), axis=1)[:, : kept.shape[1]] == kept).all()
        np.testing.assert_allclose(shares[models], kept.mean(1), rtol=1e-6)
        assert sum(outputs * inputs for _, outputs, inputs in part["layers"]) == kept.shape[1]
    assert found["siren"]["images"] and found["kan"]["edges"]


def test_details_have_their_room(zoos: dict[str, Zoo], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PIXELS", 5 * 3 * 32 * 32 * 9)
    monkeypatch.setattr(weights, "HISTOGRAM_VALUES", 3 * 5 * weights.BINS * 7)
    held = page.contents_of(zoos["siren"], "siren")
    shapes = [part["pixels"]["shape"] for part in held["images"]]
    assert 1 < sum(shape[0] for shape in shapes) < 12 and sum(map(math.prod, shapes)) <= weights.PIXELS
    assert [part["snapshots"]["shape"] for part in held["images"]] == [shape[:2] for shape in shapes]
    shapes = [part["counts"]["shape"] for part in held["histograms"]]
    assert (
        1 < sum(shape[0] for shape in shapes) <= 7 and sum(map(math.prod, shapes)) <= weights.HISTOGRAM_VALUES
    )


def test_samples_are_told(zoos: dict[str, Zoo], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_MODELS", 10)
    monkeypatch.setattr(contents, "MAX_CURVE_VALUES", 10 * 8 * 2)
    monkeypatch.setattr(weights, "SAMPLED_MODELS", 4)
    held = page.contents_of(zoos["cnn"], "cnn")
    notes = " ".join(held["notes"])
    assert len(held["ids"]) == held["shown"] == 10 and "sample of 10 of the zoo's 24 models" in notes
    assert "Of up to 3 snapshots of a model, 2 are shown" in notes
    assert "a random sample of 4 models" in notes
    metric = unpack(named(held["metrics"], "test_accuracy")["codes"])
    final = {line["model_id"]: line["test_accuracy"] for line in zoos["cnn"].filter(is_final=True)}
    np.testing.assert_allclose(metric[:, -1], [final[name] for name in held["ids"]], atol=1 / TOP)


class IndexAlone:
    """An index in memory in place of a zoo."""

    def __init__(self, zoo: Zoo, table: pa.Table) -> None:
        self.name, self.manifest, self.table = "nws", zoo.manifest, table

    def filter(self, **conditions: Any) -> Snapshots:
        return Snapshots(self.table).filter(**conditions)


def test_large_zoo_stays_small(tmp_path: Path, charts: str) -> None:
    zoo = Zoo(make_zoo(tmp_path / "nws", models=40, snapshots=9))
    copies, random = contents.MAX_MODELS // 40 + 1, np.random.default_rng(0)
    table = pa.concat_tables([zoo.index] * copies).combine_chunks()
    count = len(zoo.index)
    names = [f"{name}-{i // count:05d}" for i, name in enumerate(table["model_id"].to_pylist())]
    table = table.set_column(0, "model_id", [names])
    for i, field in enumerate(table.schema):
        if field.type == pa.float64() and table[field.name].null_count == 0:
            table = table.set_column(i, field, pa.array(random.random(len(table))))
    held = page.contents_of(IndexAlone(zoo, table), "large", read_weights=False)  # type: ignore[arg-type]
    assert len(charts) <= MAX_CHARTS_BYTES and held["shown"] == contents.MAX_MODELS < held["models"]
    assert len([field for field in held["fields"] if "numbers" in field]) > 10  # more than any zoo has
    of_weights = 4 / 3 * (4 * 2 * contents.MAX_MODELS + weights.HISTOGRAM_VALUES + weights.PIXELS)
    assert len(page.page_of(held, charts)) + of_weights < MAX_BYTES
    assert any("No weights were read" in note for note in held["notes"])


@pytest.mark.parametrize("column", ["snapshot", "num_snapshots", "is_final"])
def test_contradictions_are_refused(zoos: dict[str, Zoo], column: str) -> None:
    table = zoos["cnn"].index
    i, values = table.schema.get_field_index(column), table[column].to_pylist()
    if column == "is_final":
        values[0] = True
    else:
        values = [10**12] * len(values)
    changed = table.set_column(i, table.schema.field(i), [values])
    with pytest.raises(ZooError, match="expected snapshots 1 to num_snapshots"):
        contents.Shown.of(IndexAlone(zoos["cnn"], changed))  # type: ignore[arg-type]
    with pytest.raises(ZooError, match="expected a zoo with models, found none"):
        contents.Shown.of(IndexAlone(zoos["cnn"], table[:0]))  # type: ignore[arg-type]


# The command


def test_command(zoos: dict[str, Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "charts_library", lambda: "window.vegaEmbed = null")
    folder = shutil.copytree(zoos["cnn"].path, tmp_path / "nws")
    run = CliRunner().invoke(command.main, [str(folder), "--picture", str(tmp_path / "still.png")])
    assert run.exit_code == 0, run.output
    assert "Written:" in run.output and (tmp_path / "nws-explorer.html").stat().st_size > 10_000
    assert (tmp_path / "still.png").read_bytes().startswith(b"\x89PNG")
    out = tmp_path / "new" / "page.html"
    run = CliRunner().invoke(command.main, [str(folder), "--out", str(out), "--no-weights"])
    assert run.exit_code == 0 and "No weights were read" in str(
        from_text(re.search(r'id="data">([^<]*)<', out.read_text())[1])["notes"]
    )


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> str:
        run = CliRunner().invoke(command.main, [str(argument) for argument in arguments])
        assert run.exit_code == 2 and run.output.count("\n") == 1
        return run.output

    (tmp_path / "file").write_text("")
    assert "expected a file, or none" not in fails(tmp_path / "missing")
    for option in ("--out", "--picture"):
        below = tmp_path / "file" / "page.html"
        told = fails(tmp_path, option, below)
        assert "expected a folder to write to, found a file" in told and f"another place ({option})" in told
    (tmp_path / "loop").symlink_to("loop")
    assert "loop: expected the folder of a zoo" in fails(tmp_path / "loop")
    monkeypatch.setattr(explorer, "NEEDS", ("no_such_module",))
    assert "pip install 'nws-dataset[explore]'" in fails(tmp_path)


def test_a_zoo_on_the_hub(
    hub: LoopbackHub, zoos: dict[str, Zoo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page goes to the current folder; without weights none is fetched, and the index is all there."""
    monkeypatch.setattr(page, "charts_library", lambda: "window.vegaEmbed = null")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", tmp_path / "cache")
    hub.put("org/cnn", Path(zoos["cnn"].path))
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(command.main, ["org/cnn", "--no-weights", "--revision", "main"])
    assert run.exit_code == 0, run.output
    assert not [request for request in hub.requests if "/snapshots/" in request.path]
    held = from_text(re.search(r'id="data">([^<]*)<', (tmp_path / "cnn-explorer.html").read_text())[1])
    local = page.contents_of(zoos["cnn"], held["name"], read_weights=False)
    assert held["models"] == 24 and to_text(held) == to_text(local)


def test_still_pictures(found: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    for name, held in found.items():
        write_picture(held, tmp_path / f"{name}.png")
        write_picture(held, tmp_path / "again.png")
        assert (tmp_path / f"{name}.png").read_bytes() == (tmp_path / "again.png").read_bytes()


# In a browser


class Tab:
    """A page in a browser, what it asked for and what went wrong."""

    def __init__(
        self, browser: Any, file: Path, width: int = 1280, scheme: str = "light", **how: Any
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **how
        )
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message) or dialog.dismiss())
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("body[data-state=ready]", timeout=60_000)
        self.file = file

    def drawn(self) -> int:
        return int(self.page.get_attribute("#points", "data-drawn"))

    def close(self) -> None:
        """Check what holds for every page, then close it."""
        self.page.wait_for_timeout(400)  # charts that were asked for last
        assert not self.wrong
        assert self.requests == [self.file.as_uri()]
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        self.context.close()


@pytest.fixture(scope="module")
def pages(
    found: dict[str, dict[str, Any]], charts: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, held in found.items():
        (folder / f"{name}.html").write_text(page.page_of(held, charts), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in found}


def brightness(tab: Tab) -> float:
    """Of what is drawn behind the text, 0 to 255."""
    colour = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    return float(np.mean([int(number) for number in re.findall(r"\d+", colour)]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_filters_in_a_browser(
    chromium: Any, zoos: dict[str, Zoo], pages: dict[str, Path], width: int, scheme: str
) -> None:
    tab = Tab(chromium, pages["cnn"], width, scheme)
    final = zoos["cnn"].filter(is_final=True)
    assert tab.drawn() == len(final)
    pixels = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((byte) => byte)"
    assert tab.page.eval_on_selector("#points", pixels)
    assert (brightness(tab) < 60) == (scheme == "dark")
    tab.page.click("#theme")
    assert (brightness(tab) < 60) == (scheme == "light")
    if width == 420:
        tab.page.click("#filters > summary")
    tab.page.evaluate("document.querySelector('[data-field=dataset]').open = true")
    tab.page.check("[data-field=dataset] label:has-text('svhn') input")
    assert tab.drawn() == len(final.filter(dataset="svhn"))
    tab.page.evaluate("document.querySelector('[data-field=learning_rate]').open = true")
    highest = tab.page.locator("[data-field=learning_rate] input").nth(1)
    highest.focus()
    highest.press("Home")  # the lowest value
    lowest = final["learning_rate"].min()
    assert tab.drawn() == len(final.filter(dataset="svhn", learning_rate=lambda rate: rate <= lowest))
    tab.page.locator("#curves-words:has-text('no model is shown')").wait_for()
    tab.page.click("#reset")
    assert tab.drawn() == len(final)
    tab.close()


@pytest.mark.parametrize(("kind", "width", "scheme"), [("siren", 420, "dark"), ("kan", 1280, "light")])
def test_kinds_in_a_browser(
    chromium: Any, zoos: dict[str, Zoo], pages: dict[str, Path], kind: str, width: int, scheme: str
) -> None:
    tab = Tab(chromium, pages[kind], width, scheme)
    assert tab.drawn() == len(zoos[kind].filter(is_final=True))
    drawn = "#wall canvas" if kind == "siren" else "#edges canvas"
    assert tab.page.locator(drawn).count() == (12 if kind == "siren" else 2)
    assert tab.page.locator("#histograms canvas").count() == 1
    for axis in ("x", "y", "colour"):
        for value in tab.page.eval_on_selector_all(f"#{axis} option", "all => all.map((one) => one.value)"):
            tab.page.select_option(f"#{axis}", value)
    tab.page.wait_for_timeout(500)
    tab.close()


def test_choosing_in_a_browser(chromium: Any, zoos: dict[str, Zoo], pages: dict[str, Path]) -> None:
    tab = Tab(chromium, pages["cnn"])
    tab.page.click("#all")
    assert "24 chosen" in tab.page.inner_text("#count")
    tab.page.focus("#points")
    tab.page.keyboard.press("Escape")
    assert "chosen" not in tab.page.inner_text("#count")
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("Enter")
    chosen = tab.page.inner_text("#model-id")
    (snapshot,) = zoos["cnn"].filter(model_id=chosen, is_final=True)
    assert snapshot["architecture"] in tab.page.inner_text("#recipe")
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("Shift+Enter")
    assert "2 chosen" in tab.page.inner_text("#count")
    box = tab.page.locator("#points").bounding_box()
    tab.page.mouse.move(box["x"] + 1, box["y"] + 1)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] - 1)
    tab.page.mouse.up()
    assert "24 chosen" in tab.page.inner_text("#count")
    tab.page.click("#next")
    assert tab.page.inner_text("#which") == "2 of 24"
    tab.close()


def test_touch_in_a_browser(chromium: Any, pages: dict[str, Path]) -> None:
    tab = Tab(chromium, pages["cnn"], 420, has_touch=True, is_mobile=True)
    for axis in ("x", "y"):
        tab.page.select_option(f"#{axis}", "test_accuracy")
    tab.page.wait_for_timeout(300)
    box = tab.page.locator("#points").bounding_box()
    for share in (0.02, 0.98):  # on a diagonal, the lowest and the highest
        tab.page.touchscreen.tap(box["x"] + share * box["width"], box["y"] + (1 - share) * box["height"])
    assert "2 chosen" in tab.page.inner_text("#count")
    tab.close()


def test_hostile_zoo(chromium: Any, charts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = zoo_factory.make_metadata

    def hostile(recipe: Any, **names: Any) -> dict[str, Any]:
        made = plain(recipe, **names)
        return {
            **made,
            "model_id": f"{HOSTILE}{made['model_number']}",
            **dict.fromkeys(("architecture", "dataset", "optimizer", "activation"), HOSTILE),
            "initialization": f"{HOSTILE}{made['model_number']}",
        }

    monkeypatch.setattr(zoo_factory, "make_metadata", hostile)
    zoo = Zoo(make_zoo(tmp_path / "nws"))
    file = tmp_path / "page.html"
    file.write_text(page.page_of(page.contents_of(zoo, HOSTILE), charts), encoding="utf-8")
    tab = Tab(chromium, file)
    tab.page.click("#all")
    for axis in ("x", "y", "colour"):
        tab.page.select_option(f"#{axis}", "initialization")
    tab.page.wait_for_timeout(500)
    assert tab.page.inner_text("#model-id").startswith(HOSTILE)
    assert tab.page.inner_text("#name") == HOSTILE
    assert tab.page.evaluate("window.hacked") is None and tab.page.locator("img").count() == 0
    tab.close()


@pytest.mark.site
@pytest.mark.parametrize("kind", ["cnn", "siren", "kan"])
def test_accessible(axe: str, chromium: Any, pages: dict[str, Path], kind: str) -> None:
    for width, scheme in ((1280, "light"), (420, "dark")):
        tab = Tab(chromium, pages[kind], width, scheme)
        tab.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        tab.page.click("#all")
        tab.page.evaluate(axe)
        assert (
            tab.page.evaluate("axe.run({preload: false}).then((run) => run.violations.map((one) => one.id))")
            == []
        )
        tab.close()
