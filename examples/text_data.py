"""Text: where it comes from, and how its words become integers; and what word vectors are tested with.

    load("wikipedia", 5)      206 articles, read from the gensim package's archive, which pip fetches once
    load("some/file", 5)      any text in UTF-8, packed (.xz, .bz2) or not

A sentence is a line of the file, or of an article, cut after 1,000 words. Words are runs of letters, digits and
underscores, in lower case. Those that appear seldom are left out. Whatever is wrong with a file is an
adapm.errors.DataError that says where.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from data_files import Archive, Named, quoted, read_file

from adapm.errors import DataError

ARCHIVE = Archive(
    requirement="gensim==4.4.0",
    file="gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    options=("--platform=manylinux_2_28_x86_64", "--python-version=3.11", "--implementation=cp", "--abi=cp311"),
)
FOLDER = "gensim/test/test_data/"
ARTICLES = FOLDER + "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
SIMILARITIES = {"wordsim353": FOLDER + "wordsim353.tsv", "simlex999": FOLDER + "simlex999.txt"}
ANALOGIES = FOLDER + "questions-words.txt"

LONGEST = 1000  # words in a sentence; word2vec cuts there, too
WORD = re.compile(r"\w+")


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as integers.

    Attributes:
        words: all that appear often enough, the most frequent first.
        counts: how often each does, int64 [words].
        tokens: the text, numbers of words, int32 [n].
        ends: where each sentence ends in `tokens`, int64 [sentences]; none is empty.
    """

    name: str
    words: list[str]
    counts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Exercises:
    """What word vectors are tested with, as far as its words are known.

    Attributes:
        similarities: by name, pairs of words int64 [n, 2] and how similar people find them, float64 [n].
        analogies: int64 [n, 4]: the first is to the second as the third is to the fourth.
    """

    similarities: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]
    analogies: npt.NDArray[np.int64]


def load(name: str, min_count: int) -> Corpus:
    """The text of this name or in this file, without the words that appear fewer than `min_count` times.

    Raises DataError where there is none, it cannot be fetched, it is no text, or no two words are left.
    """
    if name == "wikipedia":
        ((_, content),) = ARCHIVE.read(ARTICLES)
        return _number(name, list(_articles(content.decode())), min_count)
    path = Path(name)
    if not path.is_file():
        raise DataError(f"no data set and no file {name!r}; give wikipedia, or a file with text")
    return _number(path.name, [_text(read_file(path))], min_count)


def exercises(words: list[str]) -> Exercises:
    """The parts of WordSim-353, SimLex-999 and Google's analogies in which only these words appear.

    Raises DataError where the archive cannot be fetched, or a file in it is malformed.
    """
    numbers = {word: number for number, word in enumerate(words)}
    *pairs, questions = ARCHIVE.read(*SIMILARITIES.values(), ANALOGIES)
    return Exercises(
        {name: similarities(file, numbers) for name, file in zip(SIMILARITIES, pairs, strict=True)},
        analogies(questions, numbers),
    )


def _text(file: Named) -> str:
    name, content = file
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        shown = quoted(content[error.start : error.start + 8])
        problem = f"is no UTF-8: {error.reason} at {shown}; convert it, for example with `iconv -t utf-8`"
        raise DataError(problem, file=name, line=line) from error


def _number(name: str, texts: list[str], min_count: int) -> Corpus:
    sentences = [WORD.findall(line.lower()) for text in texts for line in text.splitlines()]
    seen: Counter[str] = Counter()
    for sentence in sentences:
        seen.update(sentence)
    kept = [(word, count) for word, count in seen.most_common() if count >= min_count]
    if len(kept) < 2:
        problem = f"{len(kept)} of {len(seen)} different words appear {min_count} times; 2 are needed"
        raise DataError(f"{problem}: lower --min-count, or give a longer text", file=name)
    numbers = {word: number for number, (word, _) in enumerate(kept)}
    numbered = [[numbers[word] for word in sentence if word in numbers] for sentence in sentences]
    tokens = np.array([number for sentence in numbered for number in sentence], np.int32)
    counts = np.array([count for _, count in kept], np.int64)
    return Corpus(name, [word for word, _ in kept], counts, tokens, _ends([len(sentence) for sentence in numbered]))


def _ends(lengths: list[int]) -> npt.NDArray[np.int64]:
    """Where sentences of these lengths end, those that are too long being cut, and empty ones left out."""
    ends, end = [], 0
    for length in lengths:
        ends += [*range(end + LONGEST, end + length, LONGEST), end + length] if length else []
        end += length
    return np.array(ends, np.int64)


# ---- the articles' markup

PAGE = re.compile(r"<text[^>]*>(.*?)</text>", re.DOTALL)
NO_TEXT = re.compile(r"<!--.*?-->|<ref[^>]*/>|<(ref|math|gallery|nowiki|timeline)\b.*?</\1>", re.DOTALL)
TEMPLATE = re.compile(r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)  # or a table
LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
WEB_LINK = re.compile(r"\[\w+://\S*([^\]]*)\]")
TAG = re.compile(r"<[^<>]*>")


def _articles(dump: str) -> Iterator[str]:
    """The text of each article in a dump of Wikipedia, without its markup."""
    for page in PAGE.findall(dump):
        text = NO_TEXT.sub(" ", html.unescape(html.unescape(page)))
        for pattern, meaning in ((TEMPLATE, lambda _: " "), (LINK, _link)):
            text = _innermost_first(pattern, meaning, text)
        yield TAG.sub(" ", WEB_LINK.sub(r"\1", text))


def _innermost_first(pattern: re.Pattern[str], meaning: Callable[[re.Match[str]], str], text: str) -> str:
    """Replaces all matches of a pattern that matches only what has none of its kind inside."""
    found = 1
    while found:
        text, found = pattern.subn(meaning, text)
    return text


def _link(match: re.Match[str]) -> str:
    """What a reader sees of a link: its last part; nothing of files, categories and other languages."""
    target, *parts = match[1].split("|")
    return "" if ":" in target else [target, *parts][-1]


# ---- exercises


def similarities(file: Named, numbers: dict[str, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pairs of these words and their similarity, of a file with two words and a number a line, separated by tabs.

    Lines that begin with # are comments. Raises DataError for other lines.
    """
    pairs, scores = [], []
    for line, text in _lines(file):
        fields = text.split(b"\t")
        try:
            score = float(fields[2]) if len(fields) == 3 else None
        except ValueError:
            score = None
        if score is None:
            problem = f"two words and a number, separated by tabs, are expected, found {quoted(text)}"
            raise DataError(problem, file=file[0], line=line)
        pair = _known(fields[:2], numbers)
        if pair:
            pairs.append(pair)
            scores.append(score)
    return np.array(pairs, np.int64).reshape(-1, 2), np.array(scores)


def analogies(file: Named, numbers: dict[str, int]) -> npt.NDArray[np.int64]:
    """Analogies between these words, [n, 4], of a file with four words a line, separated by spaces.

    Lines that begin with a colon are headings. Raises DataError for other lines.
    """
    questions = []
    for line, text in _lines(file):
        if not text.startswith(b":"):
            fields = text.split()
            if len(fields) != 4:
                raise DataError(f"four words are expected, found {quoted(text)}", file=file[0], line=line)
            question = _known(fields, numbers)
            if question:
                questions.append(question)
    return np.array(questions, np.int64).reshape(-1, 4)


def _lines(file: Named) -> Iterator[tuple[int, bytes]]:
    for line, text in enumerate(file[1].splitlines(), start=1):
        if not text.startswith(b"#"):
            yield line, text


def _known(fields: list[bytes], numbers: dict[str, int]) -> list[int]:
    """The numbers of the words; none if one of them is not known."""
    words = [field.decode("utf-8", errors="replace").lower() for field in fields]
    return [numbers[word] for word in words] if all(word in numbers for word in words) else []
