"""What pyproject.toml cannot say: the compiled modules, described in native/build.py."""

import runpy

from setuptools import setup

setup(
    cffi_modules=[f"native/build.py:{name}" for name in ("ffi", "tcp", "ucp")],
    ext_modules=[runpy.run_path("native/build.py")["call"]],
)
