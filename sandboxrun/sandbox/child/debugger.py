"""Runs in the worker's process: a debugger listens here, inside the sandbox, with the rights of the worker."""

from __future__ import annotations

import os
import socket
import sys


def listen(host: str, port: int, wait: bool) -> None:
    """Listen, and `wait` until a client is attached. Ends the process if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        with socket.socket(family) as sock:  # debugpy would say nothing, and wait
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen()
    except OSError as error:
        _say(f"error: the debugger cannot listen on {shown}: {error.strerror}")
        _say(f"hint: {_port_hint(host, sys.argv[1])}")
        os._exit(1)
    # Of modules that are frozen into Python, in which no breakpoint is wanted, it would warn at length.
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    import debugpy

    # Its usual adapter is a process of its own, which a worker cannot start.
    host, port = debugpy.listen((host, port), in_process_debug_adapter=True)
    del os.environ["PYDEVD_DISABLE_FILE_VALIDATION"]
    _say(f"Debugger listening on {host}:{port}" + (", waiting for it to be attached" if wait else ""))
    if wait:
        debugpy.wait_for_client()


def _port_hint(host: str, key: str) -> str:
    """The command that starts the worker `key` with a debugger on a port of the kernel's choice."""
    type_, id_ = key.split(":")[:2]
    return f"sandboxrun {type_} {id_} --inspect={f'[{host}]' if ':' in host else host}:0"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
