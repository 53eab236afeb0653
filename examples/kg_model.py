"""ComplEx on plain float32 arrays: batches, gradients, ranks. Nothing here knows of workers and tables.

A triple (head, relation, tail) asks two questions, and ComplEx (Trouillon et al. 2016) is trained and tested on both:

    (head, relation)               -> tail
    (tail, relation + relations)   -> head          a reciprocal relation (Lacroix et al. 2018) is asked backwards

So everything works on *questions* with a start, a relation and an answer; a triple's second question starts at the
answer to its first, and the other way round. An embedding of `dim` floats is read as dim/2 complex numbers. The score
of an entity y as the answer is the real part of <start * relation, conj(y)>, the plain dot product of the floats of
start * relation and of y: scoring many candidates is one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adapm import ops

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]  # float32, but float64 works just as well
Complex = npt.NDArray[np.complexfloating]

RANKED_AT_ONCE = 256  # questions; bounds the scores held at once to this many rows of one float per entity
JUDGED = 6  # wrong answers to each question that the evaluation loss looks at


@dataclass(frozen=True)
class Settings:
    """What is trained, and how.

    Attributes:
        dim: floats in an embedding; even.
        epochs: passes over the training triples.
        batch: triples in a minibatch.
        negatives: entities drawn, uniformly, as wrong answers; 0 takes all entities (1-vs-all).
        chunk: questions that share one draw of negatives; 1 draws for each question, 0 once for the whole batch.
        loss: "softmax" (one right answer among the negatives) or "logistic" (right or wrong, each on its own).
        learning_rate: AdaGrad's.
        n3: weight of the nuclear 3-norm, the sum of |z|**3 over the complex numbers of a question's three embeddings.
    """

    dim: int
    epochs: int
    batch: int
    negatives: int
    chunk: int
    loss: str
    learning_rate: float
    n3: float


def both_ways(triples: Ints, relations: int) -> Ints:
    """The questions of triples [n, 3]: int64 [2n, 3] of start, relation and answer, first all forwards ones."""
    head, relation, tail = triples.T
    return np.concatenate([triples, np.stack([tail, relation + relations, head], axis=1)])


def share_of(triples: Ints, worker: int, workers: int, seed: int) -> Ints:
    """This worker's part of the triples.

    The parts of all workers are disjoint, cover everything and differ in size by at most one.
    """
    order = np.random.default_rng(seed).permutation(len(triples))
    return triples[order[worker::workers]]


# ---- a minibatch


class Batch:
    """Triples asked both ways, with negatives. All keys are known once it is made, so a worker can announce them ahead.

    Attributes:
        entities, relations: int64, the distinct keys that it reads and changes.
        entity_places, relation_places: of each gradient row, the position in `entities` or `relations`.
        starts: where in `entities` the questions start, [questions].
        negatives: where in `entities` their wrong answers are, [chunks, k].
    """

    def __init__(self, triples: Ints, relations: int, negatives: Ints) -> None:
        """Makes a batch of 2n questions.

        Args:
            triples: int64 [n, 3].
            relations: how many there are, reciprocal ones not counted.
            negatives: int64 [chunks, k]; each chunk is for the next ceil(2n / chunks) questions.
        """
        head, relation, tail = triples.T
        self.entities, self.entity_places = ops.unique(np.concatenate([head, tail, negatives.ravel()]))
        self.relations, self.relation_places = ops.unique(np.concatenate([relation, relation + relations]))
        self.starts = self.entity_places[: 2 * len(triples)]
        self.negatives = self.entity_places[2 * len(triples) :].reshape(negatives.shape)

    def __len__(self) -> int:
        """The number of questions."""
        return len(self.starts)

    def gradients(
        self, entities: Floats, relations: Floats, settings: Settings, population: int
    ) -> tuple[float, Floats, Floats]:
        """The loss, and gradient rows for `entity_places` and `relation_places`; those of one place are to be added up.

        The loss is summed over the questions, without the regularisation; the gradients include it.

        Args:
            entities: [number of keys, dim], the embeddings of the batch's entities.
            relations: the same of its relations.
            settings: loss and n3 are used.
            population: how many entities the negatives were drawn from.
        """
        start, relation = _complex(entities[self.starts]), _complex(relations[self.relation_places])
        answer, negatives = _other_way(_floats(start)), entities[self.negatives]

        asked = _floats(start * relation)
        parts = self._parted(asked)
        right, wrong = np.einsum("nd,nd->n", asked, answer), parts @ negatives.transpose(0, 2, 1)
        self._forget_accidental_hits(wrong)
        loss = _LOSSES[settings.loss](right, self._joined(wrong), population)

        right = right[:, np.newaxis]
        of_asked = _complex(right * answer + self._joined(wrong @ negatives))
        of_entities = np.empty((len(self.entity_places), entities.shape[1]), entities.dtype)
        of_start, of_negatives = of_entities[: len(self)], of_entities[len(self) :].reshape(negatives.shape)
        np.add(_floats(of_asked * relation.conj()), _other_way(right * asked), out=of_start)
        _multiply(wrong, parts, out=of_negatives)
        of_relation = _floats(of_asked * start.conj())
        if settings.n3:
            of_start += 2 * n3_gradient(start, settings.n3)  # as the start, and as the answer to the other question
            of_relation += n3_gradient(relation, settings.n3)
        return loss, of_entities, of_relation

    @property
    def _part(self) -> int:
        """Questions that share negatives."""
        return -(-len(self) // len(self.negatives))

    def _parted(self, rows: Floats, fill: int = 0) -> Floats:
        """[questions, ...] cut into [chunks, questions that share negatives, ...], the last one filled up."""
        missing = len(self.negatives) * self._part - len(rows)
        if missing:
            rows = np.concatenate([rows, np.full((missing, *rows.shape[1:]), fill, rows.dtype)])
        return rows.reshape(len(self.negatives), self._part, *rows.shape[1:])

    def _joined(self, parts: Floats) -> Floats:
        """The way back, without copying."""
        return parts.reshape(-1, parts.shape[2])[: len(self)]

    def _forget_accidental_hits(self, wrong: Floats) -> None:
        """A negative that is the right answer is not wrong: its score becomes one that no softmax or sigmoid sees."""
        answers = self._parted(_other_way(self.starts), fill=-1)
        wrong[answers[:, :, np.newaxis] == self.negatives[:, np.newaxis, :]] = -np.inf


def batches(
    triples: Ints, entities: int, relations: int, settings: Settings, rng: np.random.Generator
) -> Iterator[Batch]:
    """One epoch: the triples in a random order, every one exactly once, in minibatches with fresh negatives."""
    shuffled = triples[rng.permutation(len(triples))]
    for begin in range(0, len(shuffled), settings.batch):
        some = shuffled[begin : begin + settings.batch]
        chunks = 1 if settings.chunk == 0 else -(-2 * len(some) // settings.chunk)
        if settings.negatives:
            negatives = rng.integers(entities, size=(chunks, settings.negatives))
        else:
            negatives = np.arange(entities).reshape(1, -1)
        yield Batch(some, relations, negatives)


def batches_per_epoch(triples: int, settings: Settings) -> int:
    """How many batches `batches` makes of this many triples."""
    return -(-triples // settings.batch)


# ---- losses: each takes scores [n] and [n, k], puts the derivatives for them in their place, and returns the loss


def _softmax(right: Floats, wrong: Floats, population: int) -> float:
    # Each of the k negatives stands for population / k entities, so this estimates the loss over all of them.
    wrong += np.float32(np.log(population / wrong.shape[1]))
    top = np.maximum(right, wrong.max(axis=1))
    right -= top
    wrong -= top[:, np.newaxis]
    loss = -float(right.sum())
    np.exp(right, out=right)
    np.exp(wrong, out=wrong)
    total = right + wrong.sum(axis=1)
    loss += float(np.log(total).sum())
    right /= total
    right -= 1
    wrong /= total[:, np.newaxis]
    return loss


def _logistic(right: Floats, wrong: Floats, population: int) -> float:
    loss = float(_softplus(-right).sum()) + float(_softplus(wrong).sum())
    right[:] = -_sigmoid(-right)
    wrong[:] = _sigmoid(wrong)
    return loss


_LOSSES = {"softmax": _softmax, "logistic": _logistic}
LOSSES = tuple(_LOSSES)


def _softplus(x: Floats) -> Floats:
    """log(1 + exp(x)), of large numbers too; several times faster than np.logaddexp(0, x)."""
    result: Floats = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return result


def _sigmoid(x: Floats) -> Floats:
    halves: Floats = 0.5 * x
    return 0.5 + 0.5 * np.tanh(halves)  # unlike 1 / (1 + exp(-x)) never overflows


# ---- parts of the gradient


def _complex(floats: Floats) -> Complex:
    return np.ascontiguousarray(floats).view(np.result_type(floats, np.complex64))


def _floats(numbers: Complex) -> Floats:
    return numbers.view(numbers.real.dtype)


def _other_way(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What belongs to each question, for the question that its triple asks the other way round."""
    half = len(rows) // 2
    return np.concatenate([rows[half:], rows[:half]])


def _multiply(left: Floats, right: Floats, out: Floats) -> None:
    """The matrix products of left [chunks, q, k], transposed, and right [chunks, q, d]: [chunks, k, d]."""
    if left.shape[1] == 1:  # a column by a row: there is nothing to sum, and a call of BLAS for each costs more
        np.einsum("cqk,cqd->ckd", left, right, out=out)
    else:
        np.matmul(left.transpose(0, 2, 1), right, out=out)


def n3_gradient(numbers: Complex, weight: float) -> Floats:
    """The gradient of weight * sum |z|**3, as floats."""
    return _floats(np.abs(numbers) * numbers) * np.float32(3 * weight)


# ---- quality


class Answers:
    """All right answers to every question, over all parts of a data set: what a filtered rank leaves out."""

    def __init__(self, questions: Ints, relations: int) -> None:
        """questions: int64 [n, 3]; relations: how many there are, reciprocal ones included."""
        self._relations = relations
        codes = self._codes(questions)
        order = np.argsort(codes, kind="stable")
        self._codes_ascending, self._answers = codes[order], questions[order, 2]

    def _codes(self, questions: Ints) -> Ints:
        return questions[:, 0] * self._relations + questions[:, 1]

    def of(self, questions: Ints) -> tuple[Ints, Ints]:
        """Pairs (position of the question, one right answer to it), as two arrays."""
        codes = self._codes(questions)
        begins = np.searchsorted(self._codes_ascending, codes, side="left")
        counts = np.searchsorted(self._codes_ascending, codes, side="right") - begins
        asked = np.repeat(np.arange(len(questions)), counts)
        nth = np.arange(len(asked)) - np.repeat(np.cumsum(counts) - counts, counts)
        return asked, self._answers[begins[asked] + nth]


def ranks(questions: Ints, entities: Floats, relations: Floats, known: Answers) -> npt.NDArray[np.float64]:
    """The filtered rank of each question's answer among all entities, float64 [n]; 1 is best.

    Filtered: other right answers do not count. Ties: the mean of the best and the worst rank that the answer could get,
    so a model that scores everything the same is as good as chance. A score that is not a number ties with all.

    Args:
        questions: int64 [n, 3].
        entities: the embeddings of all, [entities, dim].
        relations: the embeddings of all, reciprocal ones included, [2 relations, dim].
        known: the right answers.
    """
    parts = [questions[begin : begin + RANKED_AT_ONCE] for begin in range(0, len(questions), RANKED_AT_ONCE)]
    return np.concatenate([np.empty(0), *(_ranks(part, entities, relations, known) for part in parts)])


def _ranks(questions: Ints, entities: Floats, relations: Floats, known: Answers) -> npt.NDArray[np.float64]:
    start, relation, answer = questions.T
    scores = _floats(_complex(entities[start]) * _complex(relations[relation])) @ entities.T
    itself = np.arange(len(questions)), answer
    right = scores[itself][:, np.newaxis]
    scores[itself] = scores[known.of(questions)] = -np.inf
    better = np.count_nonzero(scores > right, axis=1)
    worse = np.count_nonzero(scores < right, axis=1)
    return np.asarray(1 + (better + scores.shape[1] - worse) / 2, np.float64)


def evaluation_losses(questions: Ints, wrong: Ints, entities: Floats, relations: Floats) -> Floats:
    """How badly each question is judged: the logistic loss, its mean over the right answer and some wrong ones, [n].

    Unlike the training loss it does not depend on how the model was trained, so models can be compared by it, if they
    were trained to tell right from wrong: a softmax knows only better and worse.

    Args:
        questions: int64 [n, 3].
        wrong: int64 [n, k], the wrong answers.
        entities, relations: as for `ranks`.
    """
    start, relation, answer = questions.T
    asked = _floats(_complex(entities[start]) * _complex(relations[relation]))
    right = np.einsum("nd,nd->n", asked, entities[answer])
    losses: Floats = _softplus(-right) + _softplus(np.einsum("nd,nkd->nk", asked, entities[wrong])).sum(axis=1)
    return losses / (1 + wrong.shape[1])


def quality(ranks: npt.NDArray[np.float64]) -> dict[str, float]:
    """Mean reciprocal rank and Hits@1, 3, 10 of ranks [n]."""
    return {"mrr": float(np.mean(1 / ranks)), **{f"hits_at_{k}": float(np.mean(ranks <= k)) for k in (1, 3, 10)}}
