"""Tables in PyTorch: modules that look rows up, optimizers that keep their state beside them, dense parameters shared.

    TABLES = [adapm.torch.embedding_table("users", 10_000, 64, adapm.torch.SparseAdagrad)]

    def train(worker):
        users = adapm.torch.Embedding(10_000, 64, table="users")
        optimizer = adapm.torch.SparseAdagrad(users, lr=0.1)
        for batch in batches:
            optimizer.zero_grad()
            loss_of(users(batch)).backward()
            optimizer.step()

    adapm.run(train, TABLES)

Nothing else in adapm imports torch; `pip install 'adapm[torch]'` brings it.  See docs/pytorch.md.
"""

from adapm.errors import TorchMissing

try:
    import torch as _torch  # noqa: F401  # here it is missed, if anywhere
except ModuleNotFoundError as _error:
    if _error.name != "torch":
        raise
    raise TorchMissing("adapm.torch needs PyTorch 2.1 or newer: pip install 'adapm[torch]'") from _error

from adapm.torch.dense import DenseParameters, dense_table
from adapm.torch.embedding import Embedding, EmbeddingBag
from adapm.torch.optim import RowwiseAdagrad, SparseAdagrad, SparseAdam, SparseSGD, embedding_table

__all__ = [
    "DenseParameters",
    "Embedding",
    "EmbeddingBag",
    "RowwiseAdagrad",
    "SparseAdagrad",
    "SparseAdam",
    "SparseSGD",
    "dense_table",
    "embedding_table",
]
