"""The edge to C: error numbers become exceptions, and the typed stub says what kernel.h says."""

from __future__ import annotations

import ast
import errno
import importlib
import re
from pathlib import Path

import pytest

from adapm import errors
from adapm.kernel import check, error_of

ROOT = Path(__file__).resolve().parent.parent


def test_results_pass() -> None:
    assert [check(0), check(17, table="t")] == [0, 17]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOMEM, errors.OutOfMemory),
        (errno.ENOSPC, errors.OutOfMemory),
        (errno.EBUSY, errors.TooManyWorkers),
        (errno.ECONNRESET, errors.NodeLost),
        (errno.EPROTO, errors.ProtocolError),
        (errno.EOWNERDEAD, errors.NodeDied),
        (errno.ESHUTDOWN, errors.Closed),
        (errno.EINVAL, errors.InternalError),
    ],
)
def test_error_numbers(code: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="operation pull, node 2: "):
        check(-code, operation="pull", node=2)


def test_lost_node_is_named() -> None:
    error = error_of(-errno.ECONNRESET, node=2)
    assert isinstance(error, errors.NodeLost)
    assert error.node == 2


def declared(headers: str) -> dict[str, int]:
    """The functions of some headers and the number of their arguments."""
    texts = [(ROOT / "native" / header).read_text() for header in headers.split()]
    text = "".join(text.split("/* cffi begin */")[1].split("/* cffi end */")[0] for text in texts)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    found = re.findall(r"\b(adapm_\w+)\(([^)]*)\);", text)
    return {name: 0 if arguments == "void" else len(arguments.split(",")) for name, arguments in found}


@pytest.mark.parametrize(
    ("module", "header"), [("_kernel", "kernel.h"), ("_tcp", "tcp.h"), ("_ucp", "ucp.h ucp_links.h")]
)
def test_stub_matches_the_header(module: str, header: str) -> None:
    tree = ast.parse((ROOT / "adapm" / f"{module}.pyi").read_text())
    (stub,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Lib"]
    functions = [node for node in stub.body if isinstance(node, ast.FunctionDef)]
    constants = [
        node.target.id for node in stub.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    assert {node.name: len(node.args.posonlyargs) - 1 for node in functions} == declared(header)
    assert sorted([*declared(header), *constants]) == sorted(dir(importlib.import_module(f"adapm.{module}").lib))
