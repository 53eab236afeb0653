"""adapm: a parameter manager for training models with large, sparsely used tables.

A task says which rows its workers will access and when (`Worker.intent`, or `ahead` on its batches); the manager moves
and copies rows between nodes so that they are local by then.  Start with `adapm.run`, `adapm.Table` and `adapm.Worker`;
every error is an `adapm.AdapmError`.
"""

__version__ = "0.1.0"  # before the imports, since some of them want it

import platform
import sys
from pathlib import Path
from typing import Any

from adapm import errors
from adapm.config import Config
from adapm.errors import AdapmError, KernelMissing, UnsupportedPlatform
from adapm.sampling import Sampling
from adapm.tables import Table, constant, normal, uniform

__all__ = [
    "AdapmError",
    "BlockingWorker",
    "Config",
    "Sampling",
    "Statistics",
    "Table",
    "Worker",
    "ahead",
    "attach",
    "constant",
    "current_worker",
    "errors",
    "normal",
    "report",
    "run",
    "run_async",
    "uniform",
]

if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
    raise UnsupportedPlatform(
        f"adapm runs on Linux, on x86-64 and aarch64; this is {platform.system()} on {platform.machine()}."
        " Run it in a Linux container or virtual machine."
    )

_beside = Path(__file__).resolve().parent.parent
if (_beside / "native" / "layout.h").is_file():
    # A checkout: what is installed as adapm.transports and adapm.native are folders beside this one.
    __path__.append(str(_beside))

try:
    from adapm.ahead import ahead
    from adapm.attach import attach
    from adapm.current import current_worker
    from adapm.launch import run, run_async
    from adapm.reporting import report
    from adapm.statistics import Statistics
    from adapm.worker import BlockingWorker, Worker
except KernelMissing as _error:
    # `adapm doctor` must still be able to say what is wrong, so the error waits until something is used.
    _kernel_missing = _error

    def __getattr__(name: str) -> Any:
        if name in __all__:
            raise _kernel_missing
        raise AttributeError(f"module 'adapm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
