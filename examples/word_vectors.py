"""Word vectors: skip-gram with negative sampling, trained by any number of workers on any number of nodes.

    python examples/word_vectors.py                                                     one node, two workers, Wikipedia
    adapm run --nodes 2 --workers 1 examples/word_vectors.py                            two nodes
    adapm run --nodes 2 --workers 2 examples/word_vectors.py --data book.txt --output vectors.txt
    python examples/word_vectors.py --plain                                             the same without a manager

What it shows of adapm is in `train` and `learn`: a minibatch is a stretch of text whose frequent words have been
thinned out, so its rows are known; `adapm.ahead` announces them before their turn. The wrong answers are drawn, and
announced, by the manager: a sample for each batch. The mathematics is in wv_model.py, the texts in text_data.py, what
all examples share in session.py; README.md says what is reached. `--output` writes the vectors in word2vec's text
format, for gensim and others.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import session
import text_data
import wv_model
from rich.console import Console
from session import COUNT, AnyWorker, Outcome
from text_data import Corpus, Exercises
from wv_model import Batch, Settings, Text

import adapm
from adapm import ops

SMALL = Settings(dim=100, epochs=15, window=5, negatives=5, drawn=16, subsample=1e-3, batch=1600, learning_rate=0.1)
LARGE = dataclasses.replace(SMALL, epochs=3, batch=3200)
SMALL_MEANS = 1_000_000  # words of text


async def train(
    worker: AnyWorker, corpus: Corpus, exercises: Exercises | None, settings: Settings, output: str | None
) -> Outcome:
    """What every worker runs: trains on its share of the text, then tests."""
    text = Text(corpus, settings, worker.id, worker.num_workers)
    if not text.words:
        problem = f"{corpus.name} has {len(corpus.tokens)} words: fewer batches of {settings.batch} than workers"
        raise adapm.errors.DataError(f"{problem}; choose a smaller --batch")
    batches = session.announced(text.batches(worker.rng, draw_by(worker)), worker, keys=rows_of)
    await worker.barrier()
    with session.Display(worker, settings.epochs, text.words, "words") as display:
        for number, batch in enumerate(batches, start=1):
            display.learned(await learn(worker, batch, settings), batch.size)
            if number % text.batches_per_epoch == 0:
                await worker.barrier()
                display.end_epoch()
    statistics = await session.counted(worker)
    return display.outcome(worker, statistics, measured=await test(worker, corpus, exercises, settings, output))


def draw_by(worker: AnyWorker) -> wv_model.Draw:
    """Has the manager draw the wrong answers: one sample for each batch, that is, for each clock."""
    clocks = itertools.count(worker.clock)
    return lambda count: worker.prepare_sample("contexts", count, next(clocks)).keys


def rows_of(batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
    """The rows that a batch is known to read and change; of the sample the manager knows itself."""
    return {"words": batch.words, "contexts": batch.words}


async def learn(worker: AnyWorker, batch: Batch, settings: Settings) -> float:
    """One step: pulls [value | adagrad], computes, pushes what is to be added to both. Returns the loss."""
    dim, rate = settings.dim, settings.learning_rate
    pulling = worker.pull("words", batch.words), worker.pull("contexts", batch.contexts)  # both are under way
    words, contexts = await pulling[0], await pulling[1]
    loss, of_words, of_contexts = batch.gradients(words[:, :dim], contexts[:, :dim], settings.negatives)
    pushing = (
        worker.push("words", batch.words, ops.adagrad(words, batch.word_places, of_words, rate)),
        worker.push("contexts", batch.contexts, ops.adagrad(contexts, batch.context_places, of_contexts, rate)),
    )
    for push in pushing:
        await push
    return loss


def tables_for(corpus: Corpus, dim: int, technique: str = "preloc") -> list[adapm.Table]:
    """The model's tables: what a word is, and what it is as part of a context, where wrong answers are drawn."""
    columns = {"value": dim, "adagrad": dim}
    counts = corpus.counts
    wrong = adapm.Sampling(weights=wv_model.weights(counts), technique=technique)
    init = {"value": adapm.uniform(-0.5 / dim, 0.5 / dim)}
    return [
        adapm.Table("words", len(counts), columns=columns, init=init, counts=counts),
        adapm.Table("contexts", len(counts), columns=columns, sampling=wrong, counts=counts),
    ]


# ---- the test


@dataclass(frozen=True)
class Measured:
    """What the test showed.

    Attributes:
        losses: evaluation losses of this worker's part of the pairs, [n].
        solved: the figures of the exercises, the same of all workers.
    """

    losses: wv_model.Floats
    solved: dict[str, float]


async def test(
    worker: AnyWorker, corpus: Corpus, exercises: Exercises | None, settings: Settings, output: str | None
) -> Measured:
    """Evaluates the vectors; worker 0 writes them, too."""
    words, contexts = await worker.read_table("words", "value"), await worker.read_table("contexts", "value")
    if output is not None and worker.id == 0:
        write(output, corpus.words, words)
    mine = slice(worker.id, None, worker.num_workers)
    losses = wv_model.evaluation_losses(corpus, settings, words, contexts, mine)
    return Measured(losses, {} if exercises is None else solve(exercises, words))


def solve(exercises: Exercises, words: wv_model.Floats) -> dict[str, float]:
    """The figures of the exercises of which enough words are known."""
    directions = wv_model.directions(words)
    figures: dict[str, float] = {}
    for name, (pairs, scores) in exercises.similarities.items():
        if len(pairs) > 1:
            figures |= {name: wv_model.similarity(directions, pairs, scores), f"{name}_pairs": len(pairs)}
    if len(exercises.analogies):
        right = wv_model.analogies_right(directions, exercises.analogies)
        figures |= {"analogies": right / len(exercises.analogies), "analogies_asked": len(exercises.analogies)}
    return figures


def write(path: str, words: list[str], vectors: wv_model.Floats) -> None:
    """Writes vectors [words, dim] in word2vec's text format: a line with both numbers, then a line for each word."""
    line = " ".join(["%s"] + ["%.6g"] * vectors.shape[1]) + "\n"
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{len(vectors)} {vectors.shape[1]}\n")
        file.writelines(line % (word, *vector) for word, vector in zip(words, vectors.tolist(), strict=True))


# ---- what is seen at the end

CAPTION = "the loss is that of all pairs of a word, right and drawn; the evaluation loss that of one pair"


def quality(outcomes: list[Outcome]) -> dict[str, float]:
    """What the test showed, over the workers that this call started."""
    losses = np.concatenate([outcome.measured.losses for outcome in outcomes])
    return {"evaluation_loss": float(np.mean(losses)), **outcomes[0].measured.solved}


def quality_lines(figures: dict[str, Any]) -> session.Lines:
    """What the closing table says of the quality."""
    shown = [("evaluation loss", "{evaluation_loss:.3f}")]
    for name in text_data.SIMILARITIES:
        if name in figures:
            shown.append((f"{name}, Spearman", f"{{{name}:.3f}} of {{{name}_pairs}} pairs"))
    if "analogies" in figures:
        shown.append(("analogies solved", "{analogies:.2%} of {analogies_asked:,}"))
    return shown


# ---- the command


def settings_for(corpus: Corpus, chosen: dict[str, Any]) -> Settings:
    """The settings that suit the text, but for those chosen (not None)."""
    return session.with_chosen(SMALL if len(corpus.tokens) <= SMALL_MEANS else LARGE, chosen)


def _writable(_: click.Context, __: click.Parameter, output: str | None) -> str | None:
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(Path(output).absolute().parent)!r}; make it first")
    return output and str(Path(output).absolute())


@click.command(epilog="What is not given is chosen to suit the size of the text.")
@click.option("--data", default="wikipedia", show_default=True, help="wikipedia, or a file with text.")
@click.option("--min-count", type=COUNT, default=5, show_default=True, help="Leave out words that appear less often.")
@click.option("--dim", type=COUNT, help="Floats in a vector.")
@click.option("--epochs", type=COUNT, help="Passes over the text.")
@click.option("--window", type=COUNT, help="Words on either side that are context, at most.")
@click.option("--negatives", type=COUNT, help="Wrong answers that count against each right one.")
@click.option("--drawn", type=COUNT, help=f"Wrong answers drawn for {wv_model.CHUNK} words together.")
@click.option("--subsample", type=click.FloatRange(min=0), help="Share from which words are thinned out; 0: none are.")
@click.option("--batch", type=COUNT, help="Words in a minibatch, about.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Of AdaGrad.")
@click.option(
    "--sampling",
    type=click.Choice(["naive", "preloc", "pool"]),
    default="preloc",
    show_default=True,
    help="How the manager draws wrong answers (docs/sampling.md).",
)
@click.option(
    "--exercises/--no-exercises",
    default=None,
    help="Test with WordSim-353, SimLex-999 and analogies.  [default: with wikipedia only]",
)
@click.option("--output", type=click.Path(dir_okay=False), callback=_writable, help="Write the vectors to this file.")
@session.common_options
def main(
    data: str,
    min_count: int,
    sampling: str,
    exercises: bool | None,
    output: str | None,
    seed: int,
    plain: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Trains word vectors on a text, and tests how well they know which words are alike."""
    started = time.perf_counter()
    with session.complaints():
        corpus = text_data.load(data, min_count)
        asked = data == "wikipedia" if exercises is None else exercises
        known = text_data.exercises(corpus.words) if asked else None
    settings = settings_for(corpus, chosen)
    tables = tables_for(corpus, settings.dim, sampling)
    outcomes = session.run(train, tables, (corpus, known, settings, output), seed, plain)
    figures = {**quality(outcomes), **session.summary(outcomes, "words", time.perf_counter() - started)}
    solved = {name: figures[name] for name in (*text_data.SIMILARITIES, "analogies") if name in figures}
    session.report(outcomes, solved, {"evaluation loss": figures["evaluation_loss"]})
    if as_json:
        settled = {
            "data": corpus.name,
            "min_count": min_count,
            "sampling": sampling,
            "seed": seed,
            **dataclasses.asdict(settings),
        }
        print(json.dumps({**settled, **figures}))
    else:
        size = f"{len(corpus.words):,} different words, {len(corpus.tokens):,} in all"
        table = session.closing_table(f"{corpus.name}: {size}", quality_lines(figures), "words", CAPTION, figures)
        Console().print(table)


if __name__ == "__main__":
    main()
