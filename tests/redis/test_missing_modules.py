"""A module that a worker does not find: what to do until packages exist."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from raw_host import RawHost
from runner import Runner

from sandboxrun import installation
from sandboxrun.sandbox.child import modules

Local = Callable[..., Path]
ONE_FILE = (
    "a script by URL is one file, and nothing beside it is fetched: put the code into the script, or run its folder by "
    "url=FOLDER version=local"
)
BLOCK = """\
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "absent-by-design>=2,<3",
#   "another-absent; python_version >= '3.8'",
# ]
# ///
"""


def install(*packages: str) -> str:
    return f"hint: {sys.executable} -m pip install {shlex.join(packages)}"


@pytest.mark.parametrize(
    ("code", "name", "package"),
    [
        ("import absent_by_design", "absent_by_design", "absent_by_design"),
        ("from absent_by_design.part import x", "absent_by_design", "absent_by_design"),
        ("import slugify", "slugify", "python-slugify"),
        ("import discord", "discord", "discord.py"),
        ("def f():\n    import absent_by_design\nf()", "absent_by_design", "absent_by_design"),
    ],
)
def test_a_package_that_is_not_installed(
    r: redis.Redis, run: Runner, local: Local, code: str, name: str, package: str
) -> None:
    folder = local(code)
    done = run("t", "1")
    assert done.code == 1
    assert done.err.splitlines()[-2:] == [
        f"{name} is neither in {folder} nor installed: a worker finds the packages that are installed beside "
        "sandboxrun, and their code is trusted as sandboxrun's own is",
        install(package),
    ], done.err


def test_in_a_handler_too(r: redis.Redis, run: Runner, local: Local) -> None:
    from sandboxrun import client

    local(
        "from sandboxrun import worker\n@worker.handler\ndef handle(request):\n    import absent_by_design\nworker.run()",
        requestLimit="1",
    )
    client.send(r, "t", {}, now="x")
    assert install("absent_by_design") in run("t", "1").err.splitlines()


def test_a_helper_beside_a_script_by_url(r: redis.Redis, run: Runner, host: RawHost) -> None:
    host.files["/v1/w.py"] = "import helper_beside\n"
    r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": "v1"})
    lines = run("t", "1").err.splitlines()
    assert lines[-3:] == [
        "helper_beside is not installed: a worker finds the packages that are installed beside sandboxrun, and their code "
        "is trusted as sandboxrun's own is",
        f"if helper_beside is a file beside the script: {ONE_FILE}",
        install("helper_beside"),
    ], lines


def test_a_relative_import(r: redis.Redis, run: Runner, local: Local) -> None:
    local("from . import helper")
    done = run("t", "1")
    assert (
        done.err.splitlines()[-1]
        == "a worker is the module __main__ and belongs to no package: import by the whole name"
    )


def test_dependencies_in_the_script_are_what_is_to_be_installed(r: redis.Redis, run: Runner, local: Local) -> None:
    local(BLOCK + "import absent_by_design")
    lines = run("t", "1").err.splitlines()
    assert lines[-2] == 'the list of dependencies in "# /// script" is not read', lines
    assert lines[-1] == install("absent-by-design>=2,<3", "another-absent; python_version >= '3.8'")


@pytest.mark.parametrize(
    "code",
    [
        "import json.absent",
        "from json import absent",
        "try:\n    import absent_by_design\nexcept ImportError:\n    print('without')",
        "raise ModuleNotFoundError('by hand')",
    ],
)
def test_other_errors_of_imports_name_no_package(r: redis.Redis, run: Runner, local: Local, code: str) -> None:
    local(code)
    assert "installed" not in run("t", "1").err


def test_a_part_of_python_is_no_package(r: redis.Redis, run: Runner, local: Local) -> None:
    local("raise ModuleNotFoundError('x', name='msilib')")  # of Windows
    assert "msilib belongs to Python, and this installation of Python lacks it" in run("t", "1").err


@pytest.mark.parametrize(
    ("source", "listed"),
    [
        (BLOCK, ["absent-by-design>=2,<3", "another-absent; python_version >= '3.8'"]),
        ("# /// script\n# dependencies = []\n# ///\n", []),
        ("# /// script\n# dependencies = ['x']\n", []),
        ("# /// script\n# dependencies = ['x'\n# ///\n", []),
        ("# /// script\n# dependencies = 'x'\n# ///\n", []),
        ("# /// script\n# dependencies = [1, 'x']\n# ///\n", ["x"]),
        ("# /// script\n# dependencies = ['--index-url=http://x', '-r x', '', \"x\\ny\", 'z']\n# ///\n", ["z"]),
        (
            "# /// script\n# dependencies = ['x @ file:///data/x', 'x@git+https://h/x', 'x/../y', 'x[a,b] >=1,<2; os_name == \"a\"']\n# ///\n",
            ['x[a,b] >=1,<2; os_name == "a"'],
        ),
        ("# /// other\n# dependencies = ['x']\n# ///\n", []),
        ("import os\n\n# /// script\n# dependencies = ['x']\n#\n# ///\nx = 1\n", ["x"]),
        ("", []),
    ],
)
def test_the_block_is_read_as_pep_723_says(source: str, listed: list[str]) -> None:
    assert modules.dependencies(source) == listed


@pytest.mark.parametrize(
    ("mark", "command"),
    [
        ("pipx_metadata.json", "pipx inject sandboxrun 'a>1' b"),
        ("uv-receipt.toml", "uv tool install sandboxrun --with 'a>1' --with b"),
    ],
)
def test_the_command_is_of_the_tool_that_installed_sandboxrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, command: str
) -> None:
    (tmp_path / mark).touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert installation.install_hint(["a>1", "b"]) == command


def test_without_pip_the_command_is_uvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert installation.install_hint(["b"]) == f"uv pip install --python {sys.executable} b"
