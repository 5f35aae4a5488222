"""The three evaluation commands under attack: paths, files of results, methods of one's own.

Each ends in one line and exit code 2.
"""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from nws_dataset import http
from nws_dataset.errors import ZooError
from nws_dataset.evaluation import run
from nws_dataset.evaluation.results import Results
from nws_dataset.evaluation.run import Outcome, Question, Trial
from nws_dataset.evaluation.tasks import Labelled
from nws_dataset.experiments import accuracies, leaderboard, recipes
from nws_dataset.experiments.candidate import Candidate, CandidateModel
from nws_dataset.files import check_output_folder
from nws_dataset.pages import page
from nws_dataset.reading.zoo import Zoo
from test_leaderboard import RECORDS, record, results_of
from testing.zoo_factory import make_zoo

COMMANDS = (recipes.main, accuracies.main, leaderboard.main)
LINE = re.compile(r"Error: .+: expected .+, found .+; .+")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight networks of random weights."""
    return make_zoo(tmp_path_factory.mktemp("zoo") / "nws", models=8, snapshots=1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(http, "PAUSES", (0.01,))  # the Hub's address is closed


def refused(command: Any, *arguments: object) -> str:
    """The line of a command that must refuse, and that prints nothing else."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = result.stderr.splitlines()
    assert result.stdout == "" and LINE.fullmatch(line), line
    return line


def files() -> set[Path]:
    return {path for path in Path().rglob("*") if path.is_file()}


# Paths


@pytest.fixture
def paths(zoo: Path, tmp_path: Path) -> dict[str, str]:
    """Names that no file or folder can have, or that are something else."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    return {
        "missing": "./missing",
        "loop": "./loop",
        "long": "x" * 5000,
        "surrogate": "\ud800",
        "NUL": "a\0b",
        "file": "file",
        "below a file": "file/zoo",
        "two lines": "./two\nlines",
    }


PATHS = ("missing", "loop", "long", "surrogate", "NUL", "file", "below a file", "two lines")


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_zoo(command: Any, name: str, paths: dict[str, str]) -> None:
    line = refused(command, paths[name])
    assert "Hub" not in line or name == "below a file"
    assert files() == {Path("file")}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_folder_is_named(command: Any) -> None:
    assert "no folder zoos/mistyped" in refused(command, "zoos/mistyped")


@pytest.mark.parametrize("name", sorted({*PATHS} - {"missing", "two lines"}))
@pytest.mark.parametrize("command", COMMANDS)
def test_results_that_cannot_be_written(
    command: Any, name: str, zoo: Path, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any work is done."""
    for module, function in (
        (recipes, "evaluate"),
        (accuracies, "trials_of"),
        (leaderboard, "page_of"),
    ):
        monkeypatch.setattr(module, function, lambda *_, **__: pytest.fail("it began"))
    out = paths[name]
    if command is leaderboard.main:
        Path("results.json").write_text(json.dumps(results_of(zoo)))
        out = out if name != "file" else "file/page.html"
        refused(command, zoo, "--out", out, "--results", "results.json")
        Path("results.json").unlink()
    else:
        result = CliRunner().invoke(command, [str(zoo), "--out", out])
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, (
            result.output,
            result.exception,
        )
    assert files() == {Path("file")}


@pytest.mark.parametrize("command", COMMANDS)
def test_folders_that_may_not_be_written_to(command: Any, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("shut").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut")
    out = ("--out", "shut/page.html" if command is leaderboard.main else "shut/results")
    assert "shut, which may not be written to; permit writing" in refused(command, zoo, *out)
    assert not files() and list(Path("shut").iterdir()) == []


@pytest.mark.parametrize("name", PATHS)
def test_results_that_are_not_there(name: str, zoo: Path, paths: dict[str, str]) -> None:
    refused(leaderboard.main, zoo, "--results", paths[name], "--out", "page.html")
    assert files() == {Path("file")}


def test_a_folder_of_results_that_cannot_be_listed(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("results").mkdir()

    def listdir(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", listdir)
    assert "results: expected a folder that can be listed, found PermissionError" in refused(
        leaderboard.main, zoo, "--results", "results", "--out", "page.html"
    )


def test_a_zoo_whose_name_is_no_text(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system holds any bytes; pages and results hold characters."""
    monkeypatch.setattr(
        recipes,
        "evaluate",
        lambda *_, **__: {"results": [], "skipped": {}, "layers": {}, "held_out": "", "seconds": 0},
    )
    named = Path(os.fsdecode(b"z\xff"))
    named.symlink_to(zoo)
    named = Path(os.fsdecode(b"y\xff"))
    os.rename(Path(os.fsdecode(b"z\xff")), named)
    for command, out in (
        (recipes.main, os.fsdecode(b"r\xff")),
        (leaderboard.main, os.fsdecode(b"r\xff/page.html")),
    ):
        Path("results.json").write_text(json.dumps(results_of(zoo)))
        more = ["--results", "results.json"] if command is leaderboard.main else []
        result = CliRunner().invoke(command, [str(named), "--out", out, *more])
        assert result.exit_code == 0, (result.output, result.exception)
        assert r"r\udcff" in result.stdout


# Options


@pytest.mark.parametrize("device", ["bogus", "", "cuda:99", "meta", "\N{SUPERSCRIPT TWO}"])
def test_devices_that_are_not_there(device: str, zoo: Path) -> None:
    assert "expected a device of torch on this machine" in refused(
        recipes.main, zoo, "--device", device, "--jobs", "1"
    )


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        *((accuracies.main, ("--seed", seed)) for seed in ("-1", str(2**32), "1e3", "9" * 5000)),
        *((command, ("--seeds", seeds)) for command in COMMANDS for seeds in ("0", str(2**31), "x")),
        *((recipes.main, ("--properties", names)) for names in ("nothing", "model_id", "a,b", ",")),
        *((recipes.main, ("--experiments", names)) for names in ("why", ",", "\n")),
    ],
)
def test_numbers_and_names_that_are_none(command: Any, arguments: tuple[str, ...], zoo: Path) -> None:
    result = CliRunner().invoke(command, [str(zoo), *arguments])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, (result.output, result.exception)


# Files of results


def wrong_values() -> list[Any]:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    return [
        None,
        True,
        -1,
        0,
        5e-324,
        1e300,
        10**400,
        float("nan"),
        float("inf"),
        "",
        "text",
        "\ud800",
        "\0",
        [],
        [1],
        ["a", "b"],
        {},
        deep,
    ]


FIELDS = sorted({name for one in RECORDS for name in one})


@pytest.fixture(scope="module")
def facts(zoo: Path) -> dict[str, Any]:
    return page.facts_of_page(Zoo(zoo), "nws")


def outcome(facts: dict[str, Any], contents: Any) -> str:
    """Of what the command does with a file of results: the page, or the line that names the file."""
    path = Path("results.json")
    path.write_text(json.dumps(contents))
    try:
        read = Results.read(path)
        leaderboard.check_zoo(facts, read)
        return page.page_of(facts, [read]).encode("utf-8", "backslashreplace").decode()
    except ZooError as error:
        assert LINE.fullmatch(f"Error: {error}")
        return "refused"


@pytest.mark.parametrize("field", FIELDS)
def test_no_value_of_a_record_breaks_the_page(field: str, zoo: Path, facts: dict[str, Any]) -> None:
    """Every value of every field, in a record of each experiment: the page is written, or one line names the
    file.
    """
    ended = set()
    for one in {one["experiment"]: one for one in RECORDS}.values():
        whole = {name: old for name, old in one.items() if name != field}
        changes = [whole, *({**whole, field: value} for value in wrong_values())]
        ended |= {outcome(facts, results_of(zoo, [changed])) == "refused" for changed in changes}
    assert ended == ({False} if field == "pairs" else {False, True})


@pytest.mark.parametrize("name", ["zoo", "command", "settings", "results", "plots", "subsets"])
def test_no_value_of_the_file_breaks_the_page(name: str, zoo: Path, facts: dict[str, Any]) -> None:
    ended = set()
    for value in wrong_values():
        contents = copy.deepcopy(results_of(zoo, RECORDS[:1]))
        (contents["zoo"] if name == "subsets" else contents)[name] = value
        ended.add(outcome(facts, contents) == "refused")
    assert True in ended or name == "plots"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 5000,
        "\ufeff{}",
        '{"results": [' + "[]," * 9 + "[]]}",
        "\x00",
        "NaN",
    ],
)
def test_texts_that_are_no_results(text: str, zoo: Path) -> None:
    Path("results.json").write_text(text)
    assert "results.json: expected" in refused(
        leaderboard.main, zoo, "--results", "results.json", "--out", "page.html"
    )


def test_two_scores_of_one_cell(zoo: Path) -> None:
    records = [record(0.5, dataset="mnist"), record(0.6, dataset="mnist", tested_on="other")]
    Path("results.json").write_text(json.dumps(results_of(zoo, records)))
    assert "expected one score in each cell" in refused(
        leaderboard.main, zoo, "--results", "results.json", "--out", "page.html"
    )


# Methods


def write(name: str, code: str) -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(code))
    return path


MODERN = """
    from __future__ import annotations
    import pickle
    from dataclasses import dataclass, field
    from typing import NamedTuple

    import beside_it
    from beside_them import inner

    class Pair(NamedTuple):
        low: float
        high: float

    @dataclass
    class Modern:
        value: float = 0.25
        kept: list[float] = field(default_factory=list)

        def fit(self, rows, y):
            import lazily
            pickle.loads(pickle.dumps(self))
            self.pair = Pair(inner.SCALE * beside_it.middle(y), lazily.SCALE)

        def predict(self, rows):
            return [self.pair.low] * len(rows)
"""


def test_a_method_is_imported_as_python_would(zoo: Path) -> None:
    """Dataclasses, annotations as texts, pickle, imports from beside the file and late ones; nothing of it
    stays importable.
    """
    write("mine/modern.py", MODERN)
    write("mine/beside_it.py", "def middle(y): return float(sorted(y)[len(y) // 2])")
    write("mine/lazily.py", "SCALE = 1.0")
    write("mine/beside_them/__init__.py", "")
    write("mine/beside_them/inner.py", "SCALE = 1.0")
    before, path = set(sys.modules), list(sys.path)
    result = CliRunner().invoke(
        leaderboard.main,
        [str(zoo), "--method", "mine/modern.py:Modern", "--seeds", "1", "--out", "page.html"],
    )
    assert result.exit_code == 0, result.stderr
    assert sys.path == path and not {"modern", "beside_it", "lazily", "beside_them", "beside_them.inner"} & (
        set(sys.modules) - before
    )


def fitted(candidate: Candidate) -> CandidateModel:
    """A method that learned from three rows."""
    three, none = Labelled(np.arange(3), np.zeros(3)), Labelled(np.empty(0, np.intp), np.empty(0))
    return CandidateModel(candidate, np.zeros((3, 2)), 0).fit(three, none)


def test_methods_of_two_folders_do_not_see_each_other(zoo: Path) -> None:
    for folder, value in (("a", 0.25), ("b", 0.75)):
        write(
            f"{folder}/mine.py",
            f"import helper\nclass {folder.upper()}:\n    def fit(self, rows, y): "
            "pass\n    predict = helper.predict",
        )
        write(f"{folder}/helper.py", f"def predict(self, rows): return [{value}] * len(rows)")
    chosen = [Candidate.load("a/mine.py:A"), Candidate.load("b/mine.py:B")]
    values = [fitted(one).predict(np.arange(3), Question()).tolist() for one in chosen]
    assert values == [[0.25] * 3, [0.75] * 3]
    first = chosen[0].sha256
    write("a/helper.py", "def predict(self, rows): return [0.5] * len(rows)")
    again = Candidate.load("a/mine.py:A")
    assert again.sha256 != first  # what is imported from beside the file belongs to the method
    assert fitted(again).predict(np.arange(3), Question()).tolist() == [0.5] * 3


def test_a_file_named_as_a_library_takes_nothing_from_it(zoo: Path) -> None:
    import sklearn

    write(
        "sklearn.py",
        "class A:\n    def fit(self, rows, y): from sklearn.linear_model import Ridge\n    def "
        "predict(self, rows): pass",
    )
    chosen = Candidate.load("sklearn.py:A")
    fitted(chosen)
    assert sys.modules["sklearn"] is sklearn


FIT = "    def fit(self, rows, y): pass\n"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("class A:\n  def", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("\nraise ValueError('two\\nlines')", "ValueError: two lines in line 2 of bad.py"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def f(): f()\nf()", "RecursionError"),
        ("\0", "null bytes"),
        ("def A(): pass", "none of that name"),
        ("class A:\n    fit = 1\n    predict = 2", "A without fit and predict"),
        ("class A:\n    def __init__(self, width): pass\n" + FIT + "    def predict(self, rows): "
            "pass", "TypeError"),
        ("class A:\n    def fit(self, rows, y): raise KeyError('k')\n    def predict(self, rows): "
            "pass", "'k' in line 2 of bad.py"),
        ("class A:\n    def fit(self): pass\n    def predict(self, rows): pass", "TypeError"),
        ("class A:\n    def fit(self, rows, y): exit()\n    def predict(self, rows): pass", "SystemExit"),
        ("class A:\n" + FIT + "    def predict(self, rows): return 1 / 0", "ZeroDivisionError: division by "
            "zero in line 3 of bad.py"),
        ("class A:\n" + FIT + "    def predict(self, rows): return None", "object of shape ()"),
        ("class A:\n" + FIT + "    def predict(self, rows): return [[1], [2, 3]]", "ValueError"),
        ("class A:\n" + FIT + "    def predict(self, rows): return [1j] * len(rows)", "complex128 of shape"),
        ("class A:\n" + FIT + "    def predict(self, rows): return ['high'] * len(rows)", "of shape"),
        ("class A:\n" + FIT + "    def predict(self, rows): return [[0.5]] * len(rows)", "1)"),
        ("class A:\n" + FIT + "    def predict(self, rows): return [1e300] * len(rows)", "1e+300"),
        ("class A:\n" + FIT + "    def predict(self, rows): return {'a': 1}", "object of shape ()"),
        ("class A:\n" + FIT + "    def predict(self, rows): return iter([])", "object of shape ()"),
    ],
)  # fmt: skip
def test_methods_that_fail(code: str, found: str, zoo: Path) -> None:
    write("bad.py", code)
    before, path = set(sys.modules), list(sys.path)
    assert found in refused(
        leaderboard.main, zoo, "--method", "bad.py:A", "--seeds", "1", "--out", "page.html"
    )
    assert (
        files() == {Path("bad.py")} | set(Path("__pycache__").glob("*"))
        and sys.path == path
        and "bad" not in set(sys.modules) - before
    )


CLASSES = (
    "from sklearn.base import ClassifierMixin\nclass A(ClassifierMixin):\n    def fit(self, rows, "
    "y): self.y = y\n"
)


@pytest.mark.parametrize(
    "predict",
    ["[str(self.y[0]) + 'w'] * len(rows)", "[None] * len(rows)", "[[1]] * len(rows)", "[0.5] * len(rows)"],
)
def test_classes_that_are_none(predict: str, zoo: Path) -> None:
    """Cut to the length of those that are known, "adamw" would count as "adam"."""
    write("bad.py", f"{CLASSES}    def predict(self, rows): return {predict}")
    assert "classes that it was given, found" in refused(
        leaderboard.main, zoo, "--method", "bad.py:A", "--out", "page.html"
    )


def test_a_method_that_changes_its_rows_changes_no_other(zoo: Path) -> None:
    code = """
        class A:
            def fit(self, rows, y):
                for row in rows:
                    row[:] = 7

            def predict(self, rows):
                return [float(any((row == 7).all() for row in rows))] * len(rows)
    """
    write("mine.py", code)
    result = CliRunner().invoke(
        leaderboard.main, [str(zoo), "--method", "mine.py:A", "--seeds", "2", "--out", "page.html"]
    )
    assert result.exit_code == 0, result.stderr
    errors = [
        r["value"]
        for r in json.loads(Path("method_A.json").read_text())["results"]
        if r["metric"] == "mse" and r["nets"] == "all"
    ]
    accuracies = np.asarray(Zoo(zoo).filter(is_final=True)["test_accuracy"], np.float64)
    assert errors == pytest.approx([np.mean(accuracies**2)] * 2)  # zeros were predicted in all folds


@pytest.mark.parametrize("name", [*PATHS, "no colon", "a folder"])
def test_methods_that_are_not_there(name: str, zoo: Path, paths: dict[str, str]) -> None:
    Path("folder.py").mkdir()
    text = {"no colon": "file.py", "a folder": "folder.py:A"}.get(name) or f"{paths[name]}.py:A"
    refused(leaderboard.main, zoo, "--method", text, "--out", "page.html")


def test_two_methods_of_one_name(zoo: Path) -> None:
    for folder in ("a", "b"):
        write(
            f"{folder}/mine.py", "class A:\n" + FIT + "    def predict(self, rows): return [0.5] * len(rows)"
        )
    arguments = ("--method", "a/mine.py:A", "--method", "b/mine.py:A")
    assert "expected classes of different names, found A, A" in refused(
        leaderboard.main, zoo, *arguments, "--out", "page.html"
    )


def test_damaged_results_of_a_method_are_made_again(zoo: Path) -> None:
    write("mine.py", "class A:\n" + FIT + "    def predict(self, rows): return [0.5] * len(rows)")
    arguments = [str(zoo), "--method", "mine.py:A", "--seeds", "1", "--out", "page.html"]
    assert CliRunner().invoke(leaderboard.main, arguments).exit_code == 0
    path = Path("method_A.json")
    whole = path.read_text()
    contents = json.loads(whole)
    damaged = [
        whole[: len(whole) // 2],
        "",
        "1",
        "[]",
        "[" * 100_000,
        json.dumps({**contents, "results": [1]}),
        json.dumps({**contents, "results": "no"}),
    ]
    for text in damaged:
        path.write_text(text)
        result = CliRunner().invoke(leaderboard.main, arguments)
        assert result.exit_code == 0 and path.read_text() == whole, (text[:50], result.exception)
    path.unlink()
    path.mkdir()
    assert "method_A.json: expected a file, or none, found a folder" in refused(leaderboard.main, *arguments)


# Ctrl-C, and what is left


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_before_anything_is_done(command: Any, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for module, name in (
        (Trial, "run"),
        (leaderboard, "facts_of_page"),
    ):
        monkeypatch.setattr(module, name, interrupted)
    Path("results.json").write_text(json.dumps(results_of(zoo)))
    more = (
        ["--results", "results.json", "--out", "page.html"]
        if command is leaderboard.main
        else ["--out", "out"]
    )
    more += ["--jobs", "1"] if command is not leaderboard.main else []
    result = CliRunner().invoke(command, [str(zoo), *more])
    assert result.exit_code == 130 and result.stdout == ""
    assert result.stderr == (
        "interrupted\n" if command is leaderboard.main else "interrupted; nothing was done yet\n"
    )


@pytest.mark.parametrize(
    ("command", "name"), [(recipes.main, "meta_classifier"), (accuracies.main, "predictors")]
)
def test_ctrl_c_says_what_is_kept(
    command: Any, name: str, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Trial] = []

    def interrupted(trial: Trial, advance: Any) -> Outcome:
        if done:
            raise KeyboardInterrupt
        done.append(trial)
        return Outcome([])

    monkeypatch.setattr(Trial, "run", interrupted)
    result = CliRunner().invoke(command, [str(zoo), "--out", "out", "--jobs", "1"])
    assert result.exit_code == 130
    assert result.stderr == (
        f"interrupted; what is done is kept in out/{name}.part: run the same command to go on\n"
    )


def test_workers_never_take_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches all processes of a terminal; each would print a traceback.

    They inherit what is ignored where they are started.
    """
    handlers = [signal.getsignal(signal.SIGINT)]

    def started(calls: Any) -> list[Any]:
        handlers.append(signal.getsignal(signal.SIGINT))
        return []

    monkeypatch.setattr(run.joblib, "Parallel", lambda *_, **__: started)
    assert [*run._done([(0, None), (1, None)], 2, None, print)] == []
    assert handlers[1] is signal.SIG_IGN is not handlers[0] == signal.getsignal(signal.SIGINT)


def test_what_results_are_read(zoo: Path) -> None:
    path = Path("results.json")
    path.write_text(json.dumps(results_of(zoo, [record(None), record(0.5)])))
    assert [one.value for one in Results.read(path).records] == [0.5]
    with pytest.raises(ZooError, match="for value a finite number, found 'high' in record 0"):
        path.write_text(json.dumps(results_of(zoo, [record("high")])))
        Results.read(path)


def test_folders_for_results(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "a" / "b")
    check_output_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []
