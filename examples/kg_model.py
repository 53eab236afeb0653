"""ComplEx on plain float32 arrays: batches, gradients, AdaGrad, ranks. Nothing here knows of adapm.

A triple (head, relation, tail) asks two questions, and ComplEx (Trouillon et al. 2016) is trained and tested on both:

    (head, relation)               -> tail
    (tail, relation + relations)   -> head          a reciprocal relation (Lacroix et al. 2018) is asked backwards

So everything works on *questions*, int64 [n, 3] with columns start, relation, answer. An embedding of `dim` floats is
read as dim/2 complex numbers. The score of an entity y as the answer is the real part of <start * relation, conj(y)>,
the plain dot product of the floats of start * relation and of y: scoring many candidates is one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]  # float32, but float64 works just as well
Complex = npt.NDArray[np.complexfloating]

RANKED_AT_ONCE = 256  # questions; bounds the scores held at once to this many rows of one float per entity


@dataclass(frozen=True)
class Settings:
    """What is trained, and how.

    Attributes:
        dim: floats in an embedding; even.
        epochs: passes over the training triples.
        batch: triples in a minibatch.
        negatives: entities drawn, uniformly, as wrong answers; 0 takes all entities (1-vs-all).
        chunk: triples that share one draw of negatives; 1 draws for each triple, 0 once for the whole batch.
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
    """The two questions of each triple, one after the other: int64 [2n, 3]."""
    head, relation, tail = triples.T
    forwards, backwards = (head, relation, tail), (tail, relation + relations, head)
    return np.stack([np.stack(forwards, axis=1), np.stack(backwards, axis=1)], axis=1).reshape(-1, 3)


def share_of(triples: Ints, worker: int, workers: int, seed: int) -> Ints:
    """This worker's part of the triples.

    The parts of all workers are disjoint, cover everything and differ in size by at most one.
    """
    order = np.random.default_rng(seed).permutation(len(triples))
    return triples[order[worker::workers]]


# ---- a minibatch


class Distinct:
    """The distinct ones of some keys, and the ways there and back.

    Attributes:
        keys: int64, the distinct keys, ascending.
        places: the given keys' positions in `keys`, in the shape they were given.
    """

    def __init__(self, given: Ints) -> None:
        self._order = np.argsort(given, axis=None, kind="stable")
        ascending = given.ravel()[self._order]
        first = np.empty(len(ascending), dtype=bool)
        first[:1] = True
        np.not_equal(ascending[1:], ascending[:-1], out=first[1:])
        self._begins = np.flatnonzero(first)
        self.keys: Ints = ascending[self._begins]
        self.places = np.empty(given.shape, dtype=np.int32)
        self.places.ravel()[self._order] = np.cumsum(first) - 1

    def sum(self, rows: Floats) -> Floats:
        """Sums what belongs to the same key: [number of given keys, dim] to [number of distinct keys, dim]."""
        return np.add.reduceat(rows[self._order], self._begins, axis=0)


class Batch:
    """Questions with their negatives. All keys are known as soon as it is made, so a worker can announce them ahead.

    Attributes:
        entities, relations: int64, the distinct keys that it reads and changes.
    """

    def __init__(self, questions: Ints, negatives: Ints) -> None:
        """Makes a batch.

        Args:
            questions: int64 [n, 3].
            negatives: int64 [chunks, k]; each chunk is for the next ceil(n / chunks) questions.
        """
        size = len(questions)
        start, relation, answer = questions.T
        self._entities = Distinct(np.concatenate([start, answer, negatives.ravel()]))
        self._relations = Distinct(relation)
        self.entities, self.relations = self._entities.keys, self._relations.keys
        self.start, self.answer = self._entities.places[:size], self._entities.places[size : 2 * size]
        self.negatives = self._entities.places[2 * size :].reshape(negatives.shape)
        self.relation = self._relations.places

    def __len__(self) -> int:
        return len(self.start)

    def gradients(
        self, entities: Floats, relations: Floats, settings: Settings, population: int
    ) -> tuple[float, Floats, Floats]:
        """The loss, and the gradients for the batch's entities and relations.

        The loss is summed over the questions, without the regularisation; the gradients include it.

        Args:
            entities: [number of keys, dim], the embeddings of the batch's entities.
            relations: the same of its relations.
            settings: dim, loss and n3 are used.
            population: how many entities the negatives were drawn from.
        """
        start, relation = _complex(entities)[self.start], _complex(relations)[self.relation]
        answer, negatives = entities[self.answer], entities[self.negatives]

        asked = _floats(start * relation)
        right = np.einsum("nd,nd->n", asked, answer)
        wrong = self._joined(self._parted(asked) @ negatives.transpose(0, 2, 1))
        self._forget_accidental_hits(wrong)
        loss = _LOSSES[settings.loss](right, wrong, population)

        right, wrong = right[:, np.newaxis], self._parted(wrong)
        of_asked = _complex(right * answer + self._joined(wrong @ negatives))
        of_start = _floats(of_asked * relation.conj()) + n3_gradient(start, settings.n3)
        of_relation = _floats(of_asked * start.conj()) + n3_gradient(relation, settings.n3)
        of_answer = right * asked + n3_gradient(_complex(answer), settings.n3)
        of_negatives = (wrong.transpose(0, 2, 1) @ self._parted(asked)).reshape(-1, settings.dim)
        of_entities = np.concatenate([of_start, of_answer, of_negatives])
        return loss, self._entities.sum(of_entities), self._relations.sum(of_relation)

    @property
    def _part(self) -> int:
        """Questions that share negatives."""
        return -(-len(self) // len(self.negatives))

    def _parted(self, rows: Floats) -> Floats:
        """[questions, d] cut into [chunks, questions that share negatives, d], filled up with zeros."""
        missing = len(self.negatives) * self._part - len(rows)
        if missing:
            rows = np.concatenate([rows, np.zeros((missing, rows.shape[1]), rows.dtype)])
        return rows.reshape(len(self.negatives), self._part, -1)

    def _joined(self, parts: Floats) -> Floats:
        return parts.reshape(-1, parts.shape[2])[: len(self)]

    def _forget_accidental_hits(self, wrong: Floats) -> None:
        """A negative that is the right answer is not wrong: its score becomes one that no softmax or sigmoid sees."""
        each = np.repeat(self.negatives, self._part, axis=0)[: len(self)]
        wrong[each == self.answer[:, np.newaxis]] = -np.inf


def batches(
    triples: Ints, entities: int, relations: int, settings: Settings, rng: np.random.Generator
) -> Iterator[Batch]:
    """One epoch: the triples in a random order, every one exactly once, in minibatches with fresh negatives."""
    order = rng.permutation(len(triples))
    for begin in range(0, len(order), settings.batch):
        some = triples[order[begin : begin + settings.batch]]
        chunks = 1 if settings.chunk == 0 else -(-len(some) // settings.chunk)
        if settings.negatives:
            negatives = rng.integers(entities, size=(chunks, settings.negatives))
        else:
            negatives = np.arange(entities).reshape(1, -1)
        yield Batch(both_ways(some, relations), negatives)


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
    loss = float(np.logaddexp(0, -right).sum()) + float(np.logaddexp(0, wrong).sum())
    right[:] = -_sigmoid(-right)
    wrong[:] = _sigmoid(wrong)
    return loss


_LOSSES = {"softmax": _softmax, "logistic": _logistic}
LOSSES = tuple(_LOSSES)


def _sigmoid(x: Floats) -> Floats:
    halves: Floats = 0.5 * x
    return 0.5 + 0.5 * np.tanh(halves)  # unlike 1 / (1 + exp(-x)) never overflows


# ---- parts of the gradient


def _complex(floats: Floats) -> Complex:
    return np.ascontiguousarray(floats).view(np.result_type(floats, np.complex64))


def _floats(numbers: Complex) -> Floats:
    return numbers.view(numbers.real.dtype)


def n3_gradient(numbers: Complex, weight: float) -> Floats:
    """The gradient of weight * sum |z|**3, as floats."""
    return _floats(np.abs(numbers) * numbers) * np.float32(3 * weight)


def adagrad(rows: Floats, gradient: Floats, learning_rate: float) -> Floats:
    """What to add to rows [n, 2 dim] of a value and the sum of its squared gradients, for a gradient [n, dim]."""
    dim = gradient.shape[1]
    update = np.empty_like(rows)
    step, squared = update[:, :dim], update[:, dim:]
    np.multiply(gradient, gradient, out=squared)
    np.sqrt(rows[:, dim:] + squared, out=step)
    step += np.float32(1e-8)  # only where all gradients were zero does it matter, and there the step is zero
    np.divide(gradient, step, out=step)
    step *= np.float32(-learning_rate)
    return update


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


def quality(ranks: npt.NDArray[np.float64]) -> dict[str, float]:
    """Mean reciprocal rank and Hits@1, 3, 10 of ranks [n]."""
    return {"mrr": float(np.mean(1 / ranks)), **{f"hits_at_{k}": float(np.mean(ranks <= k)) for k in (1, 3, 10)}}
