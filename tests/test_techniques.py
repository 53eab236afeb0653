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


@pytest.mark.parametrize("text", ["", "adaptiv", "static(3)", "adaptive()", "static-", 3])
def test_what_is_no_technique_is_refused_with_those_that_there_are(text: object) -> None:
    with pytest.raises(ConfigError, match=r"technique must be one of adaptive, replicate-only, .*, got") as refused:
        Config.load(overrides={"technique": text}, env={}, file=None)
    assert repr(text) in str(refused.value)
    assert all(name in str(refused.value) for name in techniques.FIXED)
