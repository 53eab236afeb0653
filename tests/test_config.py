import pickle
from pathlib import Path

import pytest

from adapm.config import Config, environment_name, format_bytes, parse_bytes, reference, settings
from adapm.errors import ConfigError

ROOT = Path(__file__).parent.parent


def load(config=None, *, toml: Path | None = None, env=None, cli=None, **overrides) -> Config:
    return Config.load(config, overrides, file=toml, env=env or {}, cli=cli)


@pytest.fixture
def toml(tmp_path) -> Path:
    return tmp_path / "adapm.toml"


def test_defaults_load_and_say_so():
    config = load()
    assert config == Config()
    assert {config.origin(name) for name in settings()} == {"default"}
    assert (config.nodes, config.worker_count, config.threads, config.heap) == (1, 2, False, 16 * 2**20)


def test_each_source_beats_the_ones_below(toml):
    toml.write_text("nodes = 2\n")
    sources = [
        ({"toml": toml}, 2, str(toml)),
        ({"config": {"nodes": 3}}, 3, "keyword"),
        ({"nodes": 4}, 4, "keyword"),
        ({"env": {"ADAPM_NODES": "5"}}, 5, "environment ADAPM_NODES"),
        ({"cli": {"nodes": "6"}}, 6, "command line"),
    ]
    given: dict[str, object] = {}
    for source, value, origin in sources:
        given.update(source)
        config = load(**given)
        assert (config.nodes, config.origin("nodes")) == (value, origin)


def test_what_is_not_given_does_not_hide_what_is(toml):
    toml.write_text("nodes = 2\n")
    assert load(toml=toml, cli={"nodes": None}, env={"ADAPM_NODES": ""}, nodes=None).nodes == 2


def test_of_a_config_only_what_was_chosen_counts(toml):
    toml.write_text('nodes = 2\ntransport = "inproc"\n')
    config = load(Config(nodes=3), toml=toml)
    assert (config.nodes, config.transport) == (3, "inproc")
    assert config.origin("transport") == str(toml)


@pytest.mark.parametrize("value", [0, 4_001, "x", "1.5", 2.0, True, [2]])
def test_integers_refuse(value):
    with pytest.raises(ConfigError, match=r"nodes must be an integer from 1 to 4000, got .* keyword"):
        load(nodes=value)


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("workers", 3, "3"),
        ("workers", "threads:4", "threads:4"),
        ("memory", "1.5GiB", 3 * 2**29),
        ("heap", "64 kib", 2**16),
        ("heap", 2**20, 2**20),
        ("startup_timeout", "2.5", 2.5),
        ("log_level", "INFO", "info"),
        ("rendezvous", "tcp://[::1]:7000", "tcp://[::1]:7000"),
        ("transport", "zmq+ipc", "zmq+ipc"),
        ("profile", "1", True),
        ("profile", "No", False),
        ("profile", True, True),
    ],
)
def test_values_are_read(name, given, read):
    assert getattr(load(**{name: given}), name) == read


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", "0"),
        ("workers", "processes:2"),
        ("workers", 1.5),
        ("technique", "magic"),
        ("transport", "Zmq!"),
        ("rendezvous", "host:7000"),
        ("memory", "lots"),
        ("profile", "maybe"),
        ("profile", 1),
        ("memory", "10 bananas"),
        ("heap", "1KiB"),
        ("startup_timeout", 0),
        ("startup_timeout", "nan"),
        ("startup_timeout", True),
        ("log_level", "loud"),
        ("tick_rate", 0),
        ("seed", -1),
    ],
)
def test_values_that_do_not_fit_are_refused_with_the_rule(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be .*, got ") as caught:
        Config(**{name: value})
    assert repr(value) in str(caught.value)


def test_fields_that_contradict_each_other():
    with pytest.raises(ConfigError, match="node=2 but nodes=2"):
        Config(nodes=2, node=2, rendezvous="tcp://a:1")
    with pytest.raises(ConfigError, match="needs rendezvous"):
        Config(nodes=2, node=1)
    assert Config(nodes=1, node=0).node == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"worker": 3}, "no setting 'worker' .*keyword.*did you mean 'workers'"),
        ({"file": "x"}, "no setting 'file' "),
        ({"config": {"tickrate": 3}}, "no setting 'tickrate' .*did you mean 'tick_rate'"),
        ({"cli": {"zzz": "3"}}, "no setting 'zzz' .*command line.*there are: nodes, workers"),
        ({"env": {"ADAPM_TRANSPROT": "zmq"}}, "no setting ADAPM_TRANSPROT .*did you mean ADAPM_TRANSPORT"),
    ],
)
def test_unknown_names_are_told_the_nearest(given, message):
    with pytest.raises(ConfigError, match=message):
        load(**given)


def test_unknown_name_in_the_file(toml):
    toml.write_text("transprot = 'zmq'\n")
    with pytest.raises(ConfigError, match=r"'transprot' \(from: .*adapm.toml\); did you mean 'transport'"):
        load(toml=toml)


def test_variables_of_others_with_our_prefix_are_left_alone():
    assert load(env={"ADAPM_DATA": "/data", "ADAPM_SANITIZE": "thread", "ADAPM_STRICT": "1"}) == Config()


@pytest.mark.parametrize("content", [b"nodes = ", b"\xff\xfe"])
def test_unreadable_file(toml, content):
    toml.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read settings from .*adapm\.toml"):
        load(toml=toml)


@pytest.mark.parametrize("name", settings())
def test_every_setting_can_be_given_as_text_and_shows_as_text_that_reads_back(name):
    examples = {
        "node": "0",
        "rendezvous": "tcp://h:1",
        "bind": "tcp://h:1",
        "memory": "1GiB",
        "key_file": "a/key",
        "job": "j",
        "report": "a/file",
        "trace": "a/b",
    }
    text = Config().show(name) or examples[name]
    config = load(env={environment_name(name): text})
    assert config.show(name) == text
    assert config.origin(name) == f"environment {environment_name(name)}"


@pytest.mark.parametrize("name", settings())
def test_every_setting_is_described(name):
    metadata = settings()[name].metadata
    assert metadata["help"].endswith((".", "reserve", "all nodes", "rendezvous", "machine"))
    assert metadata["rule"].what
    assert f"`{name}`" in reference()


def test_as_dict_makes_the_same_config_and_it_pickles():
    config = load(nodes=2, heap="1MiB")
    assert Config(**config.as_dict()) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_agreed_settings():
    assert set(Config().agreed()) == {
        "nodes",
        "transport",
        "technique",
        "seed",
        "link_bandwidth",
        "link_latency",
        "trace_keys",
    }


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("700B", 700), ("16MiB", 2**24), ("1.5 gib", 3 * 2**29), ("2GB", 2 * 10**9)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(("size", "text"), [(700, "700B"), (2**24, "16MiB"), (3 * 2**29, "1.5GiB"), (2**40, "1TiB")])
def test_sizes_for_people(size, text):
    assert format_bytes(size) == text


def test_the_reference_page_is_current():
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == reference(), "run: make docs"


@pytest.mark.parametrize(
    ("name", "text", "value", "shown"),
    [
        ("link_bandwidth", "1Gbit", 125e6, "1Gbit"),
        ("link_bandwidth", "2.5 mbit", 312_500.0, "2.5Mbit"),
        ("link_bandwidth", "0", 0.0, "0"),
        ("link_latency", "500us", 5e-4, "500us"),
        ("link_latency", "0.5ms", 5e-4, "500us"),
        ("link_latency", "2", 2.0, "2s"),
    ],
)
def test_rates_and_times_have_units(name, text, value, shown):
    config = load(**{name: text})
    assert getattr(config, name) == pytest.approx(value, rel=1e-12)
    assert config.show(name) == shown
    assert load(**{name: getattr(config, name)}) == config


@pytest.mark.parametrize("value", ["1Gbyte", "fast", "-1Gbit", "nan", -1.0, float("inf"), True, [1]])
def test_rates_refuse(value):
    with pytest.raises(ConfigError, match="link_bandwidth must be a rate such as 1Gbit"):
        load(link_bandwidth=value)
