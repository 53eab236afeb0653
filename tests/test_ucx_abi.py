"""What native/ucp_abi.h says of libucp's binary interface is what the headers of an installed UCX say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapm.transports import ucx_library

ROOT = Path(__file__).resolve().parents[1]

STRUCTS = {
    "ucx_params": "ucp_params_t",
    "ucx_worker_params": "ucp_worker_params_t",
    "ucx_ep_params": "ucp_ep_params_t",
    "ucx_request_param": "ucp_request_param_t",
    "ucx_am_recv_param": "ucp_am_recv_param_t",
    "ucx_am_handler_param": "ucp_am_handler_param_t",
    "ucx_transport_entry": "ucp_transport_entry_t",
    "ucx_ep_attr": "ucp_ep_attr_t",
}
CONSTANTS = {
    "UCX_IN_PROGRESS": "UCS_INPROGRESS",
    "UCX_ERR_NO_MEMORY": "UCS_ERR_NO_MEMORY",
    "UCX_ERR_NO_DEVICE": "UCS_ERR_NO_DEVICE",
    "UCX_ERR_BUSY": "UCS_ERR_BUSY",
    "UCX_ERR_LAST": "UCS_ERR_LAST",
    "UCX_PARAM_FEATURES": "UCP_PARAM_FIELD_FEATURES",
    "UCX_FEATURE_WAKEUP": "UCP_FEATURE_WAKEUP",
    "UCX_FEATURE_AM": "UCP_FEATURE_AM",
    "UCX_WORKER_THREAD_MODE": "UCP_WORKER_PARAM_FIELD_THREAD_MODE",
    "UCX_EP_REMOTE_ADDRESS": "UCP_EP_PARAM_FIELD_REMOTE_ADDRESS",
    "UCX_EP_ERR_MODE": "UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE",
    "UCX_EP_ERR_HANDLER": "UCP_EP_PARAM_FIELD_ERR_HANDLER",
    "UCX_EP_ATTR_TRANSPORTS": "UCP_EP_ATTR_FIELD_TRANSPORTS",
    "UCX_ERR_MODE_PEER": "UCP_ERR_HANDLING_MODE_PEER",
    "UCX_CLOSE_FORCE": "UCP_EP_CLOSE_FLAG_FORCE",
    "UCX_OP_CALLBACK": "UCP_OP_ATTR_FIELD_CALLBACK",
    "UCX_OP_USER_DATA": "UCP_OP_ATTR_FIELD_USER_DATA",
    "UCX_OP_FLAGS": "UCP_OP_ATTR_FIELD_FLAGS",
    "UCX_OP_MEMORY_TYPE": "UCP_OP_ATTR_FIELD_MEMORY_TYPE",
    "UCX_AM_SEND_EAGER": "UCP_AM_SEND_FLAG_EAGER",
    "UCX_AM_SEND_RNDV": "UCP_AM_SEND_FLAG_RNDV",
    "UCX_AM_WHOLE_MESSAGE": "UCP_AM_FLAG_WHOLE_MSG",
    "UCX_AM_RECV_DATA": "UCP_AM_RECV_ATTR_FLAG_DATA",
    "UCX_AM_RECV_RNDV": "UCP_AM_RECV_ATTR_FLAG_RNDV",
    "UCX_AM_HANDLER_ID": "UCP_AM_HANDLER_PARAM_FIELD_ID",
    "UCX_AM_HANDLER_FLAGS": "UCP_AM_HANDLER_PARAM_FIELD_FLAGS",
    "UCX_AM_HANDLER_CB": "UCP_AM_HANDLER_PARAM_FIELD_CB",
    "UCX_AM_HANDLER_ARG": "UCP_AM_HANDLER_PARAM_FIELD_ARG",
    "UCX_LOG_FATAL": "UCS_LOG_LEVEL_FATAL",
    "UCX_LOG_WARN": "UCS_LOG_LEVEL_WARN",
    "UCX_LOG_STOP": "UCS_LOG_FUNC_RC_STOP",
    "UCX_LOG_CONTINUE": "UCS_LOG_FUNC_RC_CONTINUE",
}


def headers() -> Path:
    """Where the headers of the UCX that is tested are."""
    for library in ucx_library.candidates():
        folder = Path(library).parent.parent / "include"
        if (folder / "ucp" / "api" / "ucp.h").is_file():
            return folder
    if Path("/usr/include/ucp/api/ucp.h").is_file():
        return Path("/usr/include")
    pytest.skip("no headers of UCX: pip install 'adapm[ucx]' brings them")


def fields(struct: str, text: str) -> list[str]:
    """The names of a struct's members, those of nested ones by their path."""
    body = re.search(r"typedef struct \{ /\* \w+ \*/\n((?:(?!typedef).)*?)\n\} " + struct + ";", text, re.S)
    assert body is not None, struct
    found: list[str] = []
    nested: list[int] = []  # how many there were where a nested struct begins
    for line in re.sub(r"/\*.*?\*/", "", body[1]).splitlines():
        if re.fullmatch(r"\s*(struct|union) \{", line):
            nested.append(len(found))
        elif end := re.fullmatch(r"\s*\} (\w+);", line):
            begin = nested.pop()
            found[begin:] = [f"{end[1]}.{name}" for name in found[begin:]] + [end[1]]
        elif function := re.search(r"\(\*(\w+)\)\(", line):
            found.append(function[1])
        else:
            names = line.strip().rstrip(";").split(",")
            found += [re.sub(r"\[.*", "", name).split()[-1].lstrip("*") for name in names if name]
    return found


def checks() -> Iterator[str]:
    text = (ROOT / "native" / "ucp_abi.h").read_text()
    yield '_Static_assert(sizeof(ucx_status) == sizeof(ucs_status_t), "status");'
    for ours, theirs in STRUCTS.items():
        yield f'_Static_assert(sizeof({ours}) == sizeof({theirs}), "{ours}");'
        for field in fields(ours, text):
            same = f"offsetof({ours}, {field}) == offsetof({theirs}, {field})"
            sizes = f"sizeof((({ours} *)0)->{field}) == sizeof((({theirs} *)0)->{field})"
            yield f'_Static_assert({same} && {sizes}, "{ours}.{field}");'
    declared = set(re.findall(r"\b(UCX_\w+) = ", text))
    assert declared == set(CONSTANTS)
    for ours, theirs in CONSTANTS.items():
        yield f'_Static_assert((long){ours} == (long){theirs}, "{ours}");'
    for name in re.findall(r"X\([\w *]+, (\w+), \(", text):
        yield f"void *check_{name}(void) {{ return (void *)ucp_{name}; }}"


def test_layouts_and_numbers_are_those_of_the_headers(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = ["#include <stddef.h>", "#include <ucp/api/ucp.h>", "#include <ucs/debug/log_def.h>"]
    program += [f'#include "{ROOT / "native" / "ucp_abi.h"}"', *checks()]
    source = tmp_path / "abi.c"
    source.write_text("\n".join(program))
    built = subprocess.run([compiler, "-fsyntax-only", "-I", headers(), source], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert len(program) > 100, "too few fields were found to compare"


def test_a_wrong_layout_would_be_noticed(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "abi.c"
    wrong = '_Static_assert(offsetof(ucx_ep_params, err_mode) == offsetof(ucp_ep_params_t, user_data), "wrong");'
    source.write_text(f'#include <ucp/api/ucp.h>\n#include "{ROOT / "native" / "ucp_abi.h"}"\n{wrong}\n')
    built = subprocess.run([compiler, "-fsyntax-only", "-I", headers(), source], capture_output=True, text=True)
    assert built.returncode != 0 and "wrong" in built.stderr
