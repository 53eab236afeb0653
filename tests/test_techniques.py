"""The table of techniques, and their names."""

from __future__ import annotations

import pytest

from adapm import techniques
from adapm.config import Config
from adapm.errors import ConfigError


@pytest.mark.parametrize("name", techniques.FIXED)
def test_every_name_is_that_of_its_technique(name: str) -> None:
    assert techniques.named(f" {name.upper()} ").name == name
    assert Config(technique=name).technique == name


@pytest.mark.parametrize(
    ("given", "name", "bound", "hot"),
    [
        ("ssp(3)", "ssp(3)", 3, None),
        (" SSP( 0 ) ", "ssp(0)", 0, None),
        ("nups(20)", "nups(20)", None, 20),
        ("nups", "nups", None, None),
    ],
)
def test_techniques_with_numbers_keep_them(given: str, name: str, bound: int | None, hot: int | None) -> None:
    technique = techniques.named(given)
    assert (technique.name, technique.bound, technique.hot) == (name, bound, hot)
    assert Config(technique=given).technique == name
    assert techniques.named(name) == technique


@pytest.mark.parametrize(
    "text",
    ["", "adaptiv", "static(3)", "adaptive()", "static-", 3, "ssp", "ssp(10001)", "ssp(-1)", "essp(2)", "nups(x)"],
)
def test_what_is_no_technique_is_refused_with_those_that_there_are(text: object) -> None:
    with pytest.raises(ConfigError, match=r"technique must be one of adaptive, replicate-only, .*, got") as refused:
        Config.load(overrides={"technique": text}, env={}, file=None)
    assert repr(text) in str(refused.value)
    assert all(name in str(refused.value) for name in (*techniques.FIXED, "ssp(s)", "nups(n)"))
