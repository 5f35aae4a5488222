"""The CPU's step takes every processor's registers to the same bits."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from numba.core.registry import cpu_target

from builder.training.cpu import vectors
from builder.training.cpu.offsets import POOL_TILE, TILES, tables_of
from builder.training.cpu.vectors import CHANNELS, LANES, Registers, part_of, registers, registers_of
from nws_dataset.networks.cnn import Architecture
from training_cases import ARCHITECTURES

ON_X86 = platform.machine() == "x86_64"
NAMED = {  # Numba compiles for these; what is forced besides are the tiles of another processor
    "avx512": Registers(16, 32),
    "avx2": Registers(8, 16),
    "neon": Registers(4, 24),
    "sse": Registers(4, 16),
}
PROCESSORS = {"avx2": ("haswell", "+avx2,+fma,+bmi,+bmi2"), "sse": ("nehalem", "+sse4.2")}
ELSEWHERE = [name for name, those in NAMED.items() if those != registers() and name != "sse"]
TOLD = "DIGESTS "
ARITHMETIC = re.compile(r" = (fadd|fsub|fmul|fdiv|(tail )?call)\b")
FREEDOM = re.compile(r"\b(fast|reassoc|contract|nnan|ninf|nsz|arcp|afn)\b")  # what lets LLVM change a sum


def networks() -> list[Architecture]:
    """Every kernel and every tile is used by one of them."""
    more = (
        Architecture(filter_size=3, head="average", width_conv=5, width_fc=7, depth_fc=1, image_size=10),
        Architecture(
            filter_size=5,
            stride=2,
            pooling="none",
            width_conv=3,
            width_fc=10,
            depth_fc=1,
            image_size=9,
            batch_norm=False,
        ),
        Architecture(filter_size=1, width_conv=6, width_fc=9, depth_fc=1, image_size=8, batch_norm=False),
    )
    return [*ARCHITECTURES.values(), *more]


def trained() -> list[str]:
    """Digests of the rows of two models of each of six networks, all different in their recipes."""
    from test_train import mixed, run

    models = [
        (architecture, mixed(architecture, 2 * i + 2)[-2:]) for i, architecture in enumerate(networks())
    ]
    rows = [model.rows for architecture, chosen in models for model in run(chosen).values()]
    return [hashlib.sha256(x.tobytes()).hexdigest() for x in rows]


def main(forced: list[int], text: str) -> None:
    """In a process of its own: train with other tiles, and keep the LLVM text of the compiled step."""
    print_digests(forced, trained)
    from builder.training.cpu import kernels

    Path(text).write_text("\n".join(kernels.train.inspect_llvm().values()))


def print_digests(forced: list[int], digests: Callable[[], list[str]]) -> None:
    """In a process of its own: train with other tiles."""
    vectors.registers = lambda: Registers(*forced)
    print(TOLD + json.dumps(digests()))


def digests_elsewhere(module: str, name: str, folder: Path, *arguments: str) -> list[str]:
    """What `main` of a test module tells in a process of its own that compiles for the registers of that
    name, into a folder.
    """
    processor, features = PROCESSORS.get(name, (None, None)) if ON_X86 else (None, None)
    chosen = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features} if processor else {}
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, **chosen, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": paths}
    code = f"import {module}; {module}.main(*{[list(NAMED[name]), *arguments]!r})"
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    found: list[str] = json.loads(told.split(TOLD)[1])
    return found


@functools.cache
def trained_here() -> list[str]:
    return trained()


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """LLVM text of the step for the registers that were tried, for the tests after."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ELSEWHERE)
def test_rows_are_bit_identical(name: str, tmp_path: Path, texts: dict[str, str]) -> None:
    """Compiled for other registers where this processor has them; else their tiles on its own."""
    text = tmp_path / "llvm"
    found = digests_elsewhere("test_cpu_registers", name, tmp_path, str(text))
    assert found == trained_here() and len(set(found)) == 12
    texts[name] = text.read_text()


@pytest.mark.slow
def test_no_sum_may_be_reordered(texts: dict[str, str]) -> None:
    """LLVM keeps the order of sums and the roundings that are written, unless an instruction allows another;
    none does.
    """
    if not texts:
        pytest.skip("needs the text of the test before")
    for text in texts.values():
        assert text.count("@llvm.fma.v") > 100
        lines = [line for line in text.splitlines() if ARITHMETIC.search(line)]
        assert not [
            line
            for line in lines
            if FREEDOM.search(line) or "llvm.vector.reduce.f" in line or "llvm.fmuladd" in line
        ]


@pytest.mark.slow
def test_the_step_compiles_for_arm(texts: dict[str, str]) -> None:
    """With NEON's tiles; a product and a sum that are written apart stay two instructions there."""
    if "neon" not in texts:
        pytest.skip("needs the text of the test before")
    machine = arm().create_target_machine(cpu="neoverse-n1", opt=3)
    text = re.sub(r'^target (triple|datalayout) = ".*"$', "", texts["neon"], flags=re.MULTILINE)
    # Numba's count of references, which on x86-64 is an intrinsic: here any function.
    module = llvm.parse_assembly(
        text.replace("llvm.x86.atomic.sub.cc.i64", "count_down").replace(" immarg", "")
    )
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    assembly = machine.emit_assembly(module)
    loops = [block for block in re.split(r"^\.LBB\w+:", assembly, flags=re.MULTILINE) if "//APP" in block]
    sums = [len(re.findall(r"\bfmla\s+v\d+\.4s", block)) for block in loops]
    assert max(sums) == 16 and sum(count == 16 for count in sums) >= 6
    assert not [
        block
        for block, count in zip(loops, sums, strict=True)
        if count == 16 and len(re.findall(r"\[sp", block)) > 1
    ]
    apart = (
        "define float @f(float %x, float %y) {\n %p = fmul float %x, %y\n %s = fadd float %p, %y\n ret "
        "float %s\n}"
    )
    assembly = machine.emit_assembly(llvm.parse_assembly(apart))
    assert "fmul" in assembly and "fmadd" not in assembly


def arm() -> llvm.Target:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple("aarch64-unknown-linux-gnu")


@pytest.mark.skipif(not ON_X86, reason="names x86-64 processors")
def test_registers_of_processors() -> None:
    target = llvm.Target.from_default_triple()
    told = {name: registers_of(target, *PROCESSORS[name]) for name in PROCESSORS}
    told |= {
        "avx512": registers_of(target, "skylake-avx512", ""),
        "neon": registers_of(arm(), "neoverse-n1", ""),
    }
    assert told == NAMED
    assert registers() == registers_of(target, *cpu_target.target_context.codegen().magic_tuple()[1:])


@pytest.mark.parametrize("name", NAMED)
def test_parts_fit_the_registers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    those = NAMED[name]
    monkeypatch.setattr(vectors, "registers", lambda: those)
    for pixels in TILES:
        part, lanes = part_of(pixels)
        held = part * lanes // those.lanes
        assert pixels % part == 0 == LANES % lanes and held * (CHANNELS + 1) < those.number
        # fewer sums than that wait for each other
        assert held * CHANNELS >= 8 or (part, lanes) == (pixels, LANES)


def test_the_networks_use_every_tile() -> None:
    tables = [tables_of(architecture, groups) for architecture in networks() for groups in (1, 4)]
    fused = {int(layer["tile"]) for t in tables for layer in t.layers if layer["pool"] and not layer["norm"]}
    assert fused == {POOL_TILE}
    forward = {int(layer["tile"]) for t in tables for layer in t.layers if not layer["pool"] or layer["norm"]}
    backward = {int(kind["tile"]) for t in tables for kind in t.classes}
    assert forward >= set(TILES) and backward >= set(TILES), (forward, backward)
    assert {int(layer["norm"]) for t in tables for layer in t.layers} == {0, 1, 2}
    taps = {int(layer["taps"]) % 5 for t in tables for layer in t.layers}
    assert taps >= set(itertools.islice(range(5), 1, None)), taps
