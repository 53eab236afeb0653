"""A dataset that processes can import which a test has spawned."""

from __future__ import annotations

from torch.utils.data import Dataset


class Numbers(Dataset[dict[str, int]]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, int]:
        return {"users": i, "item": 2 * i}
