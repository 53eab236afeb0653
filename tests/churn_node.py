"""Nodes for test_churn.py: real ones, in processes of their own, which are looked into when their run has ended."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adapm import Config, Table, node_process, transport
from adapm.control import Ran
from adapm.node import Node
from adapm.transport import OnFrame, OnLost, Transport


def boot(folder: Path, patience: Mapping[str, float]) -> str:
    """What Python is to run in place of `adapm.processes._BOOT`.

    Args:
        folder: where each node leaves what every row is to it, as "node0" and so on.
        patience: "heartbeat" and "heartbeat_timeout" of its transport; those missing have their defaults.
    """
    arguments = f"int(sys.argv[1]), {str(folder)!r}, {dict(patience)!r}"
    return f"import sys; sys.path[:] = sys.argv[2:]; import churn_node; churn_node.main({arguments})"


def main(fd: int, folder: str, patience: Mapping[str, float]) -> None:
    """As `node_process.main`."""
    node_process.Node = partial(OpenNode, Path(folder), patience)  # type: ignore[misc, assignment]
    node_process.main(fd)


class OpenNode(Node):
    """A node that tells what every row is to it at the end of a run that ends well."""

    def __init__(
        self, folder: Path, patience: Mapping[str, float], config: Config, tables: Sequence[Table], node: int
    ) -> None:
        def make(on_frame: OnFrame, on_lost: OnLost) -> Transport:
            options: dict[str, Any] = {"connect_timeout": config.startup_timeout, **patience}
            return transport.create(config.transport, node, on_frame=on_frame, on_lost=on_lost, **options)

        super().__init__(config, tables, node, make)
        self._report = folder / f"node{node}"

    def ran(self) -> Ran:
        self.lane.validate()
        views = [[self.lane.inspect(i, row) for row in range(table.rows)] for i, table in enumerate(self._tables)]
        self._report.write_bytes(pickle.dumps(views))
        return super().ran()
