"""examples/kg_model.py: gradients against differences, ranks against a loop, and a small graph that it learns."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from adapm import ops

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import kg_model
from kg_model import Settings

from derivatives import differences

SETTINGS = Settings(dim=6, epochs=1, batch=4, negatives=5, chunk=0, loss="softmax", learning_rate=0.1, n3=0.3)


def some_triples(rng, n, entities, relations):
    return np.stack(
        [rng.integers(entities, size=n), rng.integers(relations, size=n), rng.integers(entities, size=n)], axis=1
    )


def plain_score(start, relation, answer):
    start, relation, answer = (x[0::2] + 1j * x[1::2] for x in (start, relation, answer))
    return float(np.real(np.sum(start * relation * np.conj(answer))))


def plain_loss(questions, negatives, entities, relations, settings):
    """What Batch.gradients derives, question by question: (the loss, the loss with its regularisation)."""
    loss = penalty = 0.0
    share = -(-len(questions) // len(negatives))
    for number, (start, relation, answer) in enumerate(questions):
        used = entities[start], relations[relation], entities[answer]
        right = plain_score(*used)
        candidates = negatives[number // share]
        wrong = [plain_score(*used[:2], entities[c]) for c in candidates if c != answer]
        if settings.loss == "softmax":
            each = len(entities) / len(candidates)
            loss += np.log(np.exp(right) + each * np.sum(np.exp(wrong))) - right
        else:
            loss += np.log1p(np.exp(-right)) + np.sum(np.log1p(np.exp(wrong)))
        penalty += sum(np.sum((x[0::2] ** 2 + x[1::2] ** 2) ** 1.5) for x in used)
    return loss, loss + settings.n3 * penalty


class TestGradients:
    @pytest.mark.parametrize("loss", kg_model.LOSSES)
    @pytest.mark.parametrize("chunks", [1, 2, 5, 7], ids="{} chunks".format)
    def test_match_differences(self, loss, chunks):
        """With duplicates, right answers among the negatives, and chunks that do not divide the questions."""
        rng = np.random.default_rng(chunks)
        settings = dataclasses.replace(SETTINGS, loss=loss)
        entities, relations = rng.normal(0, 0.7, (7, settings.dim)), rng.normal(0, 0.7, (6, settings.dim))
        triples = some_triples(rng, 5, 7, 3)
        questions, negatives = kg_model.both_ways(triples, 3), rng.integers(7, size=(chunks, 4))
        batch = kg_model.Batch(triples, 3, negatives)
        found_loss, of_entities, of_relations = batch.gradients(
            entities[batch.entities], relations[batch.relations], settings, population=7
        )

        def objective():
            return plain_loss(questions, negatives, entities, relations, settings)[1]

        assert found_loss == pytest.approx(plain_loss(questions, negatives, entities, relations, settings)[0])
        for rows, keys, places, gradients in (
            (entities, batch.entities, batch.entity_places, of_entities),
            (relations, batch.relations, batch.relation_places, of_relations),
        ):
            found = np.zeros_like(rows)
            np.add.at(found, keys[places], gradients)
            np.testing.assert_allclose(found, differences(objective, rows), atol=1e-6)

    def test_stay_float32(self):
        rng = np.random.default_rng(1)
        batch = kg_model.Batch(some_triples(rng, 5, 7, 3), 3, rng.integers(7, size=(2, 4)))
        rows = rng.random((7, 2 * SETTINGS.dim), np.float32)
        for loss in kg_model.LOSSES:
            settings = dataclasses.replace(SETTINGS, loss=loss)
            values = rows[: len(batch.entities), : settings.dim], rows[: len(batch.relations), : settings.dim]
            _, of_entities, of_relations = batch.gradients(*values, settings, population=7)
            assert of_entities.dtype == of_relations.dtype == np.float32

    def test_scores_too_large_for_exp(self):
        batch = kg_model.Batch(np.array([[0, 0, 1]]), 1, np.array([[1, 2]]))
        rows = np.full((3, 2), 30, np.float32)
        for loss in kg_model.LOSSES:
            settings = dataclasses.replace(SETTINGS, dim=2, loss=loss)
            found = batch.gradients(rows, rows[:2], settings, population=3)
            assert all(np.isfinite(part).all() for part in found)


class TestBatches:
    @pytest.mark.parametrize("workers", [1, 2, 3, 7])
    def test_shares_cover_everything_once(self, workers):
        triples = np.arange(3 * 23).reshape(23, 3)
        shares = [kg_model.share_of(triples, worker, workers, seed=4) for worker in range(workers)]
        assert sorted(np.concatenate(shares).tolist()) == triples.tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1

    @pytest.mark.parametrize("chunk", [0, 1, 3])
    def test_epoch_covers_everything_once(self, chunk):
        settings = dataclasses.replace(SETTINGS, chunk=chunk)
        triples = np.stack([np.arange(23), np.arange(23) % 3, np.arange(23)[::-1]], axis=1)
        made = list(kg_model.batches(triples, 23, 3, settings, np.random.default_rng(0)))
        assert len(made) == kg_model.batches_per_epoch(23, settings) == 6
        asked = [(b.entities[b.starts], b.relations[b.relation_places]) for b in made]
        found = np.concatenate([np.stack(columns, axis=1) for columns in asked])
        assert sorted(found.tolist()) == sorted(kg_model.both_ways(triples, 3)[:, :2].tolist())

    def test_keys_are_all_that_is_used(self):
        triples = np.array([[3, 0, 8], [8, 1, 5]])
        settings = dataclasses.replace(SETTINGS, negatives=2, chunk=1)
        (batch,) = kg_model.batches(triples, 10, 2, settings, np.random.default_rng(0))
        assert batch.negatives.shape == (4, 2)
        assert sorted(batch.relations) == [0, 1, 2, 3]
        assert set(batch.entities) == {3, 5, 8, *batch.entities[batch.negatives].ravel()}

    def test_all_entities_are_negatives(self):
        settings = dataclasses.replace(SETTINGS, negatives=0)
        (batch,) = kg_model.batches(np.array([[3, 0, 8]]), 10, 2, settings, np.random.default_rng(0))
        assert batch.entities[batch.negatives].tolist() == [list(range(10))]


class TestRanks:
    def test_match_a_loop(self, monkeypatch):
        monkeypatch.setattr(kg_model, "RANKED_AT_ONCE", 7)
        rng = np.random.default_rng(3)
        triples = some_triples(rng, 40, 9, 2)
        questions = kg_model.both_ways(triples, 2)
        entities = rng.integers(-1, 2, size=(9, 4)).astype(
            np.float32
        )  # small integers: ties are many, scores are exact
        relations = rng.integers(-1, 2, size=(4, 4)).astype(np.float32)
        found = kg_model.ranks(questions[:30], entities, relations, kg_model.Answers(questions, 4))
        right_answers = set(map(tuple, questions.tolist()))
        for rank, (start, relation, answer) in zip(found, questions[:30].tolist(), strict=True):
            scores = [plain_score(entities[start], relations[relation], entity) for entity in entities]
            others = [scores[e] for e in range(9) if e != answer and (start, relation, e) not in right_answers]
            better, ties = sum(s > scores[answer] for s in others), sum(s == scores[answer] for s in others)
            assert rank == 1 + better + ties / 2

    @pytest.mark.parametrize(("value", "rank"), [(0.0, 6), (np.nan, 6.5)])
    def test_a_model_that_knows_nothing_is_as_good_as_chance(self, value, rank):
        questions = np.array([[0, 0, 1]])
        rows = np.full((11, 2), value, np.float32)
        assert kg_model.ranks(questions, rows, rows[:1], kg_model.Answers(questions, 1)) == [rank]

    def test_evaluation_losses_match_a_loop(self):
        rng = np.random.default_rng(6)
        entities, relations = rng.normal(0, 1, (9, 4)), rng.normal(0, 1, (4, 4))
        questions, wrong = some_triples(rng, 5, 9, 4), rng.integers(9, size=(5, 3))
        found = kg_model.evaluation_losses(questions, wrong, entities, relations)
        for loss, (start, relation, answer), others in zip(found, questions, wrong, strict=True):
            asked = entities[start], relations[relation]
            right = np.log1p(np.exp(-plain_score(*asked, entities[answer])))
            wrongs = [np.log1p(np.exp(plain_score(*asked, entities[other]))) for other in others]
            assert loss == pytest.approx(np.mean([right, *wrongs]))

    def test_no_questions(self):
        rows, none = np.zeros((3, 2), np.float32), np.empty((0, 3), np.int64)
        assert kg_model.ranks(none, rows, rows, kg_model.Answers(none, 3)).shape == (0,)

    def test_quality(self):
        assert kg_model.quality(np.array([1, 2, 4, 20])) == {
            "mrr": pytest.approx(0.45),
            "hits_at_1": 0.25,
            "hits_at_3": 0.5,
            "hits_at_10": 0.75,
        }


def train_alone(triples, entities, relations, settings, seed):
    """Training without a manager: embeddings of all entities and relations, and the loss of each epoch."""
    rng = np.random.default_rng(seed)
    tables = np.zeros((entities, 2 * settings.dim), np.float32), np.zeros((2 * relations, 2 * settings.dim), np.float32)
    for table in tables:
        table[:, : settings.dim] = rng.normal(0, 0.1, (len(table), settings.dim))
    losses = []
    for _ in range(settings.epochs):
        losses.append(0.0)
        for batch in kg_model.batches(triples, entities, relations, settings, rng):
            rows = tables[0][batch.entities], tables[1][batch.relations]
            loss, *gradients = batch.gradients(*(r[:, : settings.dim] for r in rows), settings, entities)
            losses[-1] += loss
            keys, places = (batch.entities, batch.relations), (batch.entity_places, batch.relation_places)
            for table, some, old, where, gradient in zip(tables, keys, rows, places, gradients, strict=True):
                table[some] += ops.adagrad(old, where, gradient, settings.learning_rate)
    return tables[0][:, : settings.dim], tables[1][:, : settings.dim], losses


class TestTraining:
    """On a clock face: relation k leads k hours on."""

    HOURS = 12
    TRIPLES = np.array([(hour, k, (hour + k) % 12) for hour in range(12) for k in range(4)])
    SETTINGS = Settings(dim=16, epochs=40, batch=8, negatives=0, chunk=0, loss="softmax", learning_rate=0.2, n3=0.001)

    @pytest.mark.parametrize(
        "way",
        [
            {},
            {"loss": "logistic", "n3": 0.0},
            {"negatives": 6},
            {"negatives": 4, "chunk": 1, "loss": "logistic", "n3": 0.0},
            {"negatives": 4, "chunk": 3},
        ],
        ids=str,
    )
    def test_learns(self, way):
        settings = dataclasses.replace(self.SETTINGS, **way)
        entities, relations, losses = train_alone(self.TRIPLES, self.HOURS, 4, settings, seed=5)
        questions = kg_model.both_ways(self.TRIPLES, 4)
        ranks = kg_model.ranks(questions, entities, relations, kg_model.Answers(questions, 8))
        assert kg_model.quality(ranks)["mrr"] > 0.95
        assert losses[-1] < losses[0] / 2

    def test_same_seed_same_result(self):
        first, again, other = (train_alone(self.TRIPLES, self.HOURS, 4, self.SETTINGS, seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
        assert first[2] == again[2] != other[2]
