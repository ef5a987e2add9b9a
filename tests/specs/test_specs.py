"""The command line as its users see it: a folder a case, with the command, what it prints (with wildcards) and its exit code.

spec.toml: args (list), code, out and err (text; `[WILDCARD]` stands for anything), stdin, redis (commands run before), env.
`{redis}` in args is the URL of a Redis with no keys but those.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from runner import Runner

from sandboxrun.redis import embedded

CASES = sorted(path.parent for path in Path(__file__).parent.rglob("spec.toml"))


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with embedded.server() as url:
        yield url


def matches(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("[WILDCARD]"))), text, re.DOTALL) is not None


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_spec(case: Path, redis_url: str, tmp_path: Path) -> None:
    spec = tomllib.loads((case / "spec.toml").read_text())
    assert spec.keys() <= {"args", "code", "out", "err", "stdin", "redis", "env"}
    with redis.Redis.from_url(redis_url) as r:
        r.flushall()
        for command in spec.get("redis", []):
            r.execute_command(*shlex.split(command.replace("{case}", str(case))))
    run = Runner(redis_url, tmp_path)
    run.env |= spec.get("env", {})
    done = run(*[arg.replace("{redis}", redis_url) for arg in spec["args"]], stdin=spec.get("stdin", ""))
    assert matches(spec.get("out", ""), done.out), done.out
    assert matches(spec.get("err", ""), done.err), done.err
    assert done.code == spec["code"]


def test_there_are_cases() -> None:
    assert len(CASES) >= 20
