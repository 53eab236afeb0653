"""Two layers of GraphSAGE that classify nodes, and the blocks that they are trained on.

A node starts as a vector that is learned, plus the mean of the vectors of its words, if it has any. A layer makes a new
vector of the mean over the node and its neighbours ("GraphSAGE-GCN" of Hamilton et al., Inductive Representation
Learning on Large Graphs, 2017: with a weight of its own, a node of Cora would be learned by heart). In training a few
neighbours are drawn instead of all; a `Block` holds which, so all that a batch will read is known when it is made:

    seeds, to be classified  <-outer-  their drawn neighbours  <-inner-  nodes: the drawn neighbours of these

The module knows nothing of workers and tables: it is given whatever looks up vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from graph_data import Graph, Ints, Lists
from torch import nn

from adapm import ops


@dataclass(frozen=True)
class Settings:
    """What is trained, and how.

    Attributes:
        dim: floats of a node's or a word's vector.
        hidden: floats of a node's vector behind the first layer.
        epochs: passes over the nodes to train on.
        batch: nodes in a minibatch.
        fanout: neighbours that are drawn for a node, by layer, the outer one first.
        dropout: the share of numbers that each layer does without in training.
        learning_rate: of the vectors.
        dense_rate: of the layers.
    """

    dim: int
    hidden: int
    epochs: int
    batch: int
    fanout: tuple[int, int]
    dropout: float
    learning_rate: float
    dense_rate: float


# ---- blocks


@dataclass(frozen=True, eq=False)
class Block:
    """A batch.

    Attributes:
        nodes: all whose vectors are read, int64 [m], distinct.
        words: of all of these, one after the other, int64; word_starts: where each node's begin, [m]. None where nodes
            have no words.
        inner: int64 [those between, fanout]: of each, the places of its drawn neighbours among the nodes.
        outer: int64 [batch, fanout]: of each seed, the places of its drawn neighbours among those between.
        labels: of the seeds, int64 [batch].
    """

    nodes: torch.Tensor
    words: torch.Tensor | None
    word_starts: torch.Tensor | None
    inner: torch.Tensor
    outer: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        """The number of nodes that are to be classified."""
        return len(self.labels)


def blocks(graph: Graph, nodes: Ints, settings: Settings, rng: np.random.Generator) -> Iterator[Block]:
    """All epochs: in each every node exactly once, in a random order, and with newly drawn neighbours."""
    for _ in range(settings.epochs):
        shuffled = rng.permutation(nodes)
        for first in range(0, len(shuffled), settings.batch):
            yield block(graph, shuffled[first : first + settings.batch], settings.fanout, rng)


def block(graph: Graph, seeds: Ints, fanout: tuple[int, int], rng: np.random.Generator) -> Block:
    """The block by which these nodes are classified."""
    outer, between = _draw(graph.neighbours, seeds, fanout[0], rng)
    inner, nodes = _draw(graph.neighbours, between, fanout[1], rng)
    words = None if graph.words is None else graph.words.of(nodes)
    return Block(
        nodes=torch.from_numpy(nodes),
        words=None if words is None else torch.from_numpy(words.items),
        word_starts=None if words is None else torch.from_numpy(words.starts[:-1]),
        inner=inner,
        outer=outer,
        labels=torch.from_numpy(graph.labels[seeds]),
    )


def _draw(neighbours: Lists, nodes: Ints, fanout: int, rng: np.random.Generator) -> tuple[torch.Tensor, Ints]:
    """Draws so many neighbours of each node, with replacement: their places [n, fanout] in what is returned beside."""
    starts, lengths = neighbours.starts[nodes, np.newaxis], neighbours.lengths[nodes, np.newaxis]
    drawn = neighbours.items[starts + (rng.random((len(nodes), fanout)) * lengths).astype(np.int64)]
    distinct, places = ops.unique(drawn.ravel())
    return torch.from_numpy(places).reshape(drawn.shape), distinct


# ---- the model


class Sage(nn.Module):
    """The two layers, over given modules that look up vectors."""

    def __init__(self, vectors: nn.Module, words: nn.Module | None, layers: Layers) -> None:
        """Puts them together.

        Args:
            vectors: gives vectors [m, dim] for nodes [m].
            words: gives the means of the vectors of words, [m, dim], for words and where each node's begin, [m]; None
                where nodes have no words.
            layers: what makes scores of vectors.
        """
        super().__init__()
        self.vectors = vectors
        self.words = words
        self.layers = layers

    @property
    def looked_up(self) -> list[nn.Module]:
        """The modules that look up vectors."""
        return [self.vectors] if self.words is None else [self.vectors, self.words]

    def forward(self, block: Block) -> torch.Tensor:
        """The classes' scores [batch, classes] of the seeds."""
        start = self.vectors(block.nodes)
        if self.words is not None:
            start = start + self.words(block.words, block.word_starts)
        scores: torch.Tensor = self.layers(start, block.inner, block.outer)
        return scores


class Layers(nn.Module):
    """What makes scores of vectors."""

    def __init__(self, classes: int, settings: Settings) -> None:
        super().__init__()
        self.inner = nn.Linear(settings.dim, settings.hidden)
        self.outer = nn.Linear(settings.hidden, classes)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, start: torch.Tensor, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        """The classes' scores [batch, classes], from the vectors [m, dim] of a block's nodes."""
        between = torch.relu(self.inner(self.dropout(start)[inner].mean(dim=1)))
        scores: torch.Tensor = self.outer(self.dropout(between)[outer].mean(dim=1))
        return scores

    def of_all(self, start: torch.Tensor, neighbours: Lists) -> torch.Tensor:
        """The same of all nodes [nodes, classes], from all their neighbours instead of drawn ones, without dropout."""
        between = torch.relu(self.inner(means(start, neighbours)))
        scores: torch.Tensor = self.outer(means(between, neighbours))
        return scores


def means(vectors: torch.Tensor, which: Lists) -> torch.Tensor:
    """The mean of the vectors in each list; zeros for an empty one."""
    items, starts = torch.from_numpy(which.items), torch.from_numpy(which.starts[:-1])
    return nn.functional.embedding_bag(items, vectors, starts, mode="mean")


def correct(scores: torch.Tensor, graph: Graph, nodes: Ints) -> int:
    """How many of these nodes have their class as the best score; scores [nodes, classes] of all nodes."""
    return int((scores[nodes].argmax(dim=1).numpy() == graph.labels[nodes]).sum())
