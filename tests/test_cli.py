"""`nws`: commands that are loaded when they are called, the same options everywhere, and what a zoo holds."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

import generated
from builder import gallery
from builder.cli import main as nws_build
from builder.store import lock_folder
from nws_dataset import __version__, info
from nws_dataset.cli import COMMANDS, Entry, main
from nws_dataset.console import Command
from nws_dataset.experiments import commands
from nws_dataset.format.manifest import STAGING, Manifest
from nws_dataset.reading.snapshots import Snapshots
from nws_dataset.reading.zoo import Zoo
from test_publish import REPO, on_the_hub, published, sent
from testing.loopback_hub import LoopbackHub
from testing.release_factory import write_small_cnn
from testing.zoo_factory import make_zoo, use_copy, write_manifest

ROOT = Path(__file__).parent.parent
# what the installation for reading lacks, by the names of import
LACKING = ("torch", "rich", "jinja2", "joblib", "lightgbm", "matplotlib", "pandas", "sklearn", "scipy")
LACKING += ("numba", "PIL", "ray", "triton")
HEAVY = (*LACKING, "numpy", "pyarrow", "huggingface_hub", "datasets", "builder")
TARGETS = {name: Entry(target, "", "") for name, target in generated.COMMANDS.items() if name != "nws"}


def run(*arguments: object, color: bool = False, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, list(map(str, arguments)), prog_name="nws", color=color)


def refused(*arguments: object) -> str:
    """Run a command that must be refused; returns its line."""
    result = run(*arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    (line,) = result.output.splitlines()
    return line


def in_process(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `nws` in a process of its own, before and after some code."""
    start = f"import sys\n{code}"
    command = [sys.executable, "-c", start, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


WITHOUT_EXTRAS = f"""
for name in {LACKING}:
    sys.modules[name] = None
from nws_dataset.cli import main
main(prog_name="nws")
"""
NOTHING_HEAVY = f"""
from nws_dataset.cli import main
try:
    main(prog_name="nws")
finally:
    assert not {{*{HEAVY}}} & {{*sys.modules}}, {{*{HEAVY}}} & {{*sys.modules}}
"""
COMPLETE = {"_NWS_COMPLETE": "bash_complete", "COMP_CWORD": "1"}


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    return make_zoo(tmp_path / "zoo")


# The group


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_each_command_says(name: str) -> None:
    entry = COMMANDS[name]
    command = entry.load()
    assert isinstance(command, Command)
    assert f"{generated._sentence(command.help or '')}." == entry.help
    extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    assert entry.extra == "" or f"\n{entry.extra} = [" in extras


def test_help_lists_the_commands() -> None:
    shown = run("--help").stdout
    assert all(f" {name} {entry.help}" in " ".join(shown.split()) for name, entry in COMMANDS.items())
    assert shown == run("-h").stdout == run().stdout
    assert run("--version").stdout == f"nws {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["no-such-command"]])
def test_the_group_imports_nothing_heavy(arguments: list[str]) -> None:
    done = in_process(NOTHING_HEAVY, *arguments)
    assert done.returncode == (2 if arguments == ["no-such-command"] else 0), done.stderr


def test_completion_of_a_command_imports_nothing_heavy() -> None:
    done = in_process(NOTHING_HEAVY, **COMPLETE, COMP_WORDS="nws in")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "plain,info\n"


def test_completion_of_options() -> None:
    words = {**COMPLETE, "COMP_CWORD": "2"}
    assert "plain,--revision\n" in in_process(WITHOUT_EXTRAS, **words, COMP_WORDS="nws info --rev").stdout
    assert in_process(WITHOUT_EXTRAS, **words, COMP_WORDS="nws build --pres").stdout == "plain,--preset\n"
    words["COMP_CWORD"] = "3"
    done = in_process(WITHOUT_EXTRAS, **words, COMP_WORDS="nws build --preset sm")
    assert done.stdout == "plain,small_cnn\n"
    nothing = in_process(WITHOUT_EXTRAS, **words, COMP_WORDS="nws evaluate zoo --ou")  # it needs an extra
    assert (nothing.returncode, nothing.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_help_says_how_to_turn_completion_on(shell: str) -> None:
    assert f"_NWS_COMPLETE={shell}_source nws" in run("--help").stdout
    if shell != "bash":  # click asks an installed bash for its version
        assert "_NWS_COMPLETE" in in_process(NOTHING_HEAVY, _NWS_COMPLETE=f"{shell}_source").stdout


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["build", "--out", "{tmp}/new"], "builder"),
        (["build", "--dry-run"], "builder"),
        (["import", "small_cnn", "{tmp}/release", "--out", "{tmp}/new"], "builder"),
        (["publish", "{tmp}/zoo", "--repo-id", REPO], "builder"),
        (["verify", "{tmp}/zoo"], "builder"),
        (["evaluate", "{tmp}/zoo"], "baselines"),
        (["leaderboard", "{tmp}/zoo"], "baselines"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(
    arguments: list[str], extra: str, tmp_path: Path, zoo: Path
) -> None:
    write_small_cnn(tmp_path / "release" / "mnist", "mnist", models=1)
    done = in_process(WITHOUT_EXTRAS, *[word.format(tmp=tmp_path) for word in arguments])
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: nws {arguments[0]}: expected the package ")
    assert line.endswith(f", found none; pip install 'nws-dataset[{extra}]'")
    assert not (tmp_path / "new").exists()


def test_a_missing_module_of_ours_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "builder.commands", None)
    assert isinstance(run("build").exception, ModuleNotFoundError)


def test_an_unknown_command() -> None:
    names = ", ".join(COMMANDS)
    assert refused("biuld") == f"Error: nws: expected one of {names}, found 'biuld'; did you mean build?"
    assert refused("xyzzy").endswith("found 'xyzzy'; see nws --help")
    assert refused("--bogus").startswith("Error: No such option")


# Options


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(name: str, option: str) -> None:
    result = CliRunner().invoke(TARGETS[name].load(), [option], prog_name=name)
    assert result.exit_code == 0 and result.stdout.startswith(f"Usage: {name} ")


def test_an_option_is_the_same_in_every_command() -> None:
    forms: dict[str, set[str]] = defaultdict(set)
    for entry in TARGETS.values():
        for parameter in entry.load().params:
            if isinstance(parameter, click.Option):
                forms[parameter.opts[0]].add(parameter.metavar or str(parameter.type))
    different = {option: found for option, found in forms.items() if len(found) > 1}
    allowed = {
        "--out",  # of the leaderboard, a file
        "--revision",  # a branch to push to, or any revision to read
        "--device",  # what trains here, or what PyTorch knows
        "--method",
    }
    assert different.keys() <= allowed, different


READERS = {name: () for name in ("info", "explore", "evaluate", "leaderboard")} | {"export": ("out",)}


@pytest.mark.parametrize("name", [*READERS, "nws-evaluate-predictors", "nws-evaluate-meta-classifier"])
def test_a_revision_of_a_zoo_is_named_in_the_same_way_everywhere(
    name: str, hub: LoopbackHub, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.put(REPO, zoo)
    layout = ["small_cnn"] if name == "export" else []
    for which, found in ((REPO, f"{REPO}@no-such"), (zoo, f"{zoo}: expected no revision for a folder")):
        arguments = [*layout, str(which), *READERS.get(name, ()), "--revision", "no-such"]
        if name in READERS:
            line = refused(name, *arguments)
        else:
            line = CliRunner().invoke(TARGETS[name].load(), arguments).output
        assert line.startswith(f"Error: {found}")


def test_nws_build_has_the_options_of_its_parts() -> None:
    def options(command: click.Command) -> set[str]:
        return {name for option in command.params for name in option.opts if name.startswith("-")}

    parts = [COMMANDS[name].load() for name in ("build", "import", "export")]
    assert options(nws_build) == {"--import", "--export"}.union(*map(options, parts))


def test_results_name_the_command_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @click.command(cls=Command)
    @click.argument("zoo")
    @commands.seeds_option("")
    def probe(zoo: str, seeds: int) -> None:
        click.echo(commands.command_line())

    monkeypatch.setattr(commands, "probe", probe, raising=False)
    monkeypatch.setitem(COMMANDS, "evaluate", Entry(f"{commands.__name__}:probe", "", ""))
    assert run("evaluate", tmp_path, "--seeds", 2).stdout == f"nws evaluate {tmp_path.name} --seeds 2\n"
    assert CliRunner().invoke(probe, ["org/zoo"], prog_name="nws-evaluate").stdout == "nws-evaluate org/zoo\n"


# Making a zoo, and passing it on


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_import_and_export_do_what_the_flags_of_nws_build_do(tmp_path: Path) -> None:
    release, imported = tmp_path / "release", tmp_path / "imported"
    write_small_cnn(release / "mnist", "mnist", models=3)
    told = run("import", "small_cnn", release, "--models", 2, "--out", imported).stdout
    assert told.startswith("small_cnn_2020: 2 models, 2 of them imported now\n")
    assert told.endswith(f"{imported} is complete: datasets.load_dataset({str(imported)!r})\n")
    flags = ["--import", "small_cnn", release, "--models", 2, "--out", tmp_path / "by-flags"]
    CliRunner().invoke(nws_build, list(map(str, flags)), catch_exceptions=False)
    assert files_of(imported) == files_of(tmp_path / "by-flags")

    options = ["--subsets", "small_cnn_2020", "--final-step", 86]
    told = run("export", "small_cnn", imported, tmp_path / "exported", *options).stdout
    assert "2 models of small_cnn_2020 in the Small CNN Zoo's layout" in told
    flags = ["--export", "small_cnn", imported, tmp_path / "exported-by-flags", "--subset", *options[1:]]
    CliRunner().invoke(nws_build, list(map(str, flags)), catch_exceptions=False)
    assert files_of(tmp_path / "exported") == files_of(tmp_path / "exported-by-flags")


def test_import_refuses_a_release_that_is_not_there(tmp_path: Path) -> None:
    line = refused("import", "nws", tmp_path / "nowhere", "--out", tmp_path / "new")
    assert "expected the folder of a release, found nothing; correct the path" in line
    assert not (tmp_path / "new").exists()


@pytest.fixture
def own_client_of_the_hub() -> object:
    yield
    set_client_factory(default_client_factory)


def test_publish(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_client_of_the_hub: object
) -> None:
    """What is on the Hub is what is in the folder, whose stale plots were drawn while it was locked."""
    zoo, seen = tmp_path / "zoo", []
    make_zoo(zoo)

    def draw(folder: Path) -> None:
        seen.append((folder / STAGING / "lock").exists())
        (folder / "plots").mkdir(exist_ok=True)
        (folder / "plots" / "accuracy.png").write_bytes(b"a plot")

    monkeypatch.setattr(gallery, "draw", draw)
    result = run("publish", zoo, "--repo-id", REPO, "--private", "--revision", "work", "--tag", "v1")
    assert result.exit_code == 0, result.output
    load = f"datasets.load_dataset('{REPO}', revision='v1')"
    assert result.stdout == f"{hub.url}/datasets/{REPO}/tree/v1 is complete: {load}\n"
    assert on_the_hub(hub, "v1") == on_the_hub(hub, "work") == published(zoo)
    assert "plots/accuracy.png" in on_the_hub(hub, "v1") and seen == [True]
    assert hub.repos[REPO].private and not (zoo / STAGING).exists()
    hub.clear()
    assert run("publish", zoo, "--repo-id", REPO, "--revision", "work").exit_code == 0
    assert [request for request in sent(hub) if "/branch/" not in request] == []


def test_publish_refuses(zoo: Path, tmp_path: Path, hub: LoopbackHub) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    options = ["--repo-id", REPO]
    assert "expected a folder with nws.json, found nothing" in refused("publish", tmp_path / "no", *options)
    assert "expected a folder with nws.json, found none" in refused("publish", empty, *options)
    assert list(empty.iterdir()) == [] and not (tmp_path / "no").exists()
    write_manifest(empty, ("demo",), 0, [])
    assert "expected a zoo with models, found none;" in refused("publish", empty, *options)
    assert "--repo-id: expected ORG/NAME, found 'nws';" in refused("publish", zoo, "--repo-id", "nws")
    assert "Missing option '--repo-id'" in refused("publish", zoo)
    assert hub.requests == []


def test_publish_waits_for_no_build(zoo: Path, hub: LoopbackHub) -> None:
    code = f"""
from pathlib import Path
from builder.store import lock_folder
with lock_folder(Path({str(zoo)!r})):
    print("locked", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", f"import sys\n{code}"]
    builder = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    with builder:
        assert builder.stdout is not None and builder.stdout.readline() == "locked\n"
        line = refused("publish", zoo, "--repo-id", REPO)
    assert "expected one build at a time, found another one at work; wait for it, or stop it" in line
    assert hub.requests == []


# What a zoo holds


def test_info(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", ("demo", "other"))
    copy = use_copy(zoo)
    lines = run("info", zoo).stdout.splitlines()
    manifest = Manifest.read(zoo)
    assert lines[0] == str(zoo.resolve())
    assert lines[1].startswith("holds    20 models, 60 snapshots; ") and lines[1].endswith(" kB of index")
    assert lines[2] == "kinds    cnn: 20 models, 2 architectures of 386 to 3,050 weights"
    assert lines[3] == "splits   train 12, validation 4, test 4"
    assert lines[4] == "version  format 3, generator test"
    assert lines[5] == f"digest   {manifest.digest}"
    assert lines[6] == ""
    assert " ".join(lines[7].split()) == "subset data set models snapshots median 0 test accuracy 1"
    names = [(subset, name) for subset in ("demo", "other") for name in (copy, "mnist", "svhn")]
    own = Zoo(zoo).filter(is_final=True)
    for line, (subset, name) in zip(lines[8:], names, strict=True):
        scores = own.filter(subset=subset, dataset="cifar10" if name == copy else name)["test_accuracy"]
        cells = [subset, name, str(len(scores)), str(3 * len(scores)), f"{np.median(scores):.3f}"]
        assert " ".join(line.split()).startswith(" ".join(cells))
    assert len(lines) <= 24 and max(map(len, lines)) <= 80


def test_info_draws_bars() -> None:
    assert info._drawn(np.array([0.0, 0.05, 0.95, 1.0, 1.0, 1.0]), 0.0, 1.0, 4, "12345678") == "4  8"
    assert info._drawn(np.array([0.5] * 80 + [0.0]), 0.0, 1.0, 3, "12345678") == "18 "  # one is seen
    assert info._drawn(np.array([3.0, 3.0]), 3.0, 3.0, 2, "12345678") == "8 "
    assert info._drawn(np.array([]), 0.0, 1.0, 2, "12345678") == "  "


def test_info_is_plain_where_nobody_looks(zoo: Path) -> None:
    plain = run("info", zoo).stdout
    assert "\x1b" not in plain
    coloured = run("info", zoo, color=True).stdout
    assert "\x1b" in coloured and click.unstyle(coloured) == plain
    assert run("info", zoo, color=True, NO_COLOR="1").stdout == plain
    assert run("info", zoo, color=True, NO_COLOR="").stdout == coloured


def test_info_on_a_terminal_without_blocks(zoo: Path) -> None:
    done = in_process(WITHOUT_EXTRAS, "info", zoo, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and "@" in done.stdout.splitlines()[-1]


def test_info_needs_no_extra_and_no_client_of_the_hub(zoo: Path) -> None:
    done = in_process(
        "sys.modules['huggingface_hub'] = sys.modules['datasets'] = None" + WITHOUT_EXTRAS, "info", zoo
    )
    assert done.returncode == 0, done.stderr
    assert "10 models" in done.stdout


def test_info_of_the_hub_fetches_no_weights(
    zoo: Path, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", tmp_path / "cache")  # nothing is kept there yet
    hub.put(REPO, zoo)
    hub.clear()
    first, *rest = run("info", REPO).stdout.splitlines()
    commit = hub.repos[REPO].branches["main"]
    assert first == f"{REPO}@{commit}"
    assert rest == run("info", zoo).stdout.splitlines()[1:]
    manifest = Manifest.read(zoo)
    fetched = {request.path.partition(f"/{REPO}/resolve/")[2].partition("/")[2] for request in hub.requests}
    assert fetched - {""} == {"nws.json", *manifest.index_files()}
    small = sum((zoo / path).stat().st_size for path in ("nws.json", *manifest.index_files()))
    assert sum(request.sent for request in hub.requests) == small
    assert refused("info", REPO, "--revision", "no-such").startswith(f"Error: {REPO}@no-such")
    assert run("info", REPO, "--revision", commit).stdout.splitlines() == [first, *rest]


def test_info_of_networks_that_represent_images(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo")
    table = Zoo(zoo).filter().table
    psnr = [np.linspace(20.0, 40.0, len(table))]
    table = table.set_column(table.column_names.index("psnr"), "psnr", psnr)
    snapshots = Snapshots(table)
    drawn = info._table(snapshots, "psnr", Manifest.read(zoo), info.BARS)
    head, first, *_ = (click.unstyle(line) for line in drawn)
    final = snapshots.filter(is_final=True)
    assert head.split()[-3:] == [f"{final['psnr'].min():.3g}", "PSNR", "40"]
    assert f"  {np.median(final.filter(dataset='cifar10')['psnr']):.1f} dB  " in first


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_info_of_no_zoo(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    line = refused("info", tmp_path / name)
    assert line.startswith(f"Error: {tmp_path / name}") and "expected a folder with nws.json" in line


def test_info_of_a_damaged_zoo(zoo: Path) -> None:
    path = zoo / Manifest.read(zoo).index_files()[0]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert f"Error: {path}: expected sha256 " in refused("info", zoo)
    (zoo / "nws.json").write_text("{")
    assert f"Error: {zoo / 'nws.json'}: expected " in refused("info", zoo)


def test_info_of_a_zoo_that_grows(zoo: Path, tmp_path: Path) -> None:
    with lock_folder(zoo):
        assert "\ngrowing  a build is at work here, or was interrupted\n" in run("info", zoo).stdout
    assert "growing" not in run("info", zoo).stdout
    new = tmp_path / "new"
    new.mkdir()
    write_manifest(new, ("demo",), 0, [])
    assert run("info", new).stdout.splitlines()[1] == "holds    no models yet"


def test_info_of_names_and_numbers_that_nobody_expects(zoo: Path) -> None:
    """They come from a stranger: each stays on its line, which stays short."""
    data = json.loads((zoo / "nws.json").read_text())
    data["generator_version"] = "\x1b[31m\n" * 100
    (zoo / "nws.json").write_text(json.dumps(data))
    shown = run("info", zoo).stdout
    assert "\x1b" not in shown and max(map(len, shown.splitlines())) <= 80
    table = Zoo(zoo).filter().table
    odd = [f"a\x1bdata\nset{'!' * 100}{number % 30}" for number in range(len(table))]
    table = table.set_column(table.column_names.index("dataset"), "dataset", [odd])
    manifest = dataclasses.replace(Manifest.read(zoo), generator_version="x")
    drawn = info._table(Snapshots(table), "test_accuracy", manifest, info.BARS)
    lines = [click.unstyle(line) for line in drawn]
    assert len(lines) == 1 + info.MAX_LINES and lines[-1] == f"and {30 - info.MAX_LINES + 1} more"
    assert all(line.isprintable() and len(line) <= 80 for line in lines)
