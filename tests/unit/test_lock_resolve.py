"""Dependencies are resolved to a lock by uv, from the operator's index alone, and no code of a stranger runs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena import Listener
from machine import installing
from small_index import Index, serving

from sandboxrun.errors import ConfigError, FetchError, ScriptError
from sandboxrun.installation import install_hint
from sandboxrun.packages import resolve as module
from sandboxrun.packages.resolve import Pin, Wanted, pins, resolve
from sandboxrun.packages.uv_settings import pip_settings, uv_settings

UV = module.uv(os.environ)


@pytest.fixture
def index() -> Iterator[Index]:
    with serving() as found:
        yield found


@pytest.fixture
def env(index: Index, tmp_path: Path) -> dict[str, str]:
    """Of an operator whose pip is configured, and whose uv is not."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": index.url,
    }


def wanted(*dependencies: str, kept: tuple[Pin, ...] = (), newer: str = "", python: str = "") -> Wanted:
    return Wanted("worker.py", dependencies, python, newer, kept)


def test_a_lock_has_all_packages_with_the_digests_of_their_wheels(index: Index, env: dict[str, str]) -> None:
    index.add("alpha", "1.0")
    alpha = index.add("alpha", "1.5", "beta>=2")
    beta = index.add("beta", "2.0")
    lock = resolve(wanted("alpha"), env)
    assert lock.decode() == (
        "# Made by: sandboxrun lock worker.py\n"
        f"alpha==1.5 \\\n    --hash=sha256:{alpha}\n    # via worker.py\n"
        f"beta==2.0 \\\n    --hash=sha256:{beta}\n    # via alpha\n"
    )
    assert pins(lock, "requirements.lock") == (Pin("alpha", "1.5"), Pin("beta", "2.0"))
    assert resolve(wanted("alpha"), env) == lock


def test_no_lock_of_the_first_form_names_an_index(index: Index, env: dict[str, str]) -> None:
    index.add("alpha", "1.0")
    lock = resolve(wanted("alpha"), env).decode()
    assert "127.0.0.1" not in lock
    assert "://" not in lock


def test_the_second_form_has_the_urls_of_wheels_alone(index: Index, env: dict[str, str]) -> None:
    digest = index.add("alpha", "1.0")
    text = resolve(wanted("alpha"), env, pylock=True).decode()
    (package,) = tomllib.loads(text)["packages"]
    assert text.startswith("# Made by: sandboxrun lock worker.py --pylock\n")
    assert (package["name"], package["version"], package["wheels"][0]["hashes"]) == ("alpha", "1.0", {"sha256": digest})
    assert "sdist" not in package
    assert pins(text.encode(), "pylock.worker.toml") == (Pin("alpha", "1.0"),)


@pytest.mark.parametrize("pylock", [False, True])
def test_pins_are_kept_while_they_fit(pylock: bool, index: Index, env: dict[str, str]) -> None:
    for version in ("1.0", "1.5", "2.0"):
        index.add("alpha", version)
    name = "pylock.worker.toml" if pylock else "requirements.lock"

    def version(*dependencies: str, kept: tuple[Pin, ...]) -> str:
        (pin,) = pins(resolve(wanted(*dependencies, kept=kept), env, pylock=pylock), name)
        return pin.version

    assert version("alpha", kept=()) == "2.0"
    assert version("alpha", kept=(Pin("alpha", "1.5"),)) == "1.5"
    assert version("alpha>=1.6", kept=(Pin("alpha", "1.5"),)) == "2.0"
    assert version("alpha<2", kept=(Pin("alpha", "0.1"), Pin("other", "9"))) == "1.5"


def test_the_digests_are_those_of_the_index_and_not_of_an_older_lock(index: Index, env: dict[str, str]) -> None:
    digest = index.add("alpha", "1.0")
    old = f"alpha==1.0 \\\n    --hash=sha256:{'0' * 64}\n".encode()
    assert f"sha256:{digest}" in resolve(wanted("alpha", kept=pins(old, "requirements.lock")), env).decode()


def test_what_was_uploaded_later_is_left_out(index: Index, env: dict[str, str]) -> None:
    index.add("alpha", "1.0", uploaded="2026-01-01")
    index.add("alpha", "2.0", uploaded="2026-06-01")
    assert b"alpha==1.0" in resolve(wanted("alpha", newer="2026-03-01"), env)
    assert b"alpha==2.0" in resolve(wanted("alpha", newer="2026-07-01"), env)


def test_a_lock_is_for_each_python_that_the_script_takes(index: Index, env: dict[str, str]) -> None:
    index.add("alpha", "1.0", "beta; python_version < '3.12'", "gamma; python_version < '3.11'")
    index.add("beta", "1.0")
    assert pins(resolve(wanted("alpha"), env), "requirements.lock")[1:] == (
        Pin("beta", "1.0", "python_full_version < '3.12'"),
    )
    assert len(pins(resolve(wanted("alpha", python=">=3.12"), env), "requirements.lock")) == 1


# --- what must not work


@pytest.mark.parametrize(
    "dependency",
    [
        "x @ file:///etc/passwd", "x @ git+https://host.example/x", "-r /etc/passwd", "-e .", "./x", "x\n-e .",
        "x>=1\n--index-url=http:host.example", "x===${HOME}", "x\\\n", "x #y", "https://host.example/x.whl", "",
    ],
)  # fmt: skip
def test_what_is_no_name_with_versions_is_refused_before_uv_is_started(dependency: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"the dependency .* is no "):
        resolve(wanted(dependency), {"PATH": str(tmp_path)})


@pytest.mark.parametrize("url", ["file://{folder}", "git+file://{folder}", "{listener}/evil-1.0-py3-none-any.whl"])
def test_a_package_whose_dependency_is_a_url_is_refused(
    url: str, index: Index, env: dict[str, str], tmp_path: Path, listener: Listener
) -> None:
    canary = tmp_path / "canary"
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "setup.py").write_text(f"open({str(canary)!r}, 'w')")
    where = url.format(folder=folder, listener=f"http://127.0.0.1:{listener.port}")
    index.add("alpha", "1.0", f"evil @ {where}")
    with pytest.raises(ScriptError, match="`evil` was included as a URL dependency"):
        resolve(wanted("alpha"), env)
    assert not canary.exists()
    assert listener.connections == 0


def test_nothing_is_built(index: Index, env: dict[str, str], tmp_path: Path) -> None:
    index.files["alpha-1.0.tar.gz"] = (b"no archive", "2026-01-01T00:00:00Z")
    with pytest.raises(ScriptError, match=r"the dependencies have no solution: .*alpha"):
        resolve(wanted("alpha"), env)
    assert not [path for path in index.asked if path.startswith("/files/")]


def test_the_folder_and_what_lies_above_the_temporary_one_are_not_read(
    index: Index, env: dict[str, str], tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("alpha", "1.0")
    canary = tmp_path / "canary"
    program = f'#!/bin/sh\ntouch {canary}\nexec {sys.executable} "$@"\n'
    evil = f'index-url = "http://127.0.0.1:{listener.port}/simple"\n'
    for folder in (tmp_path / "work", tmp_path / "tmp"):
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / ".venv/pyvenv.cfg").write_text("home = /usr/bin\n")
        (folder / ".venv/bin/python").write_text(program)
        (folder / ".venv/bin/python").chmod(0o755)
        (folder / "uv.toml").write_text(evil)
        (folder / "pip.conf").write_text(f"[global]\n{evil}")
        (folder / ".env").write_text(f"UV_DEFAULT_INDEX=http://127.0.0.1:{listener.port}/simple\n")
        (folder / ".python-version").write_text("3.99\n")
        (folder / "setup.py").write_text(f"open({str(canary)!r}, 'w')")
        (folder / "pyproject.toml").write_text(
            f'[project]\nname = "alpha"\nversion = "1"\n[tool.uv]\n{evil}[tool.uv.sources]\nalpha = {{ path = "." }}\n'
        )
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "tmp"))
    assert b"alpha==1.0" in resolve(wanted("alpha"), env)
    assert listener.connections == 0
    assert not canary.exists()
    assert [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("sandboxrun")] == []


def test_no_solution_is_one_line(index: Index, env: dict[str, str]) -> None:
    index.add("alpha", "1.0")
    with pytest.raises(ScriptError) as caught:
        resolve(wanted("alpha>=2"), env)
    assert str(caught.value) == (
        "the dependencies have no solution: Because only alpha==1.0 is available and you require alpha>=2, "
        "we can conclude that your requirements are unsatisfiable."
    )


def test_an_index_that_is_away_is_one_line(env: dict[str, str]) -> None:
    env |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"}
    with pytest.raises(FetchError, match="uv cannot resolve the dependencies: ") as caught:
        resolve(wanted("alpha"), env)
    assert "\n" not in str(caught.value)


def test_without_uv_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(ConfigError, match="uv is not installed") as caught:
        resolve(wanted("alpha"), {"PATH": str(tmp_path)})
    assert caught.value.hint == (install_hint(["uv"]),)


# --- the operator's index


def pip_conf(tmp_path: Path, text: str) -> dict[str, str]:
    (tmp_path / "pip.conf").write_text(text)
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}


def test_pip_s_configuration_becomes_uv_s(tmp_path: Path) -> None:
    env = pip_conf(
        tmp_path,
        "[global]\nindex-url = http://a.example/simple\ncert = ~/ca.pem\ntimeout = 7\nconstraint = /c.txt relative.txt\n"
        "[download]\nindex-url = http://b.example/simple\nextra-index-url =\n  http://c.example/simple\n  http://d.example/simple\n"
        "find-links = /wheels wheels ~/w\ntrusted-host = b.example\nproxy = http://p.example:1\n",
    )
    made, arguments = uv_settings(env, uv=UV)
    expected = {
        "UV_DEFAULT_INDEX": "http://b.example/simple",
        "UV_INDEX": "http://b.example/simple http://c.example/simple http://d.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_HTTP_TIMEOUT": "7",
        "UV_INSECURE_HOST": "b.example",
        "HTTPS_PROXY": "http://p.example:1",
        "UV_PYTHON_DOWNLOADS": "never",
    }
    assert expected.items() <= made.items()
    assert made["SSL_CERT_FILE"] == os.path.expanduser("~/ca.pem")
    assert arguments[:4] == ["--constraints", "/c.txt", "--find-links", "/wheels"]
    assert "wheels" not in arguments
    assert not [name for name in made if name.startswith("PIP_")]


def test_at_equal_versions_the_first_index_wins_and_among_others_the_newest(index: Index, env: dict[str, str]) -> None:
    """A second index may be a folder that has the wheel for one machine alone."""
    with serving() as second:
        for each, versions in ((index, ("1.0", "2.0")), (second, ("2.0", "3.0"))):
            digests = [each.add("alpha", version, *(["beta"] if each is second else [])) for version in versions]
        second.add("beta", "1.0")
        env["PIP_EXTRA_INDEX_URL"] = second.url
        data, _ = index.files["alpha-2.0-py3-none-any.whl"]
        lock = resolve(wanted("alpha<3"), env).decode()
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" in lock
        assert "beta" not in lock
        assert digests[1] in resolve(wanted("alpha"), env).decode()


def test_the_index_that_uv_has_built_in_comes_before_a_second_one(tmp_path: Path) -> None:
    program = tmp_path / "uv"
    program.write_text("#!/bin/sh\necho 'The default package index (by\n  default: <https://a.example/simple>)'\n")
    program.chmod(0o755)
    env = {"PATH": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null", "PIP_EXTRA_INDEX_URL": "file:///wheels"}
    made, _ = uv_settings({**env, "PATH": os.environ["PATH"]}, uv=str(program))
    assert made["UV_INDEX"] == "https://a.example/simple file:///wheels"
    assert (uv_settings(env, uv=UV)[0]["UV_INDEX"]).endswith("/simple file:///wheels")


def test_a_variable_of_pip_outweighs_its_file(tmp_path: Path) -> None:
    env = pip_conf(tmp_path, "[global]\nindex-url = http://a.example/simple\n")
    assert pip_settings({**env, "PIP_INDEX_URL": "http://b.example/simple"})["index-url"] == "http://b.example/simple"


def test_uv_s_own_variables_outweigh_pip_s_configuration(tmp_path: Path) -> None:
    env = pip_conf(tmp_path, "[global]\nindex-url = http://a.example/simple\nfind-links = /wheels\n")
    made, arguments = uv_settings({**env, "UV_DEFAULT_INDEX": "http://b.example/simple", "UV_OVERRIDE": "/x"}, uv=UV)
    assert made["UV_DEFAULT_INDEX"] == "http://b.example/simple"
    assert "--find-links" not in arguments
    assert "UV_OVERRIDE" not in made


def test_the_index_of_a_policy_is_the_only_one(tmp_path: Path) -> None:
    env = pip_conf(
        tmp_path,
        "[global]\nindex-url = http://a.example/simple\nextra-index-url = http://b.example\nfind-links = /wheels\n",
    )
    made, arguments = uv_settings({**env, "UV_INDEX": "http://c.example"}, uv=UV, index="http://d.example/simple")
    assert {name: value for name, value in made.items() if "INDEX" in name} == {
        "UV_DEFAULT_INDEX": "http://d.example/simple"
    }
    assert "--find-links" not in arguments


def test_the_machine_s_own_index_is_reached() -> None:
    """As an operator's: by pip's configuration, whatever it says."""
    lock = resolve(wanted("six"), installing())
    (pin,) = pins(lock, "requirements.lock")
    assert pin.name == "six"
    assert lock.count(b"--hash=sha256:") >= 1


def test_the_lock_is_what_pip_installs(index: Index, env: dict[str, str], tmp_path: Path) -> None:
    index.add("alpha", "1.0", "beta")
    index.add("beta", "1.0")
    (tmp_path / "requirements.lock").write_bytes(resolve(wanted("alpha"), env))
    command = "-m pip download --quiet --require-hashes --no-deps --only-binary :all: -d wheels -r requirements.lock"
    subprocess.run([sys.executable, *command.split()], env=env, cwd=tmp_path, check=True, capture_output=True)
    assert sorted(path.name for path in (tmp_path / "wheels").iterdir()) == [
        "alpha-1.0-py3-none-any.whl", "beta-1.0-py3-none-any.whl",
    ]  # fmt: skip
