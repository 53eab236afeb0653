"""Knowledge-graph embeddings: ComplEx with AdaGrad, trained by any number of workers on any number of nodes.

    python examples/knowledge_graph.py                                                       one node, two workers, UMLS
    adapm run --nodes 2 --workers 1 examples/knowledge_graph.py --data umls                  two nodes
    ADAPM_DATA=... adapm run --nodes 2 --workers 2 examples/knowledge_graph.py --data wn18rr
    python examples/knowledge_graph.py --plain                                               the same without a manager

What it shows of adapm is in `train` and `learn`: the optimizer's state is a column group beside the embeddings,
`adapm.ahead` signals every batch's rows before their turn, and pull and push then find them on this machine. The
mathematics is in kg_model.py, the data in kg_data.py, what stands in for a worker where there is no manager in
plain.py, how it is started and shown in session.py; README.md says which settings reach what.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from typing import Any

import click
import kg_data
import kg_model
import numpy as np
import numpy.typing as npt
import session
from kg_model import Batch, Settings
from rich.console import Console
from session import COUNT, AnyWorker, Outcome

import adapm
from adapm import ops

SMALL = Settings(dim=64, epochs=20, batch=128, negatives=0, chunk=0, loss="softmax", learning_rate=0.2, n3=0.01)
LARGE = Settings(dim=128, epochs=10, batch=256, negatives=256, chunk=0, loss="softmax", learning_rate=0.2, n3=0.07)
SMALL_MEANS = 1000  # entities: up to here it costs little to compare an answer with all of them
SPREAD = 0.1  # standard deviation of the initial embeddings


async def train(worker: AnyWorker, graph: kg_data.Graph, settings: Settings, seed: int) -> Outcome:
    """What every worker runs: trains on its share of the triples, then tests on its share of the test questions."""
    share = kg_model.share_of(graph.train, worker.id, worker.num_workers, seed)
    if not len(share):
        raise adapm.errors.DataError(f"{graph.name} has {len(graph.train)} triples to train on, fewer than workers")
    per_epoch = kg_model.batches_per_epoch(len(share), settings)
    batches = itertools.chain.from_iterable(
        kg_model.batches(share, graph.entities, graph.relations, settings, worker.rng) for _ in range(settings.epochs)
    )
    await worker.barrier()
    with session.Display(worker, settings.epochs, len(share), "triples") as display:
        for number, batch in enumerate(session.announced(batches, worker, keys=rows_of), start=1):
            loss = await learn(worker, batch, settings, graph.entities)
            display.learned(loss / 2, len(batch) // 2)  # a triple asks two questions, and the loss is that of one
            if number % per_epoch == 0:
                await worker.barrier()
                display.end_epoch()
    statistics = await session.counted(worker)
    return display.outcome(worker, statistics, measured=await test(worker, graph))


def rows_of(batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
    """The rows that a batch reads and changes: drawn with the batch, hence known ahead."""
    return {"entities": batch.entities, "relations": batch.relations}


async def learn(worker: AnyWorker, batch: Batch, settings: Settings, population: int) -> float:
    """One step: pulls [value | adagrad], computes, pushes what is to be added to both. Returns the loss."""
    dim, rate = settings.dim, settings.learning_rate
    pulling = worker.pull("entities", batch.entities), worker.pull("relations", batch.relations)  # both are under way
    entities, relations = await pulling[0], await pulling[1]
    loss, of_entities, of_relations = batch.gradients(entities[:, :dim], relations[:, :dim], settings, population)
    pushing = (
        worker.push("entities", batch.entities, ops.adagrad(entities, batch.entity_places, of_entities, rate)),
        worker.push("relations", batch.relations, ops.adagrad(relations, batch.relation_places, of_relations, rate)),
    )
    for push in pushing:
        await push
    return loss


async def test(worker: AnyWorker, graph: kg_data.Graph) -> tuple[npt.NDArray[np.float64], kg_model.Floats]:
    """Filtered ranks and evaluation losses of this worker's part of the test questions."""
    mine = slice(worker.id, None, worker.num_workers)
    questions = kg_model.both_ways(graph.test, graph.relations)
    wrong = np.random.default_rng(0).integers(graph.entities, size=(len(questions), kg_model.JUDGED))
    triples = np.concatenate([graph.train, graph.valid, graph.test])
    known = kg_model.Answers(kg_model.both_ways(triples, graph.relations), 2 * graph.relations)
    model = await worker.read_table("entities", "value"), await worker.read_table("relations", "value")
    return (
        kg_model.ranks(questions[mine], *model, known),
        kg_model.evaluation_losses(questions[mine], wrong[mine], *model),
    )


def tables_for(graph: kg_data.Graph, dim: int) -> list[adapm.Table]:
    """The model's tables. Relations have a second row for the question asked backwards."""
    columns = {"value": dim, "adagrad": dim}
    init = {"value": adapm.normal(std=SPREAD)}
    entities = np.bincount(graph.train[:, [0, 2]].ravel(), minlength=graph.entities)
    relations = np.tile(np.bincount(graph.train[:, 1], minlength=graph.relations), 2)
    return [
        adapm.Table("entities", rows=graph.entities, columns=columns, init=init, counts=entities),
        adapm.Table("relations", rows=2 * graph.relations, columns=columns, init=init, counts=relations),
    ]


# ---- what is seen at the end

QUALITY = (
    ("test MRR", "{mrr:.4f}"),
    ("Hits@1", "{hits_at_1:.4f}"),
    ("Hits@3", "{hits_at_3:.4f}"),
    ("Hits@10", "{hits_at_10:.4f}"),
    ("questions ranked", "{questions:,}"),
    ("evaluation loss (logistic)", "{evaluation_loss:.3f}"),
)
CAPTION = "ranks: ties count half, other right answers not at all"


def quality(outcomes: list[Outcome]) -> dict[str, Any]:
    """What the test showed, over the workers that this call started."""
    ranks, judged = (np.concatenate(parts) for parts in zip(*(outcome.measured for outcome in outcomes), strict=True))
    return {"questions": len(ranks), **kg_model.quality(ranks), "evaluation_loss": float(np.mean(judged))}


# ---- the command


def settings_for(graph: kg_data.Graph, chosen: dict[str, Any]) -> Settings:
    """The settings that suit the graph, but for those chosen (not None)."""
    suited = SMALL if graph.entities <= SMALL_MEANS else LARGE
    return session.with_chosen(suited, chosen)


def _even(_: click.Context, __: click.Parameter, dim: int | None) -> int | None:
    if dim is not None and dim % 2:
        raise click.BadParameter(f"{dim} is odd, but two floats make a complex number")
    return dim


@click.command(epilog="What is not given is chosen to suit the size of the data.")
@click.option(
    "--data", default="umls", show_default=True, help="umls, kinships, nations, wn18rr, or a folder of files."
)
@click.option("--dim", type=COUNT, callback=_even, help="Floats in an embedding.")
@click.option("--epochs", type=COUNT, help="Passes over the training triples.")
@click.option("--batch", type=COUNT, help="Triples in a minibatch.")
@click.option("--negatives", type=session.ANY, help="Wrong answers drawn; 0 takes all entities.")
@click.option(
    "--chunk",
    type=session.ANY,
    help="Questions that share negatives (a triple asks two); 0: the whole batch, 1: each has its own.",
)
@click.option("--loss", type=click.Choice(kg_model.LOSSES), help="One right answer among many, or each right or wrong.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Of AdaGrad.")
@click.option("--n3", type=click.FloatRange(min=0), help="Weight of the N3 regularisation.")
@session.common_options
def main(data: str, seed: int, plain: bool, as_json: bool, **chosen: Any) -> None:
    """Trains ComplEx embeddings of a knowledge graph and tests them by link prediction."""
    started = time.perf_counter()
    with session.complaints():
        graph = kg_data.load(data)
    settings = settings_for(graph, chosen)
    outcomes = session.run(train, tables_for(graph, settings.dim), (graph, settings, seed), seed, plain)
    figures = {**quality(outcomes), **session.summary(outcomes, "triples", time.perf_counter() - started)}
    session.report(outcomes, {"MRR": figures["mrr"], "Hits@10": figures["hits_at_10"]}, {})
    if as_json:
        print(json.dumps({"data": graph.name, "seed": seed, **dataclasses.asdict(settings), **figures}))
    else:
        size = f"{graph.entities:,} entities, {graph.relations:,} relations, {len(graph.train):,} training triples"
        Console().print(session.closing_table(f"{graph.name}: {size}", QUALITY, "triples", CAPTION, figures))


if __name__ == "__main__":
    main()
