"""A zoo's folder while it is built: taken up again after any kill, locked for the whole command, never in the
way of others.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from builder import build as build_module
from builder import cli, commands, gallery, store
from builder.build import build
from builder.importers.importing import import_zoo
from builder.plan import Request
from builder.store import (
    CARD_NAME,
    LOCAL_NOTE,
    NEXT,
    lock_folder,
    remember_images,
    remembered_images,
    roll_forward,
)
from builder.training import cpu
from nws_dataset.console import Interrupted
from nws_dataset.errors import ZooError
from nws_dataset.format.manifest import MANIFEST_NAME, PENDING, STAGING
from nws_dataset.reading.zoo import Zoo
from testing.zoo_factory import make_zoo

ROOT = Path(__file__).parent.parent


def make_file(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- what a kill may leave ---

LEFT: dict[str, Callable[[Path], object]] = {
    "an empty folder": lambda out: out.mkdir(),
    "staging": lambda out: (out / STAGING).mkdir(parents=True),
    "staging and a lock": lambda out: make_file(out / STAGING / "lock"),
    "staging and a card": lambda out: (make_file(out / STAGING / "lock"), make_file(out / "README.md")),
    "an empty next state": lambda out: (out / NEXT / "index").mkdir(parents=True),
    "an empty pending state": lambda out: (out / PENDING / "snapshots").mkdir(parents=True),
    "half a file": lambda out: make_file(
        out / NEXT / "snapshots/demo/.train-x-00000.parquet.7-ab.tmp", "half"
    ),
}


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
def test_what_a_kill_left_is_taken_up_again(tmp_path: Path, left: Callable[[Path], object]) -> None:
    out = tmp_path / "out"
    left(out)
    with lock_folder(out):
        assert (out / STAGING / "models").is_dir()
    assert not out.exists() or not any(out.iterdir())


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    make_file(tmp_path / "out" / "thesis.tex")
    with (
        pytest.raises(ZooError, match="expected a zoo, or an empty or new folder, found other files"),
        lock_folder(tmp_path / "out"),
    ):
        pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_project_of_others_with_a_staging_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("README.md", "thesis.tex", f"{STAGING}/thesis.aux"):
        make_file(out / name, "precious")
    with pytest.raises(ZooError, match="found other files"), lock_folder(out):
        pass
    assert {path.relative_to(out).as_posix() for path in out.rglob("*")} == {
        "README.md",
        "thesis.tex",
        STAGING,
        f"{STAGING}/thesis.aux",
    }


@pytest.mark.parametrize("number", range(12))
def test_a_disk_that_is_full_between_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whichever folder cannot be made: one line, and the next run goes on."""
    out, real, count = tmp_path / "a/b/out", os.mkdir, iter(range(1000))

    def full(path: object, *args: object) -> None:
        if next(count) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        try:
            with lock_folder(out):
                pass
        except ZooError as error:
            assert "No space left" in str(error)
    with lock_folder(out):
        pass
    assert not out.exists() or not any(out.iterdir())


def test_a_new_state_on_its_way_is_moved_into_the_zoo(tmp_path: Path) -> None:
    old, new = make_zoo(tmp_path / "old", models=4), make_zoo(tmp_path / "new", models=8)
    (old / STAGING).mkdir()
    new.rename(old / PENDING)
    assert Zoo(old).manifest.subsets["demo"].num_models == 8
    expected = {snapshot["sha256"] for snapshot in Zoo(old).filter()}
    with lock_folder(old):
        assert not (old / PENDING).exists()
    roll_forward(old)  # there is nothing more to do
    assert {snapshot["sha256"] for snapshot in Zoo(old, check=True).filter()} == expected
    assert not (old / STAGING).exists()


def test_what_was_committed_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails while the files move: the state stays, and readers see it."""
    old, new = make_zoo(tmp_path / "old", models=4), make_zoo(tmp_path / "new", models=8)
    (old / STAGING).mkdir()
    new.rename(old / PENDING)
    monkeypatch.setattr(
        store,
        "fsync",
        lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error", str(path))),
    )
    with pytest.raises(ZooError, match="Input/output error"), lock_folder(old):
        pass
    assert len(set(Zoo(old, check=True).filter()["model_id"])) == 8
    monkeypatch.undo()
    with lock_folder(old):
        pass
    assert (old / MANIFEST_NAME).is_file() and not (old / STAGING).exists()


# --- the lock ---


def test_a_lock_that_was_removed_since_it_was_opened_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first build ends and removes the file that the second has just opened; a third makes it anew and
    holds it.
    """
    out, real, others = tmp_path / "out", fcntl.flock, []

    def overtaken(file: object, operation: int) -> None:
        path = out / STAGING / "lock"
        if not others:
            path.unlink()
            others.append(open(path, "w"))  # noqa: SIM115 -- closed below
            real(others[0], operation)
        real(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", overtaken)
    with pytest.raises(ZooError, match="one build at a time"), lock_folder(out):
        pass
    others[0].close()
    with lock_folder(out):
        pass


def locked(out: Path) -> bool:
    with open(out / STAGING / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_the_lock_is_held_until_all_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, seen = make_zoo(tmp_path / "out"), []

    class Witness:
        repo_id, revision, url = "org/nws", None, "-"

        def push(self, folder: Path) -> None:
            seen.append(("push", locked(folder)))

    monkeypatch.setattr(
        build_module, "build", lambda request, out, **options: seen.append(("build", locked(out)))
    )
    monkeypatch.setattr(gallery, "draw", lambda out: seen.append(("draw", locked(out))))
    monkeypatch.setattr(commands, "_publisher", lambda *args, **options: Witness())
    cli.main.main(["--out", str(out), "--models", "1"], standalone_mode=False)
    assert seen == [("build", True), ("draw", True), ("push", True)]
    assert not (out / STAGING).exists()


def refused(out: Path) -> bool:
    """Whether a second builder is told that one is at work."""
    try:
        with lock_folder(out):
            return False
    except ZooError as error:
        return "one build at a time" in str(error)


def in_thread(action: Callable[[Path], bool], out: Path) -> bool:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action, out).result()


def in_fork(action: Callable[[Path], bool], out: Path) -> bool:
    child = os.fork()
    if child == 0:
        os._exit(not action(out))
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("beside", [in_thread, in_fork])
def test_a_folder_is_locked_against_threads_and_forks_too(
    tmp_path: Path, beside: Callable[[Callable[[Path], bool], Path], bool]
) -> None:
    out, link = tmp_path / "out", tmp_path / "link"
    link.symlink_to(out)
    with lock_folder(out):
        assert beside(refused, out) and beside(refused, link)
        with lock_folder(link):  # the same builder by another name
            assert beside(refused, out)
        assert beside(refused, out)
    assert not out.exists()


@pytest.mark.parametrize("leave", [SystemExit, RuntimeError, None])
def test_a_fork_that_leaves_the_block_clears_nothing_away(
    tmp_path: Path, leave: type[BaseException] | None
) -> None:
    out = tmp_path / "out"
    builder = os.getpid()
    try:
        with lock_folder(out):
            staged = make_file(out / STAGING / "images/demo/digits.npy")
            child = os.fork()
            if child == 0:
                if leave:
                    raise leave
            else:
                assert os.waitpid(child, 0)[1] == 0
                assert staged.exists() and in_fork(refused, out)
    finally:
        if os.getpid() != builder:
            os._exit(0)
    assert not out.exists()


def test_a_block_that_is_left_in_another_thread(tmp_path: Path) -> None:
    held = lock_folder(tmp_path / "out")
    held.__enter__()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.__exit__, None, None, None).result()
    other = store._take_lock(tmp_path / "out")
    assert refused(tmp_path / "out")
    other.close()


def test_a_lock_that_somebody_removed_is_not_given_back(tmp_path: Path) -> None:
    """The next build's lock and files stay."""
    out = tmp_path / "out"
    with lock_folder(out):
        shutil.rmtree(out / STAGING)
        other = store._take_lock(out)
        staged = make_file(out / STAGING / "images/demo/digits.npy")
    assert staged.exists() and refused(out)
    other.close()


def test_a_disk_that_fails_when_the_lock_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, really = tmp_path / "out", os.stat

    def failing(path: object, **options: object) -> os.stat_result:
        if str(path).endswith("lock"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return really(path, **options)  # type: ignore[arg-type]

    with (
        pytest.raises(ZooError, match="expected a disk that can be written, found OSError"),
        lock_folder(out),
    ):
        monkeypatch.setattr(os, "stat", failing)
    monkeypatch.undo()
    assert not refused(out)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold links: a path through it would be followed."""
    out, really = make_zoo(tmp_path / "out"), os.scandir

    def closed(folder: str | os.PathLike[str]) -> object:
        if Path(folder) == out / "snapshots":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return really(folder)

    monkeypatch.setattr(os, "scandir", closed)
    with (
        pytest.raises(ZooError, match="expected a folder that can be written, found PermissionError"),
        lock_folder(out),
    ):
        pass
    assert not (out / STAGING).exists()


@pytest.mark.parametrize("name", ["snapshots", STAGING, f"{STAGING}/models", f"{STAGING}/commit", "plots"])
def test_a_file_in_place_of_a_folder(tmp_path: Path, name: str) -> None:
    out = make_file(tmp_path / "out" / MANIFEST_NAME).parent
    make_file(out / name)
    with (
        pytest.raises(ZooError, match=r"expected a (folder|disk) that can be written, found"),
        lock_folder(out),
    ):
        pass
    assert (out / name).is_file()


def test_the_lock_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a build clears away what served it alone, another one must not begin."""
    out, seen = tmp_path / "out", []

    def watched(action: Callable[..., None]) -> Callable[..., None]:
        def act(path: Path, *args: object, **kwargs: object) -> None:
            seen.append(in_thread(refused, out))
            action(path, *args, **kwargs)

        return act

    with lock_folder(out):
        make_file(out / STAGING / "images" / "demo" / "digits")
        monkeypatch.setattr(store.shutil, "rmtree", watched(store.shutil.rmtree))
        monkeypatch.setattr(store.Path, "unlink", watched(store.Path.unlink))
    assert seen and all(seen)
    assert not out.exists()


def test_a_build_begins_while_another_one_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that is to hold the lock is removed before the lock can be made, or found; what the new
    build makes stays.
    """
    out, unlink, held = tmp_path / "out", store.Path.unlink, []
    mkdir, is_dir = store.Path.mkdir, store.Path.is_dir

    def removed_at_once(path: Path, *args: object, **kwargs: object) -> None:
        mkdir(path, *args, **kwargs)
        if path.name == STAGING and not held:
            held.append(path)
            path.rmdir()

    monkeypatch.setattr(store.Path, "mkdir", removed_at_once)
    with lock_folder(out):
        assert held
    monkeypatch.undo()
    held.clear()

    def removed_when_found(path: Path) -> bool:
        if path.name == STAGING and not held:
            held.append(path)
            path.rmdir()
        return is_dir(path)

    (out / STAGING).mkdir(parents=True)
    monkeypatch.setattr(store.Path, "is_dir", removed_when_found)
    with lock_folder(out):
        assert held
    monkeypatch.undo()
    held.clear()

    def then_another(path: Path, **kwargs: object) -> None:
        unlink(path, **kwargs)
        if path.name == store.LOCK and not held:
            held.append(store._take_lock(out))

    with lock_folder(out):
        monkeypatch.setattr(store.Path, "unlink", then_another)
    assert refused(out)
    monkeypatch.undo()
    held.pop().close()
    assert not refused(out)


@pytest.mark.parametrize(
    "where",
    [
        STAGING,
        "snapshots",
        "plots",
        f"{STAGING}/lock",
        f"{STAGING}/models",
        f"{STAGING}/next/snapshots",
        f"{STAGING}/models/demo-1.parquet",
        f"{PENDING}/snapshots",
        "snapshots/demo",
        "index",
        "plots/a.png",
        f"{NEXT}/snapshots/demo/a.parquet",
        f"{STAGING}/images/.a.tmp",
    ],
)
def test_a_build_never_follows_a_link_out_of_its_folder(tmp_path: Path, where: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    make_zoo(out)
    precious = make_file(elsewhere / "models" / ".a.tmp", "precious")
    kept = make_file(elsewhere / "lock", "precious")
    link = out / where
    if link.is_dir():
        link.rename(tmp_path / "aside")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(kept if where.endswith(("lock", ".parquet", ".png")) else elsewhere)
    with pytest.raises(ZooError, match="where a build writes, found a link to") as raised, lock_folder(out):
        pass
    assert str(raised.value).startswith(f"{link}: expected ")
    assert precious.read_text() == kept.read_text() == "precious"


@pytest.mark.parametrize(
    "where",
    [f"{STAGING}/lock", f"{STAGING}/models/demo-000000.parquet", f"{NEXT}/snapshots/demo/train-x.parquet"],
)
def test_a_pipe_is_not_waited_for(tmp_path: Path, where: str) -> None:
    out = make_zoo(tmp_path / "out")
    (out / where).parent.mkdir(parents=True)
    os.mkfifo(out / where)
    with (
        pytest.raises(ZooError, match="where a build writes, found neither a file nor a folder; remove it"),
        lock_folder(out),
    ):
        pass


@pytest.mark.parametrize("link", ["elsewhere", "deep/elsewhere", ".profile"])
def test_a_new_state_does_not_move_out_of_the_folder(tmp_path: Path, link: str) -> None:
    out, elsewhere = make_zoo(tmp_path / "out"), tmp_path / "home"
    precious = make_file(elsewhere / ".profile", "precious")
    (out / link).parent.mkdir(exist_ok=True)
    (out / link).symlink_to(precious if link == ".profile" else elsewhere)
    make_file(out / PENDING / (link if link == ".profile" else f"{link}/.profile"), "a stranger's")
    with (
        pytest.raises(ZooError, match=r"expected a file inside this folder, found .* a link to"),
        lock_folder(out),
    ):
        pass
    assert precious.read_text() == "precious" and len(list(elsewhere.iterdir())) == 1


@pytest.mark.parametrize("name", [LOCAL_NOTE, CARD_NAME])
def test_what_is_written_is_never_read_from_a_pipe(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert not store._has_content(tmp_path / name, b"")
    (tmp_path / name).unlink()
    remember_images(tmp_path, None)
    remember_images(tmp_path, None)
    assert remembered_images(tmp_path) is None


def test_a_note_is_not_written_through_a_link(tmp_path: Path) -> None:
    precious = make_file(tmp_path / "precious", "precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / LOCAL_NOTE).symlink_to(precious)
    remember_images(out, tmp_path)
    assert precious.read_text() == "precious" and remembered_images(out) == tmp_path


def test_temporaries_of_others_are_left_alone(tmp_path: Path) -> None:
    """An evaluation may write its results into a zoo's folder while it is built."""
    out = make_zoo(tmp_path / "out")
    kept = [make_file(out / name) for name in (".method_x.json.5-ab.tmp", "results/.a.png.5-ab.tmp")]
    swept = [
        make_file(out / name)
        for name in (".nws.json.5-ab.tmp", "index/demo/.train.parquet.5-ab.tmp", "plots/.a.png.5-ab.tmp")
    ]
    with lock_folder(out):
        pass
    assert all(path.exists() for path in kept) and not any(path.exists() for path in swept)


# --- one line ---


@pytest.mark.parametrize("out", ["loop", "loop/out", "x" * 5000, "file", "file/out"])
def test_folders_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("file").write_text("")
    with pytest.raises(SystemExit) as raised:
        cli.main.main(["--out", out, "--models", "1"])
    told = capsys.readouterr().err
    assert raised.value.code == 2 and told.count("\n") == 1 and "a folder that can be written" in told


@pytest.mark.parametrize(
    "text", ["", "[]", "5", '{"images": 5}', '{"images": ["a"]}', "{}", "[" * 100_000, '"\\ud800"']
)
def test_a_note_of_where_images_lie(tmp_path: Path, text: str) -> None:
    make_file(tmp_path / LOCAL_NOTE, text)
    with pytest.raises(ZooError, match=r"\.local\.json: expected .*where the") as raised:
        remembered_images(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("staged", [False, True])
def test_ctrl_c_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, staged: bool) -> None:
    out = tmp_path / "out"

    def interrupted(*_: object, **options: object) -> None:
        if staged:
            make_file(out / STAGING / "models/demo-000000.parquet")
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "build", interrupted)
    with pytest.raises(
        Interrupted, match="finished models are kept in" if staged else "^interrupted; no model was finished$"
    ):
        cli.main.main(["--out", str(out)], standalone_mode=False)


def test_more_models_than_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "_build_subset", lambda *_: None)
    build(Request("demo", 320), tmp_path / "out", device="cpu")
    assert capsys.readouterr().err == "--models 320: preset demo has 208 models, and all of them are built\n"
    build(Request("demo", 208), tmp_path / "out", device="cpu")
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_script_without_a_guard(tmp_path: Path) -> None:
    script = make_file(
        tmp_path / "script.py",
        "import sys\nfrom pathlib import Path\n"
        "from builder.build import build\nfrom builder.plan import Request\n"
        "build(Request('demo', 1, epochs=1), Path(sys.argv[1]), device='cpu', workers=1)\n",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script, tmp_path / "out"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and 'below `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert done.stderr.count("nws_dataset.errors.ZooError") == 1  # the workers say nothing


def test_where_nothing_compiled_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setattr(cpu.config, "CACHE_DIR", "")
    monkeypatch.setattr(cpu.tempfile, "tempdir", str(tmp_path))
    cpu.find_cache()
    assert (cpu.config.CACHE_DIR, capsys.readouterr().err) == ("", "")
    monkeypatch.setattr(cpu, "_writable", lambda folder: False)
    cpu.find_cache()
    assert (
        Path(cpu.config.CACHE_DIR).parent == tmp_path
        and os.environ["NUMBA_CACHE_DIR"] == cpu.config.CACHE_DIR
    )
    assert capsys.readouterr().err.endswith(
        f"__pycache__ cannot be written: what is compiled is kept in {cpu.config.CACHE_DIR}\n"
    )


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    monkeypatched = make_file(tmp_path / "file")
    assert cpu._writable(tmp_path / "new") and not cpu._writable(monkeypatched / "below")


def test_an_import_into_a_folder_with_staging_alone(tmp_path: Path) -> None:
    (tmp_path / "out" / STAGING).mkdir(parents=True)
    (tmp_path / "source").mkdir()
    with pytest.raises(ZooError, match="source"):  # it gets as far as the release
        import_zoo("small_cnn", tmp_path / "source", tmp_path / "out")
