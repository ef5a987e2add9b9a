"""The operator's package index, as uv takes it: what uv's own variables say, else what pip is configured with.

On many machines pip is configured and uv is not. `pip download` installs with the same later. No file in the
script's folder is read, and no uv.toml.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PIP_SECONDS = 30.0
_SECTIONS = ("global", "download", ":env:")  # the last wins
# Variables that uv is given: those that say how the network is reached, and which index.
_KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "NETRC",
    "XDG_CACHE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "SSL_CLIENT_CERT",
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
_UV = (
    "UV_CACHE_DIR", "UV_CONCURRENT_DOWNLOADS", "UV_HTTP_RETRIES", "UV_HTTP_TIMEOUT", "UV_INDEX_STRATEGY", "UV_INSECURE_HOST",
    "UV_KEYRING_PROVIDER", "UV_NATIVE_TLS", "UV_NO_CACHE", "UV_OFFLINE", "UV_SYSTEM_CERTS",
)  # fmt: skip


def uv_settings(environ: Mapping[str, str], *, uv: str, index: str | None = None) -> tuple[dict[str, str], list[str]]:
    """The environment of `uv` (a path), and further arguments for it. `index`: the one index to use, whatever is configured."""
    env = {name: value for name, value in environ.items() if name in _KEPT or name.upper() in _PROXIES or name in _UV}
    env["UV_PYTHON_DOWNLOADS"] = "never"
    for name, value in environ.items():
        if name in _INDEXES or (name.startswith("UV_INDEX_") and name.endswith(("_USERNAME", "_PASSWORD"))):
            env[name] = value
    pip = pip_settings(environ)
    arguments = _from_pip(env, pip)
    if index is not None:
        for name in _INDEXES:
            env.pop(name, None)
        env["UV_DEFAULT_INDEX"] = index
    elif not any(name in env for name in _INDEXES):
        arguments += _index_from_pip(env, pip, uv)
    return env, arguments


def _from_pip(env: dict[str, str], pip: Mapping[str, str]) -> list[str]:
    """How pip reaches an index, where the variables do not say it."""
    for name, option in (("SSL_CERT_FILE", "cert"), ("SSL_CLIENT_CERT", "client-cert")):
        if pip.get(option):
            env.setdefault(name, os.path.expanduser(pip[option]))
    timeout = pip.get("timeout") or pip.get("default-timeout") or ""
    if timeout.isdecimal():
        env.setdefault("UV_HTTP_TIMEOUT", timeout)
    if pip.get("trusted-host"):
        env.setdefault("UV_INSECURE_HOST", " ".join(pip["trusted-host"].split()))
    if pip.get("keyring-provider") == "subprocess":
        env.setdefault("UV_KEYRING_PROVIDER", "subprocess")
    if pip.get("proxy"):
        env.update(dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), pip["proxy"]))
    return [word for path in _locations(pip.get("constraint", "")) for word in ("--constraints", path)]


def _index_from_pip(env: dict[str, str], pip: Mapping[str, str], uv: str) -> list[str]:
    if pip.get("index-url"):
        env["UV_DEFAULT_INDEX"] = pip["index-url"].strip()
    if pip.get("extra-index-url"):
        # As pip: the newest version of all indexes. uv asks the default index last, so of two that have the same version, a
        # folder with the wheel for this machine alone would win, and the lock would be for no other machine.
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
        first = env.get("UV_DEFAULT_INDEX") or _built_in_index(uv)
        env["UV_INDEX"] = " ".join([*([first] if first else []), *pip["extra-index-url"].split()])
    links = _locations(pip.get("find-links", ""))
    no_index = ["--no-index"] if pip.get("no-index", "").lower() in ("1", "true", "yes", "on") else []
    return [*no_index, *(word for path in links for word in ("--find-links", path))]


def _built_in_index(uv: str) -> str | None:
    """The index that uv asks where none is configured; its help names it."""
    try:
        done = subprocess.run(
            [uv, "pip", "compile", "--help"], env={"UV_NO_CONFIG": "1"}, cwd="/", stdin=subprocess.DEVNULL,
            capture_output=True, timeout=PIP_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"by\s+default:\s+<(https://[^>\s]+)>", done.stdout.decode("utf-8", "replace"))
    return match[1] if match else None


def _locations(value: str) -> list[str]:
    """URLs and absolute paths. A relative one would be looked for where the script lies."""
    found = [os.path.expanduser(word) for word in value.split()]
    return [word for word in found if os.path.isabs(word) or "://" in word]


def pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's options by their long names, from its files and variables, as `pip download` has them; only the variables if
    there is no pip."""
    pip = [sys.executable, "-I", "-m", "pip"] if importlib.util.find_spec("pip") is not None else _pip_on_path(environ)
    if pip is not None:
        try:
            done = subprocess.run(
                [*pip, "--disable-pip-version-check", "--no-input", "config", "list"],
                env=dict(environ),
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PIP_SECONDS,
            )
            if done.returncode == 0:
                return _read(done.stdout.decode("utf-8", "replace"))
        except (OSError, subprocess.TimeoutExpired):
            pass
    found = {name[4:].lower().replace("_", "-"): value for name, value in environ.items() if name.startswith("PIP_")}
    return {name: value for name, value in found.items() if value}


def _pip_on_path(environ: Mapping[str, str]) -> list[str] | None:
    path = shutil.which("pip", path=environ.get("PATH"))
    return [path] if path is not None and os.path.isabs(path) else None


def _read(text: str) -> dict[str, str]:
    """The lines of `pip config list`: SECTION.NAME='VALUE', where the value is a literal of Python."""
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.partition(".")
        if section in found:
            try:
                literal = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                continue
            found[section][name.replace("_", "-")] = str(literal)
    return {name: value for section in _SECTIONS for name, value in found[section].items()}
