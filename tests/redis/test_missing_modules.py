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

Local = Callable[..., Path]
ONE_FILE = (
    "a script by URL has no other files but those that its block lists: run sandboxrun lock where the script is, or run its "
    "folder by url=FOLDER version=local"
)
BLOCK = """\
# /// script
# requires-python = ">=3.11"
# ///
"""


def install(*packages: str) -> str:
    return f"hint: {sys.executable} -m pip install {shlex.join(packages)}"


def declare(package: str) -> str:
    return (
        f'to pin it with the script, begin that with the lines "# /// script", "# dependencies = [\'{package}\']" and "# ///", '
        "and run: sandboxrun lock FILE"
    )


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
    assert done.err.splitlines()[-3:] == [
        f"{name} is neither in {folder} nor installed: a worker finds the packages that are installed beside "
        "sandboxrun, and their code is trusted as sandboxrun's own is",
        declare(package),
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
    assert lines[-4:] == [
        "helper_beside is not installed: a worker finds the packages that are installed beside sandboxrun, and their code "
        "is trusted as sandboxrun's own is",
        f"if helper_beside is a file beside the script: {ONE_FILE}",
        declare("helper_beside"),
        install("helper_beside"),
    ], lines


def test_a_relative_import(r: redis.Redis, run: Runner, local: Local) -> None:
    local("from . import helper")
    done = run("t", "1")
    assert (
        done.err.splitlines()[-1]
        == "a worker is the module __main__ and belongs to no package: import by the whole name"
    )


def test_a_script_with_a_block_imports_what_it_names_alone(r: redis.Redis, run: Runner, local: Local) -> None:
    """httpx is installed beside sandboxrun."""
    folder = local("import httpx\nprint(httpx.__name__)")
    assert run("t", "1").out == "httpx\n"
    folder = local(BLOCK + "import httpx")
    assert run("t", "1").err.splitlines()[-2:] == [
        "httpx is neither a file of the script nor among its dependencies, and a script with a block imports nothing else: add "
        '"httpx" to dependencies, or httpx.py to its files, in the block "# /// script"',
        f"hint: sandboxrun lock {folder / 'worker.py'}",
    ]


def test_a_file_beside_a_script_that_the_hash_names_alone(r: redis.Redis, run: Runner, local: Local) -> None:
    folder = local(BLOCK + "import helper")
    (folder / "helper.py").write_text("")
    r.hset("t:1:h", "url", str(folder / "worker.py"))
    done = run("t", "1")
    assert done.err.endswith(
        "helper.py lies beside the script, but url names the script alone: name its folder instead\n"
    ), done.err


@pytest.mark.parametrize("opening", ["# /// script", "#/// script", "# /// script "])
def test_a_block_that_counts_for_nothing_is_named_and_nothing_is_to_be_installed(
    r: redis.Redis, run: Runner, local: Local, opening: str
) -> None:
    """The hint of pip would put a package into sandboxrun's own environment, perhaps a stranger's with the name of a file."""
    local(f"{opening}\n# dependencies = ['absent-by-design']\nimport absent_by_design")
    err = run("t", "1").err
    assert err.splitlines()[-1].startswith('the block "# /// script" counts for nothing: '), err
    assert "pip" not in err


def test_what_the_sdk_needs_is_there_in_a_script_with_a_block(r: redis.Redis, run: Runner, local: Local) -> None:
    local(
        BLOCK
        + 'import hiredis, redis, cryptography\nfrom sandboxrun import worker\nprint(worker.connect().ping(), worker.config()["version"])'
    )
    done = run("t", "1")
    assert (done.code, done.out) == (0, "True local\n"), done.err


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
