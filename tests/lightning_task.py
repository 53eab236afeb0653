"""What each process of test_torch_lightning.py does: two epochs, and what validation has seen."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

import adapm.torch
from adapm.torch.lightning import AdapmCallback

ROWS, DEVICES = 24, 2
TABLES = [adapm.torch.embedding_table("users", ROWS, 2, adapm.torch.SparseSGD, init=adapm.constant(0))]
DATA = TensorDataset(torch.arange(ROWS))


class Model(LightningModule):
    """Each step moves the rows of its batch by 1."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))  # torch's DistributedDataParallel wants something to do
        self.users = adapm.torch.Embedding(ROWS, 2, table="users")
        self.steps: list[tuple[int, int]] = []  # the clock at each
        self.seen: list[float] = []  # the sum of all rows at each validation

    def training_step(self, batch: Any, step: int) -> torch.Tensor:
        self.steps.append((step, adapm.current_worker().clock))
        return self.bias.sum() - self.users(batch[0]).sum()

    def validation_step(self, batch: Any, step: int) -> None:
        self.seen.append(float(self.users(batch[0]).sum()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adapm.torch.SparseSGD(self.users, lr=1)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with adapm.attach(TABLES) as worker:
        share = adapm.torch.distributed_sampler(DATA)
        loader = adapm.torch.IntentLoader(DataLoader(DATA, 4, sampler=share), keys={"users": 0})
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(
            accelerator="cpu",
            devices=DEVICES,
            strategy="ddp",
            max_epochs=2,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
            callbacks=[AdapmCallback()],
            **quiet,
        )
        model = Model()
        trainer.fit(model, loader, DataLoader(DATA, ROWS))
        os.write(1, f"RESULT {worker.id} {model.steps} {model.seen} {worker.clock}\n".encode())


if __name__ == "__main__":
    main()
