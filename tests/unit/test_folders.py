"""The user's folders are those of platformdirs, and only absolute ones."""

from __future__ import annotations

import os
import pwd
import re
import tomllib
from pathlib import Path

import platformdirs
import pytest

from sandboxrun.errors import ConfigError
from sandboxrun.host.folders import Folders
from sandboxrun.sandbox.compile import code_paths
from sandboxrun.sandbox.compile.paths import within

ROOT = Path(__file__).parents[2]
HOME = pwd.getpwuid(os.getuid()).pw_dir.rstrip("/") or "/"
XDG = ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")
ENVIRONMENTS: dict[str, tuple[dict[str, str], tuple[str, str, str, str]]] = {
    "a home": ({"HOME": "/home/me"}, ("/home/me/.cache", "/home/me/.local/state", "/home/me/.local/share", "/home/me/.config")),
    "no HOME": ({}, (f"{HOME}/.cache", f"{HOME}/.local/state", f"{HOME}/.local/share", f"{HOME}/.config")),
    "root": ({"HOME": "/root", "USER": "root"}, ("/root/.cache", "/root/.local/state", "/root/.local/share", "/root/.config")),
    "HOME with a slash": ({"HOME": "/home/me/"}, ("/home/me/.cache", "/home/me/.local/state", "/home/me/.local/share", "/home/me/.config")),
    "HOME is the root folder": ({"HOME": "/"}, ("/.cache", "/.local/state", "/.local/share", "/.config")),
    "all set": (dict(zip(XDG, ("/c", "/s/", "/d", "/e e"), strict=True)), ("/c", "/s", "/d", "/e e")),
    "empty ones": ({"HOME": "/home/me", **dict.fromkeys(XDG, "")}, ("/home/me/.cache", "/home/me/.local/state", "/home/me/.local/share", "/home/me/.config")),
    "white space": ({"HOME": "/home/me", **dict.fromkeys(XDG, " ")}, ("/home/me/.cache", "/home/me/.local/state", "/home/me/.local/share", "/home/me/.config")),
    "set without a home": ({"HOME": "relative", **dict(zip(XDG, ("/c", "/s", "/d", "/e"), strict=True))}, ("/c", "/s", "/d", "/e")),
}  # fmt: skip


@pytest.fixture
def set_environment(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]  # a function
    def set_(values: dict[str, str]) -> None:
        for name in ("HOME", "XDG_CONFIG_DIRS", *XDG):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_they_are_what_platformdirs_says(set_environment, name: str) -> None:  # type: ignore[no-untyped-def]
    values, expected = ENVIRONMENTS[name]
    set_environment(values)
    found = Folders.of_user()
    *policies, user = found.policies
    used = (found.cache, found.state, found.data, os.path.dirname(user))
    assert used == tuple(f"{folder}/sandboxrun" for folder in expected)
    says = platformdirs.PlatformDirs("sandboxrun")
    assert used == (says.user_cache_dir, says.user_state_dir, says.user_data_dir, says.user_config_dir)
    assert policies == ["/etc/xdg/sandboxrun/policy.toml"] == [f"{says.site_config_dir}/policy.toml"]


def test_the_systems_policies_come_first_and_etc_xdg_is_always_read(set_environment) -> None:  # type: ignore[no-untyped-def]
    set_environment({"HOME": "/home/me", "XDG_CONFIG_DIRS": "/one:relative::/two"})
    assert Folders.of_user().policies == tuple(
        f"{folder}/sandboxrun/policy.toml" for folder in ("/one", "/two", "/etc/xdg", "/home/me/.config")
    )
    set_environment({"HOME": "/home/me", "XDG_CONFIG_DIRS": "/etc/xdg:/one", "XDG_CONFIG_HOME": "/one"})
    assert Folders.of_user().policies == ("/etc/xdg/sandboxrun/policy.toml", "/one/sandboxrun/policy.toml")


@pytest.mark.parametrize("variable", XDG)
def test_a_relative_one_is_refused_whatever_platformdirs_makes_of_it(set_environment, variable: str) -> None:  # type: ignore[no-untyped-def]
    """Its older versions take the path, newer ones the usual folder: a policy file below either may not be the one that is meant."""
    set_environment({"HOME": "/home/me", variable: "relative"})
    with pytest.raises(ConfigError, match=f"^{variable} is 'relative'") as found:
        Folders.of_user()
    assert found.value.hint == (f"unset {variable}",)


@pytest.mark.parametrize("home", ["", "relative", "~", "."])
def test_a_relative_home_is_refused(set_environment, home: str) -> None:  # type: ignore[no-untyped-def]
    set_environment({"HOME": home})
    with pytest.raises(ConfigError, match=re.escape(f"HOME is {home!r}")):
        Folders.of_user()


def test_a_user_without_a_home_is_told(set_environment, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def nobody(_: int) -> None:
        raise KeyError

    set_environment({})
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(ConfigError, match="there is no home folder"):
        Folders.of_user()


def test_it_looks_at_the_environment_each_time(set_environment, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for folder in (tmp_path / "one", tmp_path / "two"):
        set_environment({"HOME": str(folder)})
        assert Folders.of_user().cache == f"{folder}/.cache/sandboxrun"


def test_no_worker_is_given_the_folder_of_the_plugins(set_environment) -> None:  # type: ignore[no-untyped-def]
    """After `pip install --user`, a wheel's data are in ~/.local, and a worker may be called plugins."""
    set_environment({"HOME": HOME})
    folders = Folders.of_user()
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    [installed] = wheel["shared-data"].values()
    assert installed == os.path.join(*code_paths.PLUGINS)
    assert not within(f"{HOME}/.local/{installed}", folders.data)
    assert f"{HOME}/.local/{installed}" in code_paths.of_operator()  # for writing, by no grant
