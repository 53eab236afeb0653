"""One host of test_namespaces.py: moves into its namespace and runs its node, as `adapm run --node` would.

    python host.py NAMESPACE FOLDER NODE SETTINGS

Leaves "hostN.json" in the folder: what came of the run there, and when; and "nodeN.pid".
"""

from __future__ import annotations

import ctypes
import json
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import Any

import adapm
import namespaces
from adapm import launch, processes
from adapm.errors import AdapmError
from churn_task import Load, churn

_PR_SET_PDEATHSIG = 1


def task(worker: adapm.BlockingWorker, load: Load) -> None:
    """Churns; if the run fails, notes when this worker was told."""
    try:
        churn(worker, load)
    except AdapmError as error:
        leave(load.folder / f"worker{worker.id}.json", error)
        raise


def leave(path: Path, error: BaseException | None) -> None:
    """Writes down how it ended, and when."""
    said = {"at": time.monotonic(), "error": None}
    if error is not None:
        names = [cls.__name__ for cls in type(error).__mro__]
        said |= {"error": names[0], "is": names, "message": str(error), "node": getattr(error, "node", None)}
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(said))
    draft.rename(path)  # at once: whoever writes may be ended at any time


def main(namespace: int, folder: Path, node: int, settings: dict[str, Any]) -> None:
    """Runs the node of this id to its end."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    namespaces.enter(namespace)

    class Recorded(processes.NodeProcess):
        def __init__(self, node: int) -> None:
            super().__init__(node)
            (folder / f"node{node}.pid").write_text(str(self._process.pid))

    launch.NodeProcess = Recorded  # type: ignore[misc]
    load: Load = pickle.loads((folder / "load").read_bytes())
    error: BaseException | None = None
    try:
        adapm.run(task, [load.table], args=(load,), node=node, **settings)
    except AdapmError as caught:
        error = caught
    leave(folder / f"host{node}.json", error)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
