"""The one thing pyproject.toml cannot say: the compiled kernel, described in native/build.py."""

from setuptools import setup

setup(cffi_modules=["native/build.py:ffi"])
