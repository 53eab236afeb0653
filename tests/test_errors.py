import pickle

import pytest

from adapm import errors


def classes() -> list[type[errors.AdapmError]]:
    return [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.AdapmError)]


@pytest.mark.parametrize("cls", classes())
def test_message_survives_pickling_and_reads_as_written(cls):
    error = pickle.loads(pickle.dumps(cls("key 7 of table 't'")))
    assert type(error) is cls
    assert str(error) == "key 7 of table 't'"


@pytest.mark.parametrize("cls", classes())
def test_every_class_is_in_the_drawing_with_its_builtin(cls):
    if cls is errors.AdapmError:
        return
    builtin = next((b.__name__ for b in cls.__bases__ if b.__module__ == "builtins"), "")
    assert any({cls.__name__, builtin} - {""} <= set(line.split()) for line in errors.__doc__.splitlines())


@pytest.mark.parametrize("cls", classes())
def test_from_wire_rebuilds_by_name(cls):
    assert type(errors.from_wire(cls.__name__, "why")) is cls


@pytest.mark.parametrize("name", ["SystemExit", "os", "nearest", "__builtins__", ""])
def test_from_wire_makes_nothing_but_our_errors(name):
    error = errors.from_wire(name, "why")
    assert type(error) is errors.AdapmError
    assert str(error) == f"{name}: why"


def test_details_are_attributes_and_survive_pickling():
    died = pickle.loads(pickle.dumps(errors.WorkerDied("gone", worker=3, node=1, pid=42, signal=9)))
    assert (died.worker, died.node, died.pid, died.signal) == (3, 1, 42, 9)
    node = pickle.loads(pickle.dumps(errors.NodeDied("gone", node=1, pid=43, signal=11)))
    assert (node.node, node.pid, node.signal) == (1, 43, 11)
    assert pickle.loads(pickle.dumps(errors.NodeLost("gone", node=2))).node == 2


def test_data_error_says_where():
    error = pickle.loads(pickle.dumps(errors.DataError("two fields, expected three", file="train.txt", line=7)))
    assert str(error) == "train.txt, line 7: two fields, expected three"
    assert (error.file, error.line) == ("train.txt", 7)
    assert str(errors.DataError("is empty", file="train.txt")) == "train.txt: is empty"


def test_builtins_catch_ours():
    with pytest.raises(KeyError):
        raise errors.UnknownTable("no table 'x'")
    with pytest.raises(ConnectionError):
        raise errors.NodeLost("node 1 is lost", node=1)


def test_nearest_suggests_or_lists():
    assert errors.nearest("entites", ["entities", "relations"]) == "; did you mean 'entities'?"
    assert errors.nearest("x", ["entities", "relations"]) == "; there are: entities, relations"
