"""Who clicks on what, on several workers and nodes: two embeddings and a small network.

    python examples/pytorch_adapm.py                                    # one node, two workers
    adapm run --nodes 2 --workers 1 examples/pytorch_adapm.py

Its twin, pytorch_plain.py, trains the same in one process; ten lines are different.
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

import adapm.torch

USERS, ITEMS, DIM = 400, 200, 8
EPOCHS, BATCH = 4, 128


class Clicks(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users = adapm.torch.Embedding(USERS, DIM, table="users")
        self.items = adapm.torch.Embedding(ITEMS, DIM, table="items")
        self.top = torch.nn.Sequential(torch.nn.Linear(3 * DIM, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        user, item = self.users(users), self.items(items)
        return self.top(torch.cat([user, item, user * item], dim=1)).squeeze(1)


def clicks(count: int, seed: int) -> TensorDataset:
    """Users, items and 1.0 or 0.0, by hidden tastes that are the same for every seed."""
    tastes = torch.Generator().manual_seed(0)
    of_users, of_items = torch.randn(USERS, 2, generator=tastes), torch.randn(ITEMS, 2, generator=tastes)
    chance = torch.Generator().manual_seed(seed)
    users = torch.randint(USERS, (count,), generator=chance)
    items = torch.randint(ITEMS, (count,), generator=chance)
    liking = 2 * (of_users[users] * of_items[items]).sum(dim=1)
    return TensorDataset(users, items, torch.bernoulli(liking.sigmoid(), generator=chance))


def train(worker: adapm.BlockingWorker) -> float:
    """The log loss on clicks that were not trained on."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Clicks()
    sparse = adapm.torch.SparseAdagrad(model, lr=0.3)
    dense = torch.optim.Adam(model.top.parameters(), lr=0.01)
    shared = adapm.torch.DenseParameters(model, dense)
    data, test = clicks(40_000, seed=1), clicks(20_000, seed=2)
    loader = DataLoader(data, BATCH, sampler=adapm.torch.distributed_sampler(data))
    loader = adapm.torch.IntentLoader(loader, keys={"users": 0, "items": 1})
    for _ in range(EPOCHS):
        for users, items, clicked in loader:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(users, items), clicked)
            sparse.zero_grad()
            dense.zero_grad()
            loss.backward()
            sparse.step()
            dense.step()
    shared.barrier()
    users, items, clicked = test.tensors
    with torch.no_grad():
        return torch.nn.functional.binary_cross_entropy_with_logits(model(users, items), clicked).item()


if __name__ == "__main__":
    print("log loss:", adapm.run(train, adapm.torch.tables(Clicks(), adapm.torch.SparseAdagrad))[0])
