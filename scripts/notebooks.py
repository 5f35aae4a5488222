"""Executes the notebooks of examples/ and keeps their outputs: python scripts/notebooks.py [NAME ...]

They read the demo's zoo, ./nws. A notebook's file is its only source: edit it, then run this.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import click
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from nws_dataset.console import Command
from nws_dataset.errors import ZooError
from nws_dataset.files import atomic_write

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples"
# the same for everyone: nothing of the machine that executed it
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# no progress bars in what is kept, nor tqdm's warning that Jupyter would draw nicer ones with ipywidgets
QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}
SECONDS = 600  # of a cell: only one that hangs takes as long


def notebooks() -> list[str]:
    """The names of all notebooks in FOLDER, without their suffix."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def execute(name: str, where: Path = FOLDER) -> NotebookNode:
    """A notebook with the outputs of its cells.

    Args:
        name: one of `notebooks`.
        where: the folder in which it runs; the zoo is beside it, in `../nws`.

    Returns:
        The notebook, its metadata METADATA.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(where)}}
    client = NotebookClient(
        notebook, timeout=SECONDS, resources=resources, record_timing=False, coalesce_streams=True
    )
    with tempfile.TemporaryDirectory() as sockets, patch.dict(os.environ, QUIET):
        manager = client.create_kernel_manager()
        # through sockets in a folder of its own: no port that others could reach
        manager.transport, manager.ip = "ipc", f"{sockets}/kernel"
        client.execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


@click.command(
    cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--check", is_flag=True, help="Only execute them: write nothing.")
def main(names: tuple[str, ...], check: bool) -> None:
    """Execute notebooks of examples/, all by default, and write their outputs into them."""
    known, failed = notebooks(), []
    for name in names:
        if name not in known:
            do = "leave it out for all of them"
            raise ZooError("NAME", expected=f"one of {', '.join(known)}", found=repr(name), do=do)
    for name in names or known:
        started = time.monotonic()
        try:
            notebook = execute(name)
        except CellExecutionError as error:
            click.echo(f"{name}: {error}", err=True)
            failed.append(name)
            continue
        click.echo(f"{name:<20}{time.monotonic() - started:4.0f} s")
        if not check:
            with atomic_write(FOLDER / f"{name}.ipynb") as path:
                nbformat.write(notebook, path)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
