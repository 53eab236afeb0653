"""Skip-gram with negative sampling on plain float32 arrays. Nothing here knows of workers and tables.

Every word has two vectors: one as the *word* whose surroundings are guessed, one as part of the *context* of others
(Mikolov et al. 2013). A word and a context word within its window are a pair; its score, the dot product of the two
vectors, should be large, those of the word with drawn, wrong context words small.

Pairs are not handled one by one. A minibatch is a stretch of text; it is cut into chunks of CHUNK words, and all the
scores of a chunk are one matrix: its words, against themselves, the text within a window before and after, and the
wrong words drawn for the chunk.

                       context                        drawn
            . . .  w  w  w  w  w  . . .           n  n  n  n  n
      w     x x x     x  x                        o  o  o  o  o      x: within the window, a right answer
      w       x x  x     x  x                     o  o  o  o  o      o: a wrong answer, which counts for as many
      w         x  x  x     x  x                  o  o  o  o  o         as word2vec would draw for each x of the line
      w            x  x  x     x  x               o  o  o  o  o
      w               x  x  x     x x             o  o  o  o  o      the rest counts for nothing

So each row is pulled once per batch however often it is used, and nearly all arithmetic is matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from text_data import Corpus

from adapm import ops

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]  # float32, but float64 works just as well
Draw: TypeAlias = Callable[[int], Ints]  # so many wrong answers

CHUNK = 16  # words whose scores are one matrix, and that share wrong answers
POWER = 0.75  # of a word's frequency, in the distribution that wrong answers are drawn from
LOOKED_AT = 8  # of so many chunks one is looked at for the training loss, which costs as much as the gradients' sigmoid
EVALUATED = 20_000  # pairs, for the evaluation loss
COMPARED_AT_ONCE = 256  # analogies; bounds the scores held at once to this many rows of one float per word


@dataclass(frozen=True)
class Settings:
    """What is trained, and how.

    Attributes:
        dim: floats in a vector.
        epochs: passes over the text.
        window: words on either side that belong to the context, at most; each word has a number from 1 to this drawn.
        negatives: wrong answers that count against each right one.
        drawn: wrong answers drawn for each chunk of words.
        subsample: share of the text above which a word is frequent; the more it is, the more of its occurrences are
            left out. 0 leaves out none.
        batch: words in a minibatch, about: it ends with a sentence.
        learning_rate: AdaGrad's.
    """

    dim: int
    epochs: int
    window: int
    negatives: int
    drawn: int
    subsample: float
    batch: int
    learning_rate: float


# ---- the text, cut


class Text:
    """A worker's share of a text, as minibatches.

    Attributes:
        batches_per_epoch: how many each epoch has.
        words: tokens in each epoch, those that are left out included.
    """

    def __init__(self, corpus: Corpus, settings: Settings, worker: int, workers: int) -> None:
        """Cuts the text where a sentence ends and `batch` words are full, and takes every so manieth part."""
        self._tokens = corpus.tokens
        self._sentence_of = np.repeat(np.arange(len(corpus.ends)), np.diff(corpus.ends, prepend=0))
        self._settings = settings
        self._kept = kept_shares(corpus.counts, settings.subsample)
        full = np.flatnonzero(np.diff(corpus.ends // settings.batch, append=-1))
        ends = corpus.ends[full]
        self._parts = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)[worker::workers]
        self.batches_per_epoch = len(self._parts)
        self.words = int((self._parts[:, 1] - self._parts[:, 0]).sum())

    def batches(self, rng: np.random.Generator, draw: Draw) -> Iterator[Batch]:
        """All epochs: in each every part once, in a random order, with other words left out and other windows.

        Args:
            rng: for order, words and windows.
            draw: draws wrong answers.
        """
        for _ in range(self._settings.epochs):
            for begin, end in rng.permutation(self._parts):
                yield self._batch(int(begin), int(end), rng, draw)

    def _batch(self, begin: int, end: int, rng: np.random.Generator, draw: Draw) -> Batch:
        tokens = self._tokens[begin:end]
        kept = np.flatnonzero(rng.random(len(tokens), np.float32) < self._kept[tokens])
        windows = rng.integers(1, self._settings.window, size=len(kept), endpoint=True)
        chunks = -(-len(kept) // CHUNK)
        wrong = draw(chunks * self._settings.drawn).reshape(chunks, self._settings.drawn)
        sentences = self._sentence_of[begin:end][kept]
        return Batch(tokens[kept].astype(np.int64), sentences, windows, wrong, end - begin)


def kept_shares(counts: Ints, subsample: float) -> npt.NDArray[np.float32]:
    """Which share of each word's occurrences is kept, as in word2vec: sqrt(s / f) + s / f of frequency f."""
    if not subsample:
        return np.ones(len(counts), np.float32)
    ratio = subsample * counts.sum() / counts
    shares: npt.NDArray[np.float64] = np.minimum(np.sqrt(ratio) + ratio, 1)
    return shares.astype(np.float32)


def weights(counts: Ints) -> npt.NDArray[np.float64]:
    """How often each word is to be drawn as a wrong answer, up to a factor."""
    result: npt.NDArray[np.float64] = counts**POWER
    return result


# ---- a minibatch


class Batch:
    """Some sentences without the words left out. All keys are known once it is made, so a worker can announce them.

    Attributes:
        words, contexts: int64, the distinct keys of the rows that it reads and changes, in either role.
        word_places, context_places: of each gradient row, the position in `words` or `contexts`.
        size: words of the text that it stands for.
    """

    def __init__(self, tokens: Ints, sentences: Ints, windows: Ints, wrong: Ints, size: int) -> None:
        """Makes a batch of n words, of any number of sentences.

        Args:
            tokens: the words, int64 [n].
            sentences: of which sentence each is, [n].
            windows: how many words before and after it belong to its context, [n], positive.
            wrong: int64 [chunks, k], wrong answers for each chunk of CHUNK words; k is positive.
            size: see above.
        """
        self.size = size
        self._wrong = wrong.shape
        self._reach = int(windows.max(initial=1))
        centers = np.arange(wrong.shape[0] * CHUNK).reshape(-1, CHUNK) + self._reach
        contexts = centers[:, :1] + np.arange(-self._reach, CHUNK + self._reach)
        text = self._padded(tokens, fill=tokens[0] if len(tokens) else 0)
        self.words, self.word_places = ops.unique(text[centers].ravel())
        self.contexts, self.context_places = ops.unique(np.concatenate([text[contexts], wrong], axis=1).ravel())
        sentence, window = self._padded(sentences, fill=-1), self._padded(windows, fill=0)
        distance = np.abs(np.arange(-self._reach, CHUNK + self._reach) - np.arange(CHUNK)[:, np.newaxis])
        near = (distance > 0) & (distance <= window[centers][:, :, np.newaxis])
        self._right = near & (sentence[centers][:, :, np.newaxis] == sentence[contexts][:, np.newaxis, :])

    def _padded(self, values: Ints, fill: int) -> Ints:
        """The values [n] with what fills the last chunk up, and with a window's reach on both sides."""
        padded = np.full(self._wrong[0] * CHUNK + 2 * self._reach, fill, np.int64)
        padded[self._reach : self._reach + len(values)] = values
        return padded

    def gradients(self, words: Floats, contexts: Floats, negatives: int) -> tuple[float, Floats, Floats]:
        """The loss summed over all pairs, and gradient rows for `word_places` and `context_places`, to be added up.

        The loss is estimated from every LOOKED_AT-th chunk.

        Args:
            words: [number of words, dim], the batch's word vectors.
            contexts: the same of its contexts.
            negatives: how many wrong answers count against each right one.
        """
        chunks, drawn = self._wrong
        dim, known = words.shape[1], CHUNK + 2 * self._reach
        asked = words[self.word_places].reshape(chunks, CHUNK, dim)
        answers = contexts[self.context_places].reshape(chunks, known + drawn, dim)
        scores = asked @ answers.transpose(0, 2, 1)
        right = self._right.astype(scores.dtype)
        each = right.sum(axis=2, keepdims=True) * scores.dtype.type(negatives / drawn)  # what a wrong answer counts for
        loss = (
            _loss(scores[::LOOKED_AT], right[::LOOKED_AT], each[::LOOKED_AT]) * chunks / max(-(-chunks // LOOKED_AT), 1)
        )
        _sigmoid(scores)
        scores[:, :, :known] -= 1
        scores[:, :, :known] *= right
        scores[:, :, known:] *= each
        of_words = scores @ answers
        of_contexts = scores.transpose(0, 2, 1) @ asked
        return loss, of_words.reshape(-1, dim), of_contexts.reshape(-1, dim)


def _loss(scores: Floats, right: Floats, each: Floats) -> float:
    known = right.shape[2]
    return float((_softplus(-scores[:, :, :known]) * right).sum() + (_softplus(scores[:, :, known:]) * each).sum())


def _softplus(x: Floats) -> Floats:
    """log(1 + exp(x)), of large numbers too."""
    result: Floats = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return result


def _sigmoid(x: Floats) -> None:
    """In place; unlike 1 / (1 + exp(-x)) it never overflows."""
    x *= 0.5
    np.tanh(x, out=x)
    x += 1
    x *= 0.5


# ---- quality


def evaluation_losses(
    corpus: Corpus, settings: Settings, words: Floats, contexts: Floats, which: slice, seed: int = 0
) -> Floats:
    """The loss of pairs drawn from the text, each with wrong answers of its own, [n].

    Unlike the training loss it does not depend on how the model was trained: one pair at a time, nothing left out. Each
    of EVALUATED words is paired with the next of its sentence, if there is one.

    Args:
        corpus: the text.
        settings: negatives is used.
        words, contexts: the vectors of all words.
        which: a part of the pairs.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    last = np.zeros(len(corpus.tokens), np.bool_)
    last[corpus.ends - 1] = True
    at = rng.choice(np.flatnonzero(~last), size=EVALUATED) if not last.all() else np.empty(0, np.int64)
    shares = weights(corpus.counts)
    wrong = rng.choice(len(shares), size=(len(at), settings.negatives), p=shares / shares.sum())
    at, wrong = at[which], wrong[which]
    asked, right = words[corpus.tokens[at]], contexts[corpus.tokens[at + 1]]
    losses: Floats = _softplus(-np.einsum("nd,nd->n", asked, right))
    losses += _softplus(np.einsum("nd,nkd->nk", asked, contexts[wrong])).sum(axis=1)
    return losses


def directions(words: Floats) -> Floats:
    """The vectors at length 1; a vector of length 0 stays as it is."""
    lengths = np.linalg.norm(words, axis=1, keepdims=True)
    result: Floats = words / np.where(lengths > 0, lengths, 1)
    return result


def spearman(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Spearman's rank correlation, ties getting the mean of their ranks; nan for fewer than two, or all the same."""
    first, second = mean_ranks(found), mean_ranks(expected)
    first -= first.mean()
    second -= second.mean()
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale else float("nan")


def mean_ranks(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The rank of each value, from 0, the mean of them where values are equal."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: npt.NDArray[np.float64] = ends - (counts + 1) / 2
    return means[inverse]


def similarity(directions: Floats, pairs: Ints, scores: npt.NDArray[np.float64]) -> float:
    """Spearman's correlation of the cosines of pairs [n, 2] with how similar people find them, [n]."""
    return spearman(np.einsum("nd,nd->n", directions[pairs[:, 0]], directions[pairs[:, 1]]), scores)


def analogies_right(directions: Floats, questions: Ints) -> int:
    """How many analogies [n, 4] are solved: b - a + c is closest to d, a, b and c themselves left out."""
    right = 0
    for begin in range(0, len(questions), COMPARED_AT_ONCE):
        some = questions[begin : begin + COMPARED_AT_ONCE]
        a, b, c = (directions[some[:, i]] for i in range(3))
        cosines = (b - a + c) @ directions.T
        np.put_along_axis(cosines, some[:, :3], -np.inf, axis=1)
        right += int((cosines.argmax(axis=1) == some[:, 3]).sum())
    return right
