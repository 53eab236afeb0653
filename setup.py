"""What pyproject.toml cannot say: the compiled modules, described in native/build.py."""

import runpy

from setuptools import setup

setup(
    cffi_modules=["native/build.py:ffi", "native/build.py:ucp"], ext_modules=[runpy.run_path("native/build.py")["call"]]
)
