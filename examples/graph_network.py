"""Two layers of GraphSAGE in PyTorch, trained by any number of workers on any number of nodes: what is each node?

    python examples/graph_network.py                                              one node, two workers, WordNet
    adapm run --nodes 2 --workers 2 examples/graph_network.py                     two nodes
    ADAPM_DATA=folder adapm run --nodes 2 --workers 2 examples/graph_network.py --data cora
    python examples/graph_network.py --plain                                      the same without a manager

(The nodes of the graph are what is classified; nodes of the cluster train.)  What it shows of adapm: the graph is cut
into one part for each worker, with few edges between, so that most of the vectors that a worker reads nobody else
reads, and they stay where they are. Neighbours are drawn when a block is made, some steps before its turn, and an
IntentLoader announces them: the parts of a block that have the names of the tables, "nodes" and "words". The model is
in graph_model.py, modules and optimizers in torch_twin.py, the data in graph_data.py, the parts in graph_partition.py,
what all examples share in session.py; README.md says what is reached.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import click
import graph_data
import graph_model
import graph_partition
import numpy as np
import session
import torch
import torch_twin
from graph_data import Graph, Ints
from graph_model import Layers, Sage, Settings
from rich.console import Console
from session import COUNT, Outcome, PlainOrBlocking
from torch.nn.functional import cross_entropy
from torch_twin import Trainer

import adapm
import adapm.torch

BY_WORDS = Settings(
    dim=64, hidden=64, epochs=30, batch=20, fanout=(10, 10), dropout=0.5, learning_rate=0.02, dense_rate=0.005
)
BY_NEIGHBOURS = Settings(
    dim=64, hidden=128, epochs=8, batch=512, fanout=(10, 10), dropout=0.3, learning_rate=0.1, dense_rate=0.003
)
SPREAD = 0.1  # standard deviation of the initial vectors


def train(worker: PlainOrBlocking, graph: Graph, settings: Settings, seed: int) -> Outcome:
    """What every worker runs: trains on the nodes of its part, then tests on its share of the others."""
    torch_twin.begin(seed, worker)
    mine, inside = part_of(worker, graph, seed)
    model = model_for(worker, graph, settings, seed)
    trainer = Trainer(worker, model.looked_up, model.layers, settings.learning_rate, settings.dense_rate)
    blocks = torch_twin.announced(graph_model.blocks(graph, mine, settings, worker.rng), worker)
    per_epoch = -(-len(mine) // settings.batch)
    trainer.meet()
    with session.Display(worker, settings.epochs, len(mine), "nodes") as display:
        for number, block in enumerate(blocks, start=1):
            loss = cross_entropy(model(block), block.labels)
            trainer.step(loss)
            display.learned(loss.item() * len(block), len(block))
            if number % per_epoch == 0:
                trainer.meet()
                display.end_epoch()
    statistics = torch_twin.counted(worker)
    trainer.meet()  # nobody reads whole tables before everybody's counters have been read
    return display.outcome(worker, statistics, measured={"inside": inside, **test(worker, model, graph)})


def part_of(worker: PlainOrBlocking, graph: Graph, seed: int) -> tuple[Ints, float]:
    """The nodes that this worker trains on, and the share of the edges within a part; all workers cut alike."""
    busy = np.zeros(graph.nodes, np.bool_)
    busy[graph.train] = True
    part = graph_partition.partition(graph.neighbours, busy, worker.num_workers, seed)
    mine = graph.train[part[graph.train] == worker.id]
    if not len(mine):
        problem = f"{graph.name} has {len(graph.train)} nodes to train on, and worker {worker.id} got none"
        raise adapm.errors.DataError(f"{problem}: start fewer workers")
    return mine, graph_partition.inside(graph.neighbours, part)


@torch.no_grad()
def test(worker: PlainOrBlocking, model: Sage, graph: Graph) -> dict[str, tuple[int, int]]:
    """Of this worker's share of the nodes not trained on: how many are classified correctly, of how many."""
    start = torch_twin.values(worker, model.vectors)
    if graph.words is not None:
        start = start + graph_model.means(torch_twin.values(worker, model.words), graph.words)
    model.eval()
    scores = model.layers.of_all(start, graph.neighbours)
    share = slice(worker.id, None, worker.num_workers)
    return {
        name: (graph_model.correct(scores, graph, nodes[share]), len(nodes[share]))
        for name, nodes in (("valid", graph.valid), ("test", graph.test))
    }


def model_for(worker: PlainOrBlocking, graph: Graph, settings: Settings, seed: int) -> Sage:
    """The model, over modules that suit the worker."""
    nodes, *words, _ = tables_for(graph, settings, seed)
    vectors = torch_twin.embedding(worker, nodes)
    of_words = torch_twin.bag(worker, words[0], "mean") if words else None
    return Sage(vectors, of_words, layers_for(graph, settings, seed))


def tables_for(graph: Graph, settings: Settings, seed: int) -> list[adapm.Table]:
    """The model's tables: vectors of nodes, those of words if there are any, and the dense layers.

    Where there are words, a node's own vector begins at zero: nothing is known of it but its words.
    """
    dense = adapm.torch.dense_table(layers_for(graph, settings, seed))
    random = adapm.normal(std=SPREAD)
    if graph.words is None:
        return [torch_twin.table("nodes", graph.nodes, settings.dim, random, graph.neighbours.items), dense]
    nodes = torch_twin.table("nodes", graph.nodes, settings.dim, adapm.constant(0.0), graph.neighbours.items)
    words = torch_twin.table("words", graph.vocabulary, settings.dim, random, graph.words.items)
    return [nodes, words, dense]


def layers_for(graph: Graph, settings: Settings, seed: int) -> Layers:
    """The dense layers, with the same initial values in all processes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Layers(graph.classes, settings)


# ---- what is seen at the end

QUALITY = (
    ("test accuracy", "{accuracy:.2%}"),
    ("validation accuracy", "{validation_accuracy:.2%}"),
    ("nodes trained on, tested", "{trained:,}, {tested:,}"),
    ("edges within a worker's part", "{inside:.1%}"),
)
CAPTION = "the loss is the cross entropy; the test uses all neighbours"


def quality(outcomes: list[Outcome]) -> dict[str, Any]:
    """What the test showed, over the workers that this call started."""
    measured = [outcome.measured for outcome in outcomes]
    right, tested = (sum(figures) for figures in zip(*(each["test"] for each in measured), strict=True))
    chosen, of = (sum(figures) for figures in zip(*(each["valid"] for each in measured), strict=True))
    return {
        "accuracy": right / max(1, tested),
        "validation_accuracy": chosen / max(1, of),
        "tested": tested,
        "trained": sum(outcome.seen // len(outcome.epoch_seconds) for outcome in outcomes),
        "inside": measured[0]["inside"],
    }


# ---- the command


def settings_for(graph: Graph, chosen: dict[str, Any]) -> Settings:
    """The settings that suit the graph, but for those chosen (not None)."""
    suited = BY_NEIGHBOURS if graph.words is None else BY_WORDS
    return session.with_chosen(suited, chosen)


@click.command(epilog="What is not given is chosen to suit the data.")
@click.option("--data", default="wordnet", show_default=True, help="wordnet, cora, or a folder with edges and labels.")
@click.option("--split", type=session.ANY, default=0, show_default=True, help="Which nodes are the test (not of cora).")
@click.option("--dim", type=COUNT, help="Floats of a node's or a word's vector.")
@click.option("--hidden", type=COUNT, help="Floats behind the first layer.")
@click.option("--epochs", type=COUNT, help="Passes over the nodes to train on.")
@click.option("--batch", type=COUNT, help="Nodes in a minibatch.")
@click.option("--fanout", type=(COUNT, COUNT), help="Neighbours that are drawn for a node: of the seeds, of these.")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), help="What layers do without in training.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="AdaGrad's, of the vectors.")
@click.option("--dense-rate", type=click.FloatRange(min=0, min_open=True), help="Adam's, of the layers.")
@session.common_options
def main(data: str, split: int, seed: int, plain: bool, as_json: bool, **chosen: Any) -> None:
    """Learns to classify the nodes of a graph, and tests how well it classifies others."""
    started = time.perf_counter()
    with session.complaints():
        graph = graph_data.load(data, split)
    settings = settings_for(graph, chosen)
    outcomes = session.run(train, tables_for(graph, settings, seed), (graph, settings, seed), seed, plain)
    figures = {**quality(outcomes), **session.summary(outcomes, "nodes", time.perf_counter() - started)}
    session.report(outcomes, {"accuracy": figures["accuracy"]}, {})
    if as_json:
        said = {"data": graph.name, "split": split, "seed": seed, **dataclasses.asdict(settings)}
        print(json.dumps({**said, **figures}))
    else:
        size = f"{graph.nodes:,} nodes, {graph.edges:,} edges, {graph.classes} classes"
        Console().print(session.closing_table(f"{graph.name}: {size}", QUALITY, "nodes", CAPTION, figures))


if __name__ == "__main__":
    main()
