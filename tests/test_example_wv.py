"""examples/wv_model.py and word_vectors.py: gradients, batches, and the same quality wherever it is trained."""

import asyncio
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

import adapm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import session
import word_vectors
import wv_model
from plain import PlainWorker
from text_data import Corpus, Exercises
from wv_model import CHUNK, Batch, Settings, Text

from cluster import Cluster
from derivatives import differences

SETTINGS = Settings(dim=6, epochs=2, window=3, negatives=5, drawn=4, subsample=0.0, batch=60, learning_rate=0.1)


def corpus_of(sentences, vocabulary):
    tokens = np.concatenate(sentences).astype(np.int32)
    counts = np.bincount(tokens, minlength=vocabulary)
    ends = np.cumsum([len(sentence) for sentence in sentences])
    return Corpus("made up", [f"w{n}" for n in range(vocabulary)], counts, tokens, ends)


def softplus(x):
    return np.logaddexp(0, x)


def objective(words, contexts, tokens, sentences, windows, wrong, negatives):
    """The loss of all pairs, one by one."""
    loss = 0.0
    for i, center in enumerate(tokens):
        drawn = wrong[i // CHUNK]
        for j in range(max(i - windows[i], 0), min(i + windows[i] + 1, len(tokens))):
            if j != i and sentences[j] == sentences[i]:
                loss += softplus(-words[center] @ contexts[tokens[j]])
                loss += negatives / len(drawn) * softplus(contexts[drawn] @ words[center]).sum()
    return loss


class TestGradients:
    def test_match_differences_over_chunks_and_sentences(self, monkeypatch):
        monkeypatch.setattr(wv_model, "LOOKED_AT", 1)  # the loss of all chunks
        rng = np.random.default_rng(1)
        tokens = rng.integers(7, size=2 * CHUNK + 3)
        sentences = np.sort(rng.integers(4, size=len(tokens)))
        windows = rng.integers(1, 4, size=len(tokens))
        wrong = rng.integers(7, size=(3, 4))
        words, contexts = rng.normal(0, 0.7, (7, 3)), rng.normal(0, 0.7, (7, 3))
        batch = Batch(tokens, sentences, windows, wrong, size=100)
        loss, of_words, of_contexts = batch.gradients(words[batch.words], contexts[batch.contexts], negatives=5)

        def full():
            return objective(words, contexts, tokens, sentences, windows, wrong, 5)

        assert loss == pytest.approx(full())
        for table, keys, places, gradients in (
            (words, batch.words, batch.word_places, of_words),
            (contexts, batch.contexts, batch.context_places, of_contexts),
        ):
            found = np.zeros_like(table)
            np.add.at(found, keys[places], gradients)
            np.testing.assert_allclose(found, differences(full, table), atol=1e-6)

    def test_stay_float32(self):
        batch = Batch(np.arange(5), np.zeros(5, np.int64), np.full(5, 2), np.array([[1, 2]]), size=5)
        rows = np.random.default_rng(0).random((5, 8), np.float32)[:, :4]
        _, of_words, of_contexts = batch.gradients(rows[: len(batch.words)], rows[: len(batch.contexts)], 5)
        assert of_words.dtype == of_contexts.dtype == np.float32

    def test_scores_too_large_for_exp(self):
        batch = Batch(np.arange(3), np.zeros(3, np.int64), np.full(3, 2), np.array([[1, 2]]), size=3)
        rows = np.full((3, 2), 30, np.float32)
        assert all(np.isfinite(part).all() for part in batch.gradients(rows, rows, 5))

    def test_nothing_left(self):
        none = np.empty(0, np.int64)
        batch = Batch(none, none, none, np.empty((0, 4), np.int64), size=9)
        rows = np.empty((0, 3), np.float32)
        loss, of_words, of_contexts = batch.gradients(rows, rows, 5)
        assert (loss, of_words.shape, of_contexts.shape) == (0.0, (0, 3), (0, 3))


class TestText:
    SENTENCES = tuple(np.arange(n) % 9 for n in (30, 1, 80, 25, 25, 7, 120))

    @pytest.mark.parametrize("workers", [1, 2, 3])
    def test_parts_cover_the_text_once_and_end_with_sentences(self, workers):
        corpus = corpus_of(self.SENTENCES, 9)
        texts = [Text(corpus, SETTINGS, worker, workers) for worker in range(workers)]
        parts = sorted(part for text in texts for part in text._parts.tolist())
        assert [begin for begin, _ in parts] == [0, *(end for _, end in parts[:-1])]
        assert parts[-1][1] == len(corpus.tokens)
        assert {end for _, end in parts} <= set(corpus.ends.tolist())
        assert sum(text.words for text in texts) == len(corpus.tokens)

    def test_every_epoch_has_every_batch_once(self):
        text = Text(corpus_of(self.SENTENCES, 9), SETTINGS, 0, 1)
        made = list(text.batches(np.random.default_rng(0), lambda count: np.arange(count) % 9))
        assert len(made) == 2 * text.batches_per_epoch
        for epoch in range(2):
            sizes = [batch.size for batch in made[epoch * text.batches_per_epoch :][: text.batches_per_epoch]]
            assert sum(sizes) == text.words

    def test_frequent_words_are_thinned_out(self):
        counts = np.array([900_000, 90_000, 10_000])
        ratio = 1e-2 / 0.9
        kept = wv_model.kept_shares(counts, 1e-2)
        np.testing.assert_allclose(kept, [np.sqrt(ratio) + ratio, np.sqrt(1 / 9) + 1 / 9, 1], rtol=1e-6)
        assert wv_model.kept_shares(counts, 0).tolist() == [1, 1, 1]

    def test_wrong_answers_follow_their_weights_without_a_manager_too(self):
        counts = np.array([1000, 100, 10, 0])
        n = 100_000
        corpus = Corpus("made up", list("abcd"), counts, np.empty(0, np.int32), np.empty(0, np.int64))
        worker = PlainWorker(word_vectors.tables_for(corpus, 1), seed=3)
        drawn = np.bincount(worker.prepare_sample("contexts", n, 0).keys, minlength=4)
        expected = counts**0.75 / (counts**0.75).sum() * n
        deviations = (drawn - expected)[:3] / np.sqrt(expected[:3])
        assert np.abs(deviations).max() < 5  # standard deviations: one such draw in a million
        assert drawn[3] == 0


class TestQuality:
    def test_ranks_of_equal_values_are_their_mean(self):
        assert wv_model.mean_ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [2.5, 0.0, 2.5, 1.0]

    def test_spearman(self):
        assert wv_model.spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
        assert wv_model.spearman([1, 2, 3], [5, 4, 3]) == pytest.approx(-1)
        assert wv_model.spearman([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)
        assert np.isnan(wv_model.spearman([1, 1], [1, 2]))

    def test_analogies(self):
        words = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1], [5, 0, 5], [0, 0, 0]], np.float64)
        directions = wv_model.directions(words)
        assert not directions[5].any()
        assert wv_model.analogies_right(directions, np.array([[0, 1, 2, 3], [0, 1, 2, 4]])) == 1


# ---- trained

TOPICS, WORDS = 5, 60
TRAINED = Settings(dim=16, epochs=10, window=3, negatives=5, drawn=16, subsample=0.0, batch=200, learning_rate=0.1)


def learnable():
    """Sentences of one topic each; exercises that ask which words share one."""
    rng = np.random.default_rng(4)
    sentences = [rng.integers(TOPICS) + TOPICS * rng.integers(WORDS // TOPICS, size=12) for _ in range(500)]
    pairs = rng.integers(WORDS, size=(200, 2))
    alike = (pairs[:, 0] % TOPICS == pairs[:, 1] % TOPICS).astype(np.float64)
    return corpus_of(sentences, WORDS), Exercises({"topics": (pairs, alike)}, np.empty((0, 4), np.int64))


@pytest.mark.parametrize(("nodes", "workers"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_quality_is_the_same_wherever_it_is_trained(nodes, workers):
    corpus, exercises = learnable()

    async def clustered():
        tables = word_vectors.tables_for(corpus, TRAINED.dim)
        async with Cluster(tables, nodes=nodes, workers=workers, seed=1) as cluster:
            return await cluster.run(lambda worker: word_vectors.train(worker, corpus, exercises, TRAINED, None))

    outcomes = asyncio.run(clustered())
    figures = {**word_vectors.quality(outcomes), **session.summary(outcomes, "words", 1.0)}
    print(figures)
    assert sum(outcome.seen for outcome in outcomes) == TRAINED.epochs * len(corpus.tokens)
    untrained = (1 + TRAINED.negatives) * np.log(2)
    assert figures["evaluation_loss"] <= 1.6 < untrained / 2
    assert figures["topics"] >= 0.6  # .643, if all that are alike are closer than all others


async def train_twice(worker):
    """The outcomes of training through the manager and without it, from the same initial values and samples."""
    corpus, exercises = learnable()
    drawn = {}

    def drawn_before(table, n, start):
        if start not in drawn:
            drawn[start] = PlainWorker.prepare_sample(plain, table, n, start)
        return drawn[start]

    settings = dataclasses.replace(TRAINED, epochs=2)
    plain = PlainWorker(word_vectors.tables_for(corpus, settings.dim), seed=7)
    for table in ("words", "contexts"):
        rows = await plain.read_table(table)
        await worker.set(table, np.arange(len(rows)), rows)
    plain.prepare_sample = worker.prepare_sample = drawn_before
    return [await word_vectors.train(each, corpus, exercises, settings, None) for each in (worker, plain)]


def test_plain_twin_computes_the_same_numbers():
    tables = word_vectors.tables_for(learnable()[0], TRAINED.dim)
    managed, plain = adapm.run(train_twice, tables, workers="threads:1", seed=7)[0]
    np.testing.assert_array_equal(managed.measured.losses, plain.measured.losses)
    assert managed.measured.solved == plain.measured.solved
    assert managed.loss == plain.loss


def test_fewer_batches_than_workers_is_refused_without_a_traceback(monkeypatch):
    monkeypatch.setattr(session, "prepare_processes", lambda: None)  # which changes the environment
    monkeypatch.setenv("ADAPM_WORKERS", "threads:2")
    corpus = corpus_of([np.arange(6)], 6)
    tables = word_vectors.tables_for(corpus, SETTINGS.dim)
    with pytest.raises(click.ClickException, match="6 words: fewer batches of 60 than workers; choose a smaller"):
        session.run(word_vectors.train, tables, (corpus, None, SETTINGS, None), seed=0, plain=False)


# ---- the file


def test_vectors_are_written_as_word2vec_does(tmp_path):
    path = tmp_path / "vectors.txt"
    word_vectors.write(str(path), ["été", "cat"], np.array([[0.5, -1e-9], [3, 123456.7]], np.float32))
    assert path.read_text("utf-8") == "2 2\nété 0.5 -1e-09\ncat 3 123457\n"


def test_gensim_reads_what_was_written(tmp_path):
    models = pytest.importorskip("gensim.models")
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    word_vectors.write(str(tmp_path / "vectors.txt"), ["a", "été", "w_1"], vectors)
    read = models.KeyedVectors.load_word2vec_format(str(tmp_path / "vectors.txt"))
    assert read.index_to_key == ["a", "été", "w_1"]
    np.testing.assert_allclose(read.vectors, vectors, rtol=1e-5)


def test_command_trains_writes_and_says_what_is_wrong(tmp_path):
    (tmp_path / "text.txt").write_text("one two three\nfour two one\n" * 50)
    command = [sys.executable, word_vectors.__file__, "--plain", "--dim", "4", "--epochs", "1"]

    def run(*words):
        return subprocess.run([*command, *words], capture_output=True, text=True, timeout=120, check=False)

    done = run("--data", str(tmp_path / "text.txt"), "--output", str(tmp_path / "vectors.txt"), "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["manager"] == "none"
    assert "wordsim353" not in figures
    assert (tmp_path / "vectors.txt").read_text().splitlines()[0] == "4 4"
    assert "no folder" in run("--output", str(tmp_path / "none" / "vectors.txt")).stderr
    assert "Error: no data set and no file 'none'" in run("--data", "none").stderr
