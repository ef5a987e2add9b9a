"""A hint that is followed: the error appears, what it says is pasted, and the same command works."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis
from hints import hint_of, paste
from raw_host import RawHost
from runner import Done, Runner

RAN = "print('ran')\n"


@dataclass
class Stage:
    """What a situation is made of."""

    r: redis.Redis
    run: Runner
    host: RawHost
    folder: Path
    placeholders: dict[str, str] = field(default_factory=dict)

    def local(self, **fields: str) -> None:
        """A worker t 1 that works, but for these fields of its hash."""
        (self.folder / "worker.py").write_text(RAN)
        self.r.hset("t:1:h", mapping={"url": str(self.folder), "version": "local", **fields})

    def remote(self, version: str = "v1.0.0", **fields: str) -> None:
        """The same by URL."""
        self.host.files[f"/{version}/w.py"] = RAN
        self.r.hset("t:1:h", mapping={"url": self.host.url + "/{version}/w.py", "version": version, **fields})

    def again(self, *args: str) -> Callable[[], Done]:
        return lambda: self.run("t", "1", *args)


def is_made_from(template: str, hint: str) -> bool:
    """As hints.is_of, but a line `{}` stands for any number of lines, and TYPE ID for those of the worker."""
    template = template.replace("TYPE ID", "{}")
    lines = [
        ".*" if line == "{}" else r"[^\n]*".join(map(re.escape, line.split("{}"))) for line in template.split("\n")
    ]
    return re.fullmatch("\n".join(lines), hint, re.DOTALL) is not None


def follow(stage: Stage, command: Callable[[], Done], template: str, error: str) -> None:
    """Run it, see the error, paste its hint, and run it again."""
    done = command()
    assert done.code != 0 and error in done.err, done
    hint = hint_of(done.err)
    assert is_made_from(template, hint), (template, hint)
    followed = paste(hint, stage.run.env, stage.folder, **stage.placeholders)
    assert followed.returncode == 0, (hint, followed)
    last = command()
    assert last.code == 0, (hint, last)
