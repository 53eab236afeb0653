"""Who clicks on what, in plain PyTorch: two embeddings and a small network, in one process.

    python examples/pytorch_plain.py

Its twin, pytorch_adapm.py, trains the same on several workers and nodes; ten lines are different.
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

USERS, ITEMS, DIM = 400, 200, 8
EPOCHS, BATCH = 4, 128


class Clicks(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users = torch.nn.Embedding(USERS, DIM, sparse=True)
        self.items = torch.nn.Embedding(ITEMS, DIM, sparse=True)
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


def train() -> float:
    """The log loss on clicks that were not trained on."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Clicks()
    sparse = torch.optim.Adagrad([model.users.weight, model.items.weight], lr=0.3)
    dense = torch.optim.Adam(model.top.parameters(), lr=0.01)
    data, test = clicks(40_000, seed=1), clicks(20_000, seed=2)
    loader = DataLoader(data, BATCH, shuffle=True)
    for _ in range(EPOCHS):
        for users, items, clicked in loader:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(users, items), clicked)
            sparse.zero_grad()
            dense.zero_grad()
            loss.backward()
            sparse.step()
            dense.step()
    users, items, clicked = test.tensors
    with torch.no_grad():
        return torch.nn.functional.binary_cross_entropy_with_logits(model(users, items), clicked).item()


if __name__ == "__main__":
    print("log loss:", train())
