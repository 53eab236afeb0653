"""Tables in PyTorch: modules that look rows up, optimizers that keep their state beside them, dense parameters shared.

    def train(worker):
        model = Model()  # in which there are adapm.torch.Embedding(..., table="users") and the like
        sparse = adapm.torch.SparseAdagrad(model, lr=0.1)
        dense = torch.optim.Adam(model.parameters())
        adapm.torch.DenseParameters(model, dense)
        for batch in batches:
            sparse.zero_grad()
            dense.zero_grad()
            loss_of(model(batch)).backward()
            sparse.step()
            dense.step()

    adapm.run(train, adapm.torch.tables(Model(), adapm.torch.SparseAdagrad))

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
from adapm.torch.loader import IntentLoader, distributed_sampler
from adapm.torch.optim import RowwiseAdagrad, SparseAdagrad, SparseAdam, SparseSGD
from adapm.torch.schemas import embedding_table, tables

__all__ = [
    "DenseParameters",
    "Embedding",
    "EmbeddingBag",
    "IntentLoader",
    "RowwiseAdagrad",
    "SparseAdagrad",
    "SparseAdam",
    "SparseSGD",
    "dense_table",
    "distributed_sampler",
    "embedding_table",
    "tables",
]
