"""Builds the extension modules: the C kernel, ``adapm._kernel``, its short way in from Python, ``adapm._call``, and
what transports have in C, ``adapm._tcp`` and ``adapm._ucp``.

``pip install`` takes them from here through setup.py.  While working on the kernel, ``python native/build.py`` compiles
them in a temporary folder and puts them into ``adapm/``.

``adapm._call`` looks into numpy's arrays.  Built with numpy 2 it runs with 1.26 too, but not the other way round.

Environment, for tests of the kernel itself:

- ``ADAPM_STRICT=1``: rows are copied with relaxed atomics, strictly after C11's memory model, instead of with vectors.
- ``ADAPM_SANITIZE=address,undefined`` or ``thread``: the sanitizers to build with.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy
from cffi import FFI
from setuptools import Distribution, Extension

HERE = Path(__file__).resolve().parent
CALL = HERE / "call.c"
EDGES = {"tcp": ("tcp",), "ucp": ("ucp", "ucp_links")}  # modules that are not linked with the kernel, and their parts
CALLBACKS = 'extern "Python" int64_t adapm_memory_available(void);'  # adapm/engine.py


def declarations(header: str) -> str:
    """The part of a header that is written for cffi, which needs neither a preprocessor nor atomics."""
    return (HERE / header).read_text().split("/* cffi begin */")[1].split("/* cffi end */")[0]


def compile_args() -> list[str]:
    # No fused multiply-add: initial values must not depend on the processor.
    # No errno from roots: they would not vectorise.
    return [
        "-O3",
        "-std=gnu11",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-Wall",
        "-Wextra",
        "-fvisibility=hidden",
        *sanitizer_args(),
    ]


def sanitizer_args() -> list[str]:
    sanitizers = os.environ.get("ADAPM_SANITIZE")
    return [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g"] if sanitizers else []


def macros() -> list[tuple[str, str | None]]:
    chosen: list[tuple[str, str | None]] = [("ADAPM_STRICT", None)] if os.environ.get("ADAPM_STRICT") == "1" else []
    return chosen + ([("ADAPM_SANITIZED", None)] if sanitizer_args() else [])


def builder(folder: Path) -> FFI:
    """The kernel's description, with the C sources as they are called from the current folder through ``folder``."""
    made = FFI()
    apart = {part for parts in EDGES.values() for part in parts}
    made.cdef(declarations("kernel.h") + CALLBACKS)
    made.set_source(
        "adapm._kernel",
        '#include "kernel.h"',
        sources=sorted(str(folder / path.name) for path in HERE.glob("*.c") if path != CALL and path.stem not in apart),
        depends=sorted(str(folder / path.name) for path in HERE.glob("*.h")),
        include_dirs=[str(folder)],
        define_macros=macros(),
        extra_compile_args=compile_args(),
        extra_link_args=sanitizer_args(),
        libraries=["m"],
    )
    return made


def edge(name: str, folder: Path) -> FFI:
    """The description of ``adapm._NAME``, not linked with the kernel; ``folder`` as above."""
    made = FFI()
    made.cdef("".join(declarations(f"{part}.h") for part in EDGES[name]))
    made.set_source(
        f"adapm._{name}",
        "\n".join(f'#include "{part}.h"' for part in EDGES[name]),
        sources=[str(folder / f"{part}.c") for part in EDGES[name]],
        depends=sorted(str(folder / path.name) for path in HERE.glob("*.h")),
        include_dirs=[str(folder)],
        extra_compile_args=compile_args(),
        extra_link_args=sanitizer_args(),
    )
    return made


def caller(folder: Path) -> Extension:
    """The description of ``adapm._call``; ``folder`` as in ``builder``."""
    return Extension(
        "adapm._call",
        [str(folder / CALL.name)],
        depends=[str(folder / "kernel.h")],
        include_dirs=[str(folder)],
        # Warnings about numpy's headers would be none of ours.
        extra_compile_args=[*compile_args(), "-isystem", numpy.get_include()],
        extra_link_args=sanitizer_args(),
    )


def build_in_place() -> list[Path]:
    """Compiles and replaces the modules in ``adapm/``; returns their paths."""
    with tempfile.TemporaryDirectory() as scratch:
        described = [builder(HERE), *(edge(name, HERE) for name in EDGES)]
        modules = [caller(HERE), *(made.distutils_extension(scratch, verbose=False) for made in described)]
        command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
        command.build_lib = command.build_temp = scratch
        command.parallel = len(modules)
        command.ensure_finalized()
        command.run()
        return [replace(Path(built)) for built in command.get_outputs()]


def replace(built: Path) -> Path:
    """Puts a module into ``adapm/`` in place of what is there of it; returns its path."""
    target = HERE.parent / "adapm"
    for old in target.glob(f"{built.name.split('.')[0]}*.so"):
        old.unlink()
    return Path(shutil.copy(built, target))


# setuptools wants sources relative to the folder it runs in, which is the repository's.
ffi = builder(Path(os.path.relpath(HERE)))
tcp, ucp = (edge(name, Path(os.path.relpath(HERE))) for name in EDGES)
call = caller(Path(os.path.relpath(HERE)))

if __name__ == "__main__":
    print(*build_in_place(), sep="\n")
