"""Kill what writes, at any operation on a file, and check that nothing is lost.

    python scripts/torture.py [--cases N] [--seed S] [--minutes M]

A case runs one of the scenarios in its own process, in which one operation on a file ends in SIGKILL or in a
disk error. Then the scenario runs again without a fault and must leave what an undisturbed run leaves:
folders byte by byte, results without their seconds.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from testing.loopback_hub import LoopbackHub

HUB = LoopbackHub()  # not started until the campaign begins
os.environ.update(HUB.environment())  # huggingface_hub reads it when it is imported

import click  # noqa: E402
import matplotlib  # noqa: E402

matplotlib.use("Agg")

import datasets  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import HfFileSystem  # noqa: E402

from builder import build as build_module  # noqa: E402
from builder import gallery, plan, store  # noqa: E402
from builder.build import build  # noqa: E402
from builder.exporters.exporting import export_zoo  # noqa: E402
from builder.importers.importing import import_zoo  # noqa: E402
from builder.plan import Request  # noqa: E402
from builder.publish import Content, Publisher  # noqa: E402
from builder.trained import Summary  # noqa: E402
from builder.training import workers  # noqa: E402
from nws_dataset.baselines import learners  # noqa: E402
from nws_dataset.console import Command, Table  # noqa: E402
from nws_dataset.errors import ZooError  # noqa: E402
from nws_dataset.evaluation import inputs, scores  # noqa: E402
from nws_dataset.experiments import recipes  # noqa: E402
from nws_dataset.format import shards  # noqa: E402
from nws_dataset.format.schema import METADATA_SCHEMA  # noqa: E402
from nws_dataset.format.subsets import RELEASES  # noqa: E402
from nws_dataset.reading.zoo import Zoo  # noqa: E402
from testing import release_factory  # noqa: E402
from testing.zoo_factory import make_zoo  # noqa: E402

REPOSITORY = "org/zoo"
DEADLINE = 120.0  # seconds that a case may take
MODELS, GROWN = 6, 10  # of the demo preset
ERRORS = ("ENOSPC", "EIO", "EMFILE", "EROFS")
ON_FILES: dict[Any, tuple[str, ...]] = {  # operations whose first argument is a path, a descriptor or a file
    os: (
        "replace",
        "rename",
        "mkdir",
        "unlink",
        "remove",
        "rmdir",
        "utime",
        "open",
        "link",
        "scandir",
        "listdir",
        "fsync",
        "preadv",
    ),
    fcntl: ("flock",),
    pa: ("memory_map",),
}
FAULT, USER_ERROR = 3, 2  # exit codes

Files = dict[str, bytes]  # what a scenario leaves: name -> content


# Faults


@dataclass(frozen=True)
class Fault:
    """What happens at one of a process's operations on files below a folder."""

    number: int  # the operation's number, from 0
    kind: str  # "before" or "after": SIGKILL; else the name of an error
    lasts: bool = False  # whether all later operations fail too

    def __str__(self) -> str:
        return f"{self.kind}{' from' if self.lasts else ' at'} operation {self.number}"


class Faulty:
    """Makes operations on files below a folder fail, in this process only.

    Args:
        folder: the case's folder.
        fault: None only counts the operations.
    """

    def __init__(self, folder: Path, fault: Fault | None) -> None:
        self.folder, self.fault, self.count = os.path.abspath(folder), fault, 0

    def __enter__(self) -> Faulty:
        for module, names in ON_FILES.items():
            for name in names:
                setattr(module, name, self._wrapped(getattr(module, name)))
        builtins.open = io.open = self._opening(io.open)
        for name in ("__init__", "write_table", "close"):  # what Arrow itself writes fails as a whole
            setattr(pq.ParquetWriter, name, self._writing(getattr(pq.ParquetWriter, name)))
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: the process ends with its case."""

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapped(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            return self._do(
                _path_of(path, kwargs.get("dir_fd") or kwargs.get("src_dir_fd")),
                lambda: call(path, *args, **kwargs),
            )

        return wrapped

    def _opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `open`: each `write` to the opened file is an operation too."""
        wrapped_call = self._wrapped(call)

        @functools.wraps(call)
        def wrapped(path: Any, *args: Any, **kwargs: Any) -> Any:
            file, where = wrapped_call(path, *args, **kwargs), _path_of(path)
            if file.writable() and self._is_inside(where):
                write = file.write
                file.write = lambda content: self._do(where, lambda: write(content))
            return file

        return wrapped

    def _writing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapped(writer: Any, *args: Any, **kwargs: Any) -> Any:
            if call.__name__ == "__init__":
                writer.path = _path_of(args[0])
            return self._do(writer.path, lambda: call(writer, *args, **kwargs))

        return wrapped

    def _is_inside(self, where: str) -> bool:
        return f"{where}{os.sep}".startswith(f"{self.folder}{os.sep}")

    def _do(self, where: str, call: Callable[[], Any]) -> Any:
        """Do an operation on a path, or apply the fault that is due there."""
        if not self._is_inside(where):
            return call()
        number, self.count = self.count, self.count + 1
        fault = self.fault
        if fault is None or not (number == fault.number or (fault.lasts and number > fault.number)):
            return call()
        if fault.kind == "after":
            call()
        if fault.kind in ("before", "after"):
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, fault.kind)
        raise OSError(code, os.strerror(code), where)


def _path_of(path: Any, folder: int | None = None) -> str:
    """The path of an open file, a descriptor, or a path (below a folder's descriptor if given)."""
    number = path.fileno() if hasattr(path, "fileno") else path
    if isinstance(number, int):
        return os.readlink(f"/proc/self/fd/{number}")
    text = os.fsdecode(path)
    return os.path.abspath(
        text if folder is None else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
    )


# Scenarios


@dataclass(frozen=True)
class Scenario:
    """Something that writes, and can be run again.

    To test anything else that reads or writes a zoo, add a scenario.
    """

    name: str
    start: Callable[[Path], object]  # prepares the case's folder
    run: Callable[[Path], object]  # what is disturbed
    left: Callable[[Path], Files]  # reads what it left
    disturbed: str = "."  # the folder of the case whose files fail
    may_fail: bool = True  # whether a disk error may end it; else only SIGKILL may


def in_folder(name: str) -> Callable[[Path], Files]:
    """All files of a folder; its folders count as files without content."""

    def left(case: Path) -> Files:
        folder = case / name
        paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
        return {name: path.read_bytes() for name, path in paths.items() if path.is_file()} | {
            f"{name}/": b"" for name, path in paths.items() if path.is_dir()
        }

    return left


class Campaign:
    """The fixtures of all scenarios, made once, undisturbed.

    Args:
        scratch: an empty folder.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        torch.set_num_threads(1)
        datasets.disable_progress_bars()
        self._make_small()
        self.trained = self._train()
        for dataset, models in (("mnist", 5), ("svhn_cropped", 4)):
            release_factory.write_small_cnn(scratch / "small_cnn" / dataset, dataset, models)
        nets = {
            split: {n: release_factory.nws_meta(n) for n in numbers}
            for split, numbers in (("train", (0, 1)), ("test", (4,)))
        }
        release_factory.write_nws(scratch / "nws", "main", nets)
        self.imported = {kind: scratch / f"imported_{kind}" for kind in RELEASES}
        for kind, out in self.imported.items():
            import_zoo(kind, scratch / kind, out)
        self.zoo = make_zoo(scratch / "zoo")
        self.smaller = make_zoo(scratch / "smaller", models=6)
        self.old = scratch / "old"
        self.build(scratch / "old", MODELS)
        self.evaluated = make_zoo(scratch / "evaluated", models=12, snapshots=2)
        scenarios = (
            Scenario(
                "build", lambda case: None, lambda case: self.build(case / "out", MODELS), in_folder("out")
            ),
            Scenario(
                "grow",
                lambda case: shutil.copytree(self.old, case / "out"),
                lambda case: self.build(case / "out", GROWN),
                in_folder("out"),
            ),
            Scenario(
                "import small_cnn",
                lambda case: None,
                lambda case: self.import_("small_cnn", case / "out"),
                in_folder("out"),
            ),
            Scenario(
                "import nws",
                lambda case: None,
                lambda case: self.import_("nws", case / "out"),
                in_folder("out"),
            ),
            Scenario(
                "export small_cnn",
                lambda case: None,
                lambda case: self.export("small_cnn", case / "out"),
                in_folder("out"),
            ),
            Scenario(
                "export nws",
                lambda case: None,
                lambda case: self.export("nws", case / "out"),
                in_folder("out"),
            ),
            Scenario("publish", self._copy_zoo, self.publish, self._on_the_hub),
            Scenario(
                "cache",
                self._put_zoo,
                self.read_from_hub,
                in_folder("read"),
                disturbed="cache",
                may_fail=False,
            ),
            Scenario("meta-classifier", lambda case: None, self.evaluate, self._results),
        )
        self.scenarios = {scenario.name: scenario for scenario in scenarios}

    def _make_small(self) -> None:
        """Use small shards, pictures and networks: only the writing is tested here."""
        plan.SHARD_BYTES = 1_500_000
        gallery.DPI = 8
        scores.RESAMPLES, learners.TREES = 20, 4
        slim = dataclasses.replace(
            inputs.SMALL_SETTINGS,
            epochs=1,
            least_steps=0,
            width=1 / 64,
            slices_per_prediction=2,
            slice_length=500,
        )
        vars(recipes)["SMALL_SETTINGS"] = slim
        for name, replacement in (
            ("compiling", contextlib.nullcontext),
            ("compile_step", lambda *_: None),
            ("run_on_processes", self._run_here),
        ):
            setattr(build_module, name, replacement)

    def _train(self) -> dict[str, tuple[pa.Table, list[bytes]]]:
        """The snapshots of the largest build's models, trained once: a case only stages them."""
        trained = {}

        def run(task: workers.LocalTraining, models: list[plan.Model], *_: object) -> Iterator[Summary]:
            for model in models:
                yield from task.run([model])
                table = pa.Table.from_batches(shards.read_snapshots(store.staged_path(task.out, model)))
                trained[model.id] = table.select(METADATA_SCHEMA.names), table["weights"].to_pylist()

        with mock.patch.object(build_module, "run_on_processes", run):
            build(Request("demo", GROWN, epochs=1), self.scratch / "training", device="cpu")
        return trained

    def _run_here(
        self, training: workers.LocalTraining, models: list[plan.Model], *_: object
    ) -> Iterator[Summary]:
        for model in models:
            file, (metadata, values) = store.staged_path(training.out, model), self.trained[model.id]
            shards.write_snapshots(file, metadata, values, relative=file.name)
            yield Summary(model.id, 1, 0.5, False, 0.1)

    def build(self, out: Path, models: int) -> None:
        build(Request("demo", models, epochs=1), out, device="cpu")
        gallery.draw(out)

    def import_(self, kind: str, out: Path) -> None:
        import_zoo(kind, self.scratch / kind, out)
        gallery.draw(out)

    def export(self, kind: str, out: Path) -> None:
        export_zoo(kind, self.imported[kind], out)

    def _copy_zoo(self, case: Path) -> None:
        HUB.reset()
        shutil.copytree(self.zoo, case / "zoo")

    def publish(self, case: Path) -> None:
        publisher = Publisher(REPOSITORY)
        publisher.prepare(Content.of(case / "zoo"))
        publisher.push(case / "zoo")

    def _on_the_hub(self, case: Path) -> Files:
        commit = HUB.repos[REPOSITORY].at("main") if REPOSITORY in HUB.repos else None
        return (
            {path: file.content for path, file in commit.tree.items() if path != ".gitattributes"}
            if commit
            else {}
        )

    def _put_zoo(self, case: Path) -> None:
        HUB.reset()
        HUB.put(REPOSITORY, self.zoo)

    def read_from_hub(self, case: Path) -> None:
        """Read all weights through a small cache, so that something is always evicted."""
        zoo = Zoo(REPOSITORY, cache_dir=case / "cache", cache_bytes=60_000)
        for _ in range(2):
            digest = hashlib.sha256(b"".join(array.tobytes() for array in zoo.arrays(zoo.filter())))
        (case / "read").mkdir(exist_ok=True)
        Path(case / "read" / "digest").write_text(digest.hexdigest())

    def evaluate(self, case: Path) -> None:
        arguments = [
            "--out",
            str(case / "results"),
            "--experiments",
            "what",
            "--properties",
            "activation,dataset",
            "--seeds",
            "1",
            "--jobs",
            "1",
        ]
        with mock.patch.object(sys, "argv", ["nws-evaluate-meta-classifier"]):
            recipes.main.main([str(self.evaluated), *arguments], standalone_mode=False)

    def _results(self, case: Path) -> Files:
        files = {
            name: content for name, content in in_folder("results")(case).items() if not name.endswith(".tmp")
        }
        return {
            name: _without_seconds(content) if name.endswith(".json") else b""
            for name, content in files.items()
        }

    # One case

    def operations(self, scenario: Scenario, case: Path) -> int:
        """The number of operations on files in an undisturbed run."""
        case.mkdir()
        scenario.start(case)
        ended = self._in_process(scenario, case, None)
        assert ended["code"] == 0, f"{scenario.name} undisturbed: {ended['text']}"
        return int(ended["count"])

    def case(self, scenario: Scenario, fault: Fault, case: Path, expected: Files) -> str:
        """Run a scenario with a fault, then without; return what was wrong, or nothing."""
        case.mkdir()
        scenario.start(case)
        ended = self._in_process(scenario, case, fault)
        if (
            ended["code"] not in ((0, USER_ERROR) if scenario.may_fail else (0,))
            and ended["code"] != -signal.SIGKILL
        ):
            return f"ended with {ended['code']}: {ended['text'][-2000:]}"
        again = self._in_process(scenario, case, None)
        if again["code"] != 0:
            return f"cannot go on ({ended['text'][-300:]}): {again['text'][-2000:]}"
        left = scenario.left(case)
        wrong = sorted(name for name in {*left, *expected} if left.get(name) != expected.get(name))
        return f"differs in {', '.join(wrong[:5])}" if wrong else ""

    def _in_process(self, scenario: Scenario, case: Path, fault: Fault | None) -> dict[str, Any]:
        """Run in a new process: its exit code, output and operations."""
        report = case.with_name(f"{case.name}.report")
        report.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            os._exit(_run(scenario, case, fault, report))
        stop = time.monotonic() + DEADLINE
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > stop:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return {"code": "a timeout", "text": "", "count": 0}
            time.sleep(0.002)
        count, _, text = (
            report.read_text(encoding="utf-8").partition("\n") if report.exists() else ("0", "", "")
        )
        return {"code": os.waitstatus_to_exitcode(status), "text": text, "count": count or 0}


def _run(scenario: Scenario, case: Path, fault: Fault | None, report: Path) -> int:
    """Do what the process of a run does; return its exit code."""
    HfFileSystem.clear_instance_cache()
    output = os.open(report, os.O_RDWR | os.O_CREAT)
    for number in (1, 2):
        os.dup2(output, number)
    code, text, faulty = 0, "", Faulty(case / scenario.disturbed, fault)
    write = os.write
    try:
        with faulty:
            scenario.run(case)
    except (ZooError, click.ClickException) as error:
        code, text = USER_ERROR, error.message if isinstance(error, click.ClickException) else str(error)
        if "\n" in text.strip():
            code = FAULT
    except BaseException:
        code, text = FAULT, traceback.format_exc()
    os.ftruncate(output, 0)
    os.lseek(output, 0, os.SEEK_SET)
    write(output, f"{faulty.count}\n{text}".encode(errors="replace"))
    return code


def _without_seconds(content: bytes) -> bytes:
    """Results without their durations and how they were requested."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: clean(item)
                for key, item in value.items()
                if "seconds" not in key and key not in ("command", "date", "time")
            }
        return [clean(item) for item in value] if isinstance(value, list) else value

    return json.dumps(clean(json.loads(content))).encode()


# Many at once


def four_builders(campaign: Campaign, case: Path, expected: Files) -> str:
    """Run four builds of one folder: one builds, the others report it or wait; return what was wrong."""
    case.mkdir()
    scenario = campaign.scenarios["build"]
    children = []
    for i in range(4):
        child = os.fork()
        if not child:
            os._exit(_run(scenario, case, None, case / f"told{i}"))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    texts = [(case / f"told{i}").read_text().partition("\n")[2] for i in range(4)]
    wrong = [
        text
        for code, text in zip(codes, texts, strict=True)
        if code not in (0, USER_ERROR) or (code and "another one at work" not in text)
    ]
    if wrong or 0 not in codes:
        return f"ended with {codes}: {' | '.join(wrong)[-2000:]}"
    left = scenario.left(case)
    return (
        ""
        if left == expected
        else f"differs in {sorted(n for n in {*left, *expected} if left.get(n) != expected.get(n))[:5]}"
    )


def readers_beside_a_build(
    campaign: Campaign, case: Path, seconds_per_file: float
) -> tuple[str, Counter[str]]:
    """Read a growing zoo with our code and `datasets`; return what was wrong, and counts of what was read."""
    case.mkdir()
    out = Path(shutil.copytree(campaign.old, case / "out"))
    child = os.fork()
    if not child:
        replace = os.replace

        def slow(*args: Any, **kwargs: Any) -> None:
            replace(*args, **kwargs)
            time.sleep(seconds_per_file)

        os.replace = slow
        os._exit(_run(campaign.scenarios["grow"], case, None, case / "told"))
    seen: Counter[str] = Counter()
    wrong = ""
    while not os.waitpid(child, os.WNOHANG)[0] and not wrong:
        wrong = _read_once(out, seen) or _read_stock(out, case / "stock", seen)
    return wrong or _read_once(out, seen) or _read_stock(out, case / "stock", seen), seen


def _read_once(out: Path, seen: Counter[str]) -> str:
    try:
        zoo = Zoo(out, check=True)
        snapshots = zoo.filter()
        zoo.arrays(snapshots)
    except ZooError as error:
        return f"our reader: {error}"
    models = len(set(snapshots["model_id"]))
    seen[f"ours, {models} models"] += 1
    return "" if models in (MODELS, GROWN) else f"our reader: {models} models"


def _read_stock(out: Path, cache: Path, seen: Counter[str]) -> str:
    """Read with `datasets` and a new cache each time; it may end in an error of its own."""
    try:
        loaded = datasets.load_dataset(
            str(out),
            "index",
            cache_dir=str(cache / str(sum(seen.values()))),
            download_mode="force_redownload",
        )
    except Exception:  # any error of its own, as the folder changes meanwhile
        seen["stock, an error"] += 1
        return ""
    snapshots = [
        (snapshot["model_id"], snapshot["snapshot"])
        for part in loaded.values()
        for snapshot in part.select_columns(["model_id", "snapshot"])
    ]
    models = len({model for model, _ in snapshots})
    seen[f"stock, {models} models"] += 1
    return (
        ""
        if models in (MODELS, GROWN) and len(snapshots) == len(set(snapshots))
        else f"stock: {models} models, {len(snapshots)} snapshots, {len(set(snapshots))} different"
    )


# The campaign


def faults_of(scenario: Scenario, operations: int, random_: random.Random) -> Iterator[Fault]:
    """Yield faults without end, at operations spread over the whole run."""
    kinds = itertools.cycle(("before", "after", *ERRORS, *ERRORS))
    while True:
        numbers = list(range(operations))
        random_.shuffle(numbers)
        for number in numbers:
            kind = next(kinds)
            yield Fault(number, kind, lasts=kind in ERRORS and random_.random() < 0.5)


@dataclass
class Outcome:
    """The result of a scenario's cases."""

    cases: int = 0
    kills: int = 0
    errors: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)


def run_campaign(
    campaign: Campaign, cases: int, seed: int, minutes: float, names: list[str], show: Callable[[str], None]
) -> dict[str, Outcome]:
    """Run the cases, alternating between scenarios, until they are done or the time is over."""
    outcomes = {name: Outcome() for name in names}
    expected, faults = {}, {}
    for name in names:
        scenario, folder = campaign.scenarios[name], campaign.scratch / f"undisturbed {name}"
        operations = campaign.operations(scenario, folder)
        expected[name] = scenario.left(folder)
        faults[name] = faults_of(scenario, operations, random.Random(f"{seed} {name}"))
        show(f"{name}: {operations} operations, {len(expected[name])} files")
    start = time.monotonic()
    for number in range(cases):
        spent = time.monotonic() - start
        if spent > 60 * minutes:
            break
        name = names[number % len(names)]
        outcome, fault = outcomes[name], next(faults[name])
        folder = campaign.scratch / "case"
        shutil.rmtree(folder, ignore_errors=True)
        wrong = campaign.case(campaign.scenarios[name], fault, folder, expected[name])
        outcome.cases += 1
        outcome.kills += fault.kind in ("before", "after")
        outcome.errors += fault.kind in ERRORS
        if wrong:
            outcome.failures.append(f"{name}, {fault}: {wrong}")
            show(outcome.failures[-1])
        if number % 50 == 49:
            rate = (number + 1) / (time.monotonic() - start)
            show(
                f"{number + 1} of {cases} cases, {rate:.1f} a second, "
                f"{(cases - number - 1) / rate / 60:.1f} minutes left"
            )
    return outcomes


@click.command(cls=Command)
@click.option(
    "--cases", default=1000, show_default=True, type=click.IntRange(1), help="Number of kills and faults."
)
@click.option("--seed", default=0, show_default=True, type=int, help="Seed that chooses the operations.")
@click.option("--minutes", default=60.0, show_default=True, help="Start no further case after this time.")
@click.option("--scenario", "names", multiple=True, help="Run only this scenario; may be repeated.")
def main(cases: int, seed: int, minutes: float, names: tuple[str, ...]) -> None:
    """Kill what reads or writes a zoo at file operations, or let the disk fail, and run it again."""
    HUB.start()
    with tempfile.TemporaryDirectory() as scratch:
        campaign = Campaign(Path(scratch))
        unknown = [name for name in names if name not in campaign.scenarios]
        if unknown:
            raise ZooError(
                "--scenario",
                expected=f"one of {', '.join(campaign.scenarios)}",
                found=unknown[0],
                do="choose among them",
            )
        outcomes = run_campaign(
            campaign,
            cases,
            seed,
            minutes,
            list(names or campaign.scenarios),
            functools.partial(click.echo, err=True),
        )
        rows = [
            (name, str(o.cases), str(o.kills), str(o.errors), str(o.cases - len(o.failures)))
            for name, o in outcomes.items()
        ]
        Table("Killed and run again", ("", "cases", "kills", "errors", "identical"), rows).print()
        failures = [failure for outcome in outcomes.values() for failure in outcome.failures]
        if not names or "build" in names:
            expected = (
                in_folder("out")(campaign.scratch / "undisturbed build")
                if (campaign.scratch / "undisturbed build").exists()
                else {}
            )
            wrong = four_builders(campaign, campaign.scratch / "four", expected)
            click.echo(f"four builders at once: {wrong or 'identical'}")
            failures += [wrong] if wrong else []
        if not names or "grow" in names:
            for i, pause in enumerate((0.0, 0.02, 0.2)):
                wrong, seen = readers_beside_a_build(campaign, campaign.scratch / f"beside{i}", pause)
                told = ", ".join(f"{count} x {what}" for what, count in sorted(seen.items()))
                click.echo(f"readers beside a growing build: {wrong or 'no wrong byte'} ({told})")
                failures += [wrong] if wrong else []
    HUB.stop()
    for failure in failures:
        click.echo(failure, err=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
