"""Each hint of `dev`, `init` and `redish`: the error appears, the hint is pasted there, and the trouble is over."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from hints import hint_of, is_of, paste, templates
from runner import Runner

SOURCE = "from sandboxrun import worker\n\n@worker.handler\ndef handle(request):\n    return {}\n\nworker.run()\n"
ELSEWHERE = {
    "pip install 'sandboxrun[dev]'": "installs a package, so it needs an index, and an environment without watchfiles"
}
PACKAGES = ("dev", "cli/dev.py", "cli/redish.py")


@dataclass
class Developer:
    r: redis.Redis
    run: Runner
    template: str

    def hint(self, *args: str, code: int = 64) -> str:
        """The hint of a command that fails, which must be of the template."""
        done = self.run(*args)
        assert (done.code, done.out) == (code, ""), done
        hint = hint_of(done.err)
        assert is_of(self.template, hint), hint
        return hint

    def paste(self, hint: str, **placeholders: str) -> str:
        done = paste(hint, self.run.env, self.run.home, **placeholders)
        assert done.returncode == 0, done
        return done.stdout

    def starts(self, command: str) -> None:
        """`sandboxrun dev …` starts a worker."""
        words = shlex.split(command)
        assert words[:2] == ["sandboxrun", "dev"]
        with self.run.start(*words[1:]) as process:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            assert line == "started\n", line
            process.terminate()
            process.wait(20)

    def folder(self, name: str, *files: str) -> Path:
        folder = self.run.home / name
        folder.mkdir()
        for file in files:
            (folder / file).write_text(SOURCE)
        return folder


def other_script(d: Developer) -> None:
    d.folder("it's", "bot.py")
    d.starts(d.hint("dev", "it's"))


def empty_folder(d: Developer) -> None:
    d.folder("it's")
    d.paste(d.hint("dev", "it's"))
    d.starts('sandboxrun dev "it\'s"')


def folder_of_others(d: Developer) -> None:
    d.folder("it's", "text.txt")
    make, _, develop = d.hint("dev", "it's").replace("NAME", "mine").partition(" && ")
    d.paste(make)
    d.starts(develop)


def near_folder(d: Developer) -> None:
    d.folder("greeter", "worker.py")
    d.starts(d.hint("dev", "greetr"))


def option(d: Developer) -> None:
    d.folder("greeter", "worker.py")
    d.starts(d.hint("dev", "greeter", "--allow-net", "a:1"))
    d.starts(d.hint("dev", "greeter", "--lern"))


def words(d: Developer) -> None:
    assert "FOLDER|FILE|TYPE ID" in d.paste(d.hint("dev", "a", "b", "c"))


def version(d: Developer) -> None:
    folder = d.folder("greeter", "worker.py")
    d.r.hset("t:1:h", mapping={"url": "https://raw.githubusercontent.com/o/r/main/worker.py", "version": "main"})
    d.paste(d.hint("dev", "t", "1", code=78), FOLDER=str(folder))
    d.starts("sandboxrun dev t 1")


def hash_is_there(d: Developer) -> None:
    folder = d.folder("greeter", "worker.py")
    d.r.hset("greeter:dev:h", mapping={"url": str(folder), "version": "local", "allowNet": "a:1"})
    d.starts(d.hint("dev", "greeter", code=78))


def key_file(d: Developer) -> None:
    folder = d.folder("greeter", "worker.py")
    d.r.hset("t:1:h", mapping={"url": str(folder), "version": "local"})
    d.paste(d.hint("dev", "t", "1", "--key-file", "the-key"), NAME="token", VALUE="t0ken")
    d.starts("sandboxrun dev t 1 --key-file the-key")


def other_name(d: Developer) -> None:
    d.folder("greeter", "worker.py")
    d.folder("greeter-2", "worker.py")
    d.paste(d.hint("init", "greeter"))
    d.starts("sandboxrun dev greeter-3")


def key(d: Developer) -> None:
    d.r.hset("it's:1:h", "version", "main")
    d.r.rpush("t:q", "one")
    assert d.paste(d.hint("redish", "its:1:h", code=78)) == "version main\n"
    assert d.paste(d.hint("redish", "it's:1:h", "none", code=78)) == "version main\n"
    assert d.paste(d.hint("redish", "t:q", "none", code=78)) == "0 one\n"


SITUATIONS: dict[str, Callable[[Developer], None]] = {
    "sandboxrun init {}": empty_folder,
    "sandboxrun init NAME && sandboxrun dev NAME": folder_of_others,
    "sandboxrun dev {}": near_folder,
    "sandboxrun dev --help": words,
    "sandboxrun set {} {} url=FOLDER version=local": version,
    "sandboxrun dev {} {}": hash_is_there,
    'echo \'{"NAME":"VALUE"}\' | sandboxrun encrypt {} --key-file {} --write': key_file,
    "sandboxrun redish {}": key,
}
FURTHER = {
    "a script of another name": ("sandboxrun dev {}", other_script),
    "another name": ("sandboxrun init {}", other_name),
}


def test_each_hint_has_its_situation() -> None:
    found = {template for package in PACKAGES for template in templates(package)}
    assert found == {*SITUATIONS, *ELSEWHERE}


@pytest.mark.parametrize(("template", "situation"), [*SITUATIONS.items(), *FURTHER.values()])
def test_a_hint_ends_the_trouble(
    r: redis.Redis, run: Runner, template: str, situation: Callable[[Developer], None]
) -> None:
    situation(Developer(r, run, template))


def test_an_option_is_put_right(r: redis.Redis, run: Runner) -> None:
    option(Developer(r, run, "sandboxrun dev {}"))
