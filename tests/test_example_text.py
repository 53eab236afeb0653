"""examples/text_data.py: words from text and from articles, exercises, and what is said about files that are wrong."""

import bz2
import sys
from pathlib import Path

import numpy as np
import pytest

from adapm.errors import DataError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import text_data

from package_archive import make_archive

PAGE = """<page><text xml:space="preserve">
{{About|cats {{nested|template}}}}
'''Cats''' purr.&lt;ref name="a"/&gt; [[Dog|Dogs]] bark&lt;ref&gt;not this&lt;/ref&gt; at
[[cat]]s &lt;!-- nor this --&gt;
[[File:cat.jpg|thumb|a [[picture]] of cats]] [[de:Katze]]
{| class="table"
| hidden || {{x}}
{| inner |}
|}
see [http://cats.example/page the page], &amp;nbsp;&lt;b&gt;bold&lt;/b&gt; x&lt;math&gt;y^2&lt;/math&gt;
</text></page>"""


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def sentences(corpus):
    return [[corpus.words[token] for token in some] for some in np.split(corpus.tokens, corpus.ends)[:-1]]


class TestFile:
    def test_words_sentences_and_counts(self, tmp_path):
        corpus = text_data.load(written(tmp_path / "a.txt", "The cat, the dog.\n\nw_1 Été the\r\n"), 1)
        assert sentences(corpus) == [["the", "cat", "the", "dog"], ["w_1", "été", "the"]]
        assert corpus.words[0] == "the"
        assert corpus.counts.tolist() == [3, 1, 1, 1, 1]
        assert (corpus.name, corpus.tokens.dtype, corpus.ends.dtype) == ("a.txt", np.int32, np.int64)

    def test_seldom_words_are_left_out_and_sentences_without_others(self, tmp_path):
        corpus = text_data.load(written(tmp_path / "a.txt", "a b c\nd\nb a\n"), 2)
        assert sentences(corpus) == [["a", "b"], ["b", "a"]]

    def test_long_sentences_are_cut(self, tmp_path, monkeypatch):
        monkeypatch.setattr(text_data, "LONGEST", 3)
        corpus = text_data.load(written(tmp_path / "a.txt", "a b a b a b a\nb a b\n"), 1)
        assert corpus.ends.tolist() == [3, 6, 7, 10]

    def test_packed(self, tmp_path):
        corpus = text_data.load(written(tmp_path / "a.txt.bz2", bz2.compress(b"a b")), 1)
        assert sentences(corpus) == [["a", "b"]]

    def test_no_text(self, tmp_path):
        file = written(tmp_path / "a.bin", b"one\ntwo \xff\xfe three\n")
        with pytest.raises(DataError, match=r"line 2: is no UTF-8: .* at '\\\\xff\\\\xfe three'; convert it") as caught:
            text_data.load(file, 1)
        assert (caught.value.file, caught.value.line) == (file, 2)

    @pytest.mark.parametrize(("text", "found"), [("a a a b", "1 of 2"), ("", "0 of 0"), ("... ---", "0 of 0")])
    def test_too_few_words(self, tmp_path, text, found):
        with pytest.raises(DataError, match=rf"{found} different words appear 2 times.*lower --min-count"):
            text_data.load(written(tmp_path / "a.txt", text), 2)

    def test_unknown_name(self):
        with pytest.raises(DataError, match=r"no file 'text8'; give wikipedia, or a file with text"):
            text_data.load("text8", 5)


def test_articles_lose_their_markup(tmp_path, monkeypatch):
    make_archive(text_data, tmp_path, monkeypatch, {text_data.ARTICLES: bz2.compress(PAGE.encode())})
    corpus = text_data.load("wikipedia", 1)
    assert corpus.name == "wikipedia"
    assert sentences(corpus) == [
        ["cats", "purr", "dogs", "bark", "at"],
        ["cats"],
        ["see", "the", "page", "bold", "x"],
    ]


NUMBERS = {word: number for number, word in enumerate(["athens", "greece", "paris", "france", "cat"])}


class TestExercises:
    def test_only_known_words(self):
        file = "pairs", b"# comment\nAthens\tGreece\t8.5\nathens\tdog\t1\ncat\tcat\t10\n"
        pairs, scores = text_data.similarities(file, NUMBERS)
        assert (pairs.tolist(), scores.tolist()) == ([[0, 1], [4, 4]], [8.5, 10.0])
        file = "questions", b": capitals\nAthens Greece Paris France\nAthens Greece Rome Italy\n"
        assert text_data.analogies(file, NUMBERS).tolist() == [[0, 1, 2, 3]]

    def test_nothing_known(self):
        assert text_data.similarities(("pairs", b"dog\tfox\t1\n"), NUMBERS)[0].shape == (0, 2)
        assert text_data.analogies(("questions", b"a b c d\n"), NUMBERS).shape == (0, 4)

    @pytest.mark.parametrize("line", ["a\tb", "a\tb\tx", "a b 1", "a\tb\t1\t2", ""])
    def test_bad_pair(self, line):
        with pytest.raises(DataError, match="two words and a number") as caught:
            text_data.similarities(("pairs", b"cat\tcat\t1\n" + line.encode() + b"\n"), NUMBERS)
        assert (caught.value.file, caught.value.line) == ("pairs", 2)

    @pytest.mark.parametrize("line", ["a b c", "a b c d e", ""])
    def test_bad_question(self, line):
        with pytest.raises(DataError, match="four words are expected") as caught:
            text_data.analogies(("questions", b": heading\n" + line.encode() + b"\n"), NUMBERS)
        assert (caught.value.file, caught.value.line) == ("questions", 2)

    def test_from_the_archive(self, tmp_path, monkeypatch):
        members = dict.fromkeys(text_data.SIMILARITIES.values(), "athens\tgreece\t9\n")
        make_archive(text_data, tmp_path, monkeypatch, members | {text_data.ANALOGIES: "athens greece paris france\n"})
        exercises = text_data.exercises(list(NUMBERS))
        assert list(exercises.similarities) == ["wordsim353", "simlex999"]
        assert [scores.tolist() for _, scores in exercises.similarities.values()] == [[9.0], [9.0]]
        assert exercises.analogies.tolist() == [[0, 1, 2, 3]]
