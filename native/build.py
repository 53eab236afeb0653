"""Builds the C kernel as the extension module ``adapm._kernel``.

``pip install`` runs this file through setuptools (``cffi_modules = native/build.py:ffi``).  While working on the
kernel, ``python native/build.py`` compiles it in a temporary folder and puts the module into ``adapm/``.

Environment, for tests of the kernel itself:

- ``ADAPM_STRICT=1``: rows are copied with relaxed atomics, strictly after C11's memory model, instead of with vectors.
- ``ADAPM_SANITIZE=address,undefined`` or ``thread``: the sanitizers to build with.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
CALLBACKS = 'extern "Python" int64_t adapm_memory_available(void);'  # adapm/engine.py


def declarations() -> str:
    """The part of kernel.h that is written for cffi, which needs neither a preprocessor nor atomics."""
    text = (HERE / "kernel.h").read_text()
    return text.split("/* cffi begin */")[1].split("/* cffi end */")[0] + CALLBACKS


def compile_args() -> list[str]:
    # No fused multiply-add: initial values must not depend on the processor.
    # No errno from roots: they would not vectorise.
    return ["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", *sanitizer_args()]


def sanitizer_args() -> list[str]:
    sanitizers = os.environ.get("ADAPM_SANITIZE")
    return [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g"] if sanitizers else []


def macros() -> list[tuple[str, str | None]]:
    chosen: list[tuple[str, str | None]] = [("ADAPM_STRICT", None)] if os.environ.get("ADAPM_STRICT") == "1" else []
    return chosen + ([("ADAPM_SANITIZED", None)] if sanitizer_args() else [])


def builder(folder: Path) -> FFI:
    """The module's description, with the C sources as they are called from the current folder through ``folder``."""
    made = FFI()
    made.cdef(declarations())
    made.set_source(
        "adapm._kernel",
        '#include "kernel.h"',
        sources=sorted(str(folder / path.name) for path in HERE.glob("*.c")),
        depends=sorted(str(folder / path.name) for path in HERE.glob("*.h")),
        include_dirs=[str(folder)],
        define_macros=macros(),
        extra_compile_args=compile_args(),
        extra_link_args=sanitizer_args(),
        libraries=["m"],
    )
    return made


def build_in_place() -> Path:
    """Compiles and replaces ``adapm/_kernel*.so``; returns its path."""
    target = HERE.parent / "adapm"
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(builder(HERE).compile(tmpdir=scratch))
        for old in target.glob("_kernel*.so"):
            old.unlink()
        return Path(shutil.copy(built, target))


# setuptools wants sources relative to the folder it runs in, which is the repository's.
ffi = builder(Path(os.path.relpath(HERE)))

if __name__ == "__main__":
    print(build_in_place())
