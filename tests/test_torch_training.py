"""examples/click_through.py and graph_network.py: their models, and the same quality wherever they are trained."""

import contextlib
import io
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import adapm
from adapm import reporting
from adapm.errors import DataError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import click_model
import click_through
import graph_data
import graph_model
import graph_network
import session
from click_data import Clicks, Events
from graph_data import Graph, Lists


def trained(train, tables, args, seed, nodes, workers):
    """What a run's workers bring home; without nodes, what the plain twin does."""
    with contextlib.redirect_stderr(io.StringIO()):
        if not nodes:
            return [session.train_plainly(train, tables, args, seed)]
        return adapm.run(train, tables, args=args, seed=seed, nodes=nodes, workers=f"threads:{workers}")


EVERYWHERE = pytest.mark.parametrize(
    ("nodes", "workers"), [(0, 1), (1, 1), (2, 2)], ids=["plain", "one worker", "two nodes with two"]
)


class TestIds:
    FIELDS = ("a", "b", "c")

    def ids(self, categories, crosses=(), buckets=1 << 60):
        categories = np.array(categories, np.uint32)
        events = Events(np.zeros(len(categories), np.float32), categories)
        return click_model.ids_of(Clicks("made", self.FIELDS, crosses, events, events), events, buckets)

    def test_equal_categories_of_a_field_have_one_id_and_others_have_others(self):
        ids = self.ids([[1, 1, 2], [1, 2, 2], [2, 1, 2**32 - 1]])
        assert ids[0, 0] == ids[1, 0] != ids[2, 0]
        assert ids[0, 2] == ids[1, 2] != ids[2, 2]
        assert len(np.unique(ids)) == 6  # 1, 2 of a; 1, 2 of b; two of c
        assert ids.dtype == np.int64

    def test_a_cross_is_one_if_all_its_categories_are(self):
        ids = self.ids([[1, 1, 5], [1, 1, 6], [1, 2, 5], [2, 1, 5]], crosses=[("a", "b"), ("b", "a"), ("a", "b", "c")])
        assert ids.shape == (4, 6)
        assert ids[0, 3] == ids[1, 3]
        assert len(set(ids[1:, 3].tolist())) == 3
        assert len(set(ids[:, 5].tolist())) == 4
        assert len(np.unique(ids[:, 3:])) == 3 + 3 + 4

    def test_buckets_are_used_evenly(self):
        ids = self.ids([[i, i, i] for i in range(10_000)], buckets=16)
        assert np.bincount(ids.ravel(), minlength=16).min() > 30_000 / 16 * 0.9


class TestQuality:
    @pytest.mark.parametrize("seed", range(3))
    def test_area_is_the_share_of_pairs_in_order(self, seed):
        rng = np.random.default_rng(seed)
        odds, happened = rng.integers(0, 8, 60).astype(np.float32), (rng.random(60) < 0.4).astype(np.float32)
        pairs = [
            1.0 if yes > no else 0.5 if yes == no else 0.0
            for yes, no in itertools.product(odds[happened > 0], odds[happened == 0])
        ]
        assert click_model.area_under_curve(odds, happened) == pytest.approx(np.mean(pairs))

    def test_area_of_events_that_all_happened_is_unknown(self):
        assert math.isnan(click_model.area_under_curve(np.ones(3, np.float32), np.ones(3, np.float32)))

    def test_log_loss(self):
        odds, happened = np.array([0.0, 2.0, -1000.0], np.float32), np.array([1, 0, 0], np.float32)
        assert click_model.log_loss(odds, happened) == pytest.approx((math.log(2) + math.log(1 + math.exp(2))) / 3)


def learnable_clicks(count=8_000):
    """Whether something happens depends on a field, on a cross of two others that says nothing by halves, and luck."""
    rng = np.random.default_rng(5)
    categories = rng.integers(0, 12, (count, 4)).astype(np.uint32)
    odds = 2.0 * (categories[:, 0] < 4) + 4.0 * ((categories[:, 1] + categories[:, 2]) % 2) - 3
    events = Events((rng.random(count) < 1 / (1 + np.exp(-odds))).astype(np.float32), categories)
    return Clicks("made", ("a", "b", "c", "luck"), (("b", "c"),), events[: count * 3 // 4], events[count * 3 // 4 :])


@EVERYWHERE
def test_clicks_are_foretold_as_well_wherever_it_is_trained(nodes, workers):
    clicks = learnable_clicks()
    settings = click_model.Settings(
        buckets=4096, dim=4, hidden=16, epochs=6, batch=50, learning_rate=0.05, dense_rate=0.003
    )
    tables = click_through.tables_for(clicks, settings, 3)
    outcomes = trained(click_through.train, tables, (clicks, settings, 3), 3, nodes, workers)
    figures = {**click_through.quality(outcomes), **session.summary(outcomes, "events", 1.0)}
    print(figures)
    assert figures["tested"] == len(clicks.test)
    assert figures["auc"] >= 0.86  # of the true odds: .89
    assert figures["log_loss"] <= 0.45
    assert sum(outcome.seen for outcome in outcomes) == settings.epochs * len(clicks.train)
    assert figures.get("local_share", 1.0) >= 0.99
    assert (figures.get("relocations", 0) > 0) == (nodes > 1)


def ring_of_cliques(cliques=24, size=12, classes=4, words=None):
    """Complete graphs in a ring, of which four in a row are of one class; half of the nodes are for the test."""
    rng = np.random.default_rng(7)
    edges = [(c * size + i, c * size + j) for c in range(cliques) for i in range(size) for j in range(i)]
    edges += [(c * size, (c + 1) % cliques * size + 1) for c in range(cliques)]
    count = cliques * size
    labels = np.arange(count) // size * classes // cliques
    trained, chosen, tested = np.split(rng.permutation(count), [count // 3, count // 2])
    neighbours = graph_data.neighbours_of(count, np.array(edges))
    vocabulary = 0 if words is None else int(words.items.max()) + 1
    return Graph("ring", count, classes, neighbours, labels, words, vocabulary, trained, chosen, tested)


def words_of(count, rng):
    """None to three words for each node."""
    places = np.repeat(np.arange(count), np.arange(count) % 4)
    return graph_data.lists(count, places, rng.integers(0, 9, len(places)))


class TestBlocks:
    def test_drawn_are_neighbours_and_words_are_those_of_the_nodes(self):
        rng = np.random.default_rng(1)
        graph = ring_of_cliques(words=words_of(24 * 12, rng))
        seeds = np.array([5, 250, 17])
        block = graph_model.block(graph, seeds, (3, 2), rng)
        nodes, between = block.nodes.numpy(), np.unique([n for seed in seeds for n in self.of(graph, seed)])
        assert (block.outer.shape, block.inner.shape[1], block.labels.tolist()) == (
            (3, 3),
            2,
            graph.labels[seeds].tolist(),
        )
        assert len(np.unique(nodes)) == len(nodes)
        drawn = {int(nodes[place]) for place in block.inner.ravel()}
        assert drawn == set(nodes.tolist())
        assert drawn <= {n for node in between for n in self.of(graph, node)}
        for place, node in enumerate(nodes):
            ends = [*block.word_starts.tolist(), len(block.words)]
            assert (
                block.words[ends[place] : ends[place + 1]].tolist() == graph.words.of(np.array([node])).items.tolist()
            )

    @staticmethod
    def of(graph, node):
        return graph.neighbours.of(np.array([node])).items.tolist()

    def test_every_epoch_has_every_node_once(self):
        graph = ring_of_cliques()
        settings = self.settings(epochs=2, batch=40)
        made = list(graph_model.blocks(graph, graph.train, settings, np.random.default_rng(2)))
        assert [len(block) for block in made] == [40, 40, 16] * 2
        expected = np.bincount(graph.labels[graph.train])
        for epoch in (made[:3], made[3:]):
            np.testing.assert_array_equal(np.bincount(torch.cat([block.labels for block in epoch])), expected)

    @staticmethod
    def settings(**changed):
        usual = {"dim": 8, "hidden": 16, "epochs": 30, "batch": 10, "fanout": (5, 5), "dropout": 0.1}
        return graph_model.Settings(**{**usual, "learning_rate": 0.1, "dense_rate": 0.01, **changed})

    def test_layers_of_all_are_the_formula(self):
        """ReLU(A x W1) W2 with A the means over neighbours, each node's among them."""
        torch.manual_seed(0)
        graph = ring_of_cliques(cliques=3, size=4, classes=3)
        layers = graph_model.Layers(3, self.settings()).double().eval()
        start = torch.randn(graph.nodes, 8, dtype=torch.float64)
        mean = torch.zeros(graph.nodes, graph.nodes, dtype=torch.float64)
        for node in range(graph.nodes):
            around = self.of(graph, node)
            mean[node, around] = 1 / len(around)
        expected = layers.outer(mean @ torch.relu(layers.inner(mean @ start)))
        torch.testing.assert_close(layers.of_all(start, graph.neighbours), expected)

    def test_drawn_neighbours_stand_for_all(self):
        """Nodes that have one neighbour, themselves, have the same scores by drawing as by all."""
        torch.manual_seed(0)
        alone = Lists(np.arange(7), np.arange(6))
        graph = Graph("alone", 6, 3, alone, np.zeros(6, np.int64), None, 0, *np.split(np.arange(6), [2, 4]))
        layers = graph_model.Layers(3, self.settings()).eval()
        vectors = torch.nn.Embedding(6, 8)
        block = graph_model.block(graph, np.array([4, 1]), (2, 3), np.random.default_rng(0))
        found = graph_model.Sage(vectors, None, layers)(block)
        torch.testing.assert_close(found, layers.of_all(vectors.weight, alone)[[4, 1]])

    def test_means_of_empty_lists_are_zero(self):
        lists = graph_data.lists(3, np.array([0, 0, 2]), np.array([1, 0, 1]))
        means = graph_model.means(torch.tensor([[2.0], [4.0]]), lists)
        assert means.tolist() == [[3.0], [0.0], [4.0]]


@EVERYWHERE
@pytest.mark.parametrize("with_words", [False, True])
def test_nodes_are_classified_as_well_wherever_it_is_trained(nodes, workers, with_words):
    words = words_of(24 * 12, np.random.default_rng(1)) if with_words else None
    graph, settings = ring_of_cliques(words=words), TestBlocks.settings()
    tables = graph_network.tables_for(graph, settings, 3)
    outcomes = trained(graph_network.train, tables, (graph, settings, 3), 3, nodes, workers)
    figures = {**graph_network.quality(outcomes), **session.summary(outcomes, "nodes", 1.0)}
    print(figures)
    assert figures["tested"] == len(graph.test)
    assert figures["accuracy"] >= 0.95
    assert figures["inside"] >= 0.9
    assert sum(outcome.seen for outcome in outcomes) == settings.epochs * len(graph.train)
    assert figures.get("local_share", 1.0) >= 0.99


def test_more_workers_than_nodes_to_train_on_is_refused():
    graph, settings = ring_of_cliques(), TestBlocks.settings()
    few = Graph(**{**vars(graph), "train": graph.train[:1]})
    tables = graph_network.tables_for(few, settings, 3)
    with pytest.raises(DataError, match=r"ring has 1 nodes to train on, and worker \d got none: start fewer workers"):
        adapm.run(graph_network.train, tables, args=(few, settings, 3), workers="threads:2")


def made_clicks(folder):
    line = "\t".join(["{}", *(str(i) for i in range(13)), *(f"{i:08x}" for i in range(26))])
    path = folder / "clicks.tsv"
    path.write_text("".join(line.format(i % 2) + "\n" for i in range(200)))
    return path


def made_graph(folder):
    (folder / "labels.tsv").write_text("".join(f"n{i}\t{'even' if i % 2 == 0 else 'odd'}\n" for i in range(60)))
    (folder / "edges.tsv").write_text("".join(f"n{i}\tn{(i + 2) % 60}\n" for i in range(60)))
    return folder


def test_as_a_user_runs_it(tmp_path):
    words = ("--data", str(made_graph(tmp_path)), "--epochs", "20", "--batch", "4", "--dim", "8")
    command = [sys.executable, "-m", "adapm", "run", "--nodes", "1", "--workers", "1", graph_network.__file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    assert "60 nodes, 60 edges, 2 classes" in done.stdout
    assert "30, 24" in done.stdout  # trained on, and tested
    assert "epoch 20/20" in done.stderr


@pytest.mark.parametrize(
    ("script", "make", "said", "key"),
    [(click_through, made_clicks, "AUC", "auc"), (graph_network, made_graph, "accuracy", "accuracy")],
)
def test_scripts_tell_what_is_compared_and_which_rows_are_hot(script, make, said, key, tmp_path):
    chosen = ("--nodes", "2", "--workers", "1", "--technique", "nups(5)", "--report", str(tmp_path / "report"))
    words = ("--data", str(make(tmp_path)), "--epochs", "2", "--json")
    command = [sys.executable, "-m", "adapm", "run", *chosen, script.__file__, *words]
    figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    told = reporting.read(tmp_path / "report")
    assert told.epoch_seconds == figures["epoch_seconds"]
    assert told.quality[said] == [figures[key]]
    assert len(told.loss["training loss"]) == 2
