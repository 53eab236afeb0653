"""For Lightning's Trainer, which owns the loop: each of its processes is a worker, and they evaluate the same rows.

    with adapm.attach(TABLES):                      # in every process: torchrun --nproc-per-node 4 train.py
        trainer = Trainer(devices=4, strategy="ddp", callbacks=[AdapmCallback()])
        trainer.fit(model, IntentLoader(DataLoader(...), keys=...))

Lightning takes a batch of a loader without a length before it has used the one before, and the clock with it: give such
a loader a length, or its rows may be dropped just before they are used, and are then pulled.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

import adapm
from adapm.errors import UsageError
from adapm.torch.worker import blocking_worker


class AdapmCallback(Callback):  # type: ignore[misc, unused-ignore]  # without Lightning its class is unknown
    """Checks that workers and Lightning's processes are the same, and has them meet before rows are looked at.

    Validation, testing and the end of training begin with a barrier: every worker then sees all updates.

    Args:
        worker: None for the worker of the thread that the trainer runs in.

    Raises:
        UsageError: from the trainer, if a process is not the worker of its rank; NoWorker: if it is none.
    """

    def __init__(self, worker: adapm.BlockingWorker | None = None) -> None:
        self._worker = worker

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Called by the trainer before it does anything."""
        worker = blocking_worker(self._worker)
        if (trainer.global_rank, trainer.world_size) != (worker.id, worker.num_workers):
            raise UsageError(
                f"Lightning's process {trainer.global_rank} of {trainer.world_size} is adapm's worker {worker.id} of"
                f" {worker.num_workers}: start as many with torchrun as Trainer(devices=..., num_nodes=...) says, and"
                " put the trainer into a block `with adapm.attach(tables):`"
            )

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Called by the trainer."""
        self._meet()

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Called by the trainer."""
        self._meet()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Called by the trainer."""
        self._meet()

    def _meet(self) -> None:
        blocking_worker(self._worker).barrier()
