"""What the examples reach on real data: films as they should be rated, and words as alike as gensim finds them.

gensim is trained here and now, with the same settings on the same sentences.  Runs on demand only, being slow,
and needing the data of two packages: ADAPM_TEST_QUALITY=1, or `tox -e quality`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import matrix_factorization
import text_data
import word_vectors

pytestmark = pytest.mark.skipif("ADAPM_TEST_QUALITY" not in os.environ, reason="a minute; ADAPM_TEST_QUALITY=1 runs it")


def through_the_manager(script, nodes, *words):
    """The closing figures."""
    command = [sys.executable, "-m", "adapm", "run", "--nodes", str(nodes), "--workers", "1", script, "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_movielens_over_five_splits():
    script = matrix_factorization.__file__
    errors = [through_the_manager(script, 2, "--split", str(n), "--seed", str(n))["rmse"] for n in range(5)]
    print("RMSE", [round(error, 4) for error in errors], "mean", round(float(np.mean(errors)), 4))
    assert np.mean(errors) <= 0.915


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """The vectors as exported, and the figures of the run that trained them."""
    output = tmp_path_factory.mktemp("word2vec") / "vectors.txt"
    return str(output), through_the_manager(word_vectors.__file__, 1, "--data", "wikipedia", "--output", str(output))


def by_gensim(corpus, figures):
    """Its vectors of the same sentences, [words, dim], trained by one thread, so that they are the same every time."""
    models = pytest.importorskip("gensim.models")
    sentences = [[corpus.words[token] for token in some] for some in np.split(corpus.tokens, corpus.ends[:-1])]
    same = {name: figures[name] for name in ("window", "epochs", "seed")}
    settings = {"vector_size": figures["dim"], "negative": figures["negatives"], "sample": figures["subsample"]}
    model = models.Word2Vec(sentences, sg=1, min_count=1, workers=1, **same, **settings)
    return model.wv


def test_word_similarity_is_that_of_gensim(vectors):
    figures = vectors[1]
    corpus = text_data.load("wikipedia", figures["min_count"])
    theirs = by_gensim(corpus, figures)
    solved = word_vectors.solve(text_data.exercises(corpus.words), np.stack([theirs[word] for word in corpus.words]))
    print("adapm", {name: round(figures[name], 4) for name in solved})
    print("gensim", {name: round(value, 4) for name, value in solved.items()})
    assert figures["wordsim353"] >= solved["wordsim353"] - 0.03
    assert figures["wordsim353_pairs"] == solved["wordsim353_pairs"] > 200


def test_gensim_judges_the_exported_vectors_as_we_do(vectors):
    """Its own reader, its own Spearman."""
    models, utils = pytest.importorskip("gensim.models"), pytest.importorskip("gensim.test.utils")
    path, figures = vectors
    read = models.KeyedVectors.load_word2vec_format(path)
    _, spearman, unknown = read.evaluate_word_pairs(utils.datapath("wordsim353.tsv"), restrict_vocab=len(read))
    assert spearman[0] == pytest.approx(figures["wordsim353"], abs=0.005)
    assert unknown == pytest.approx(100 * (1 - figures["wordsim353_pairs"] / 353), abs=0.5)
