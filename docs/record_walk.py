"""Make docs/walk.md: each command in it is typed here, at a real terminal, and what is printed is what stands there.

    python docs/record_walk.py [FILE]        (with the extra `test`)

Paths of this machine become /home/me; numbers that differ from run to run stay as they came. A test makes it once more and
compares the two without those numbers (`stable`).
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pexpect

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import dap

from sandboxrun import client
from sandboxrun.redis import embedded

SECONDS = 60
QUIET_SECONDS = 0.3
PROMPT = "greeter> "
HELLO = "Hello, "


# What belongs to one run, moment, machine or user, and what stands for it. The order counts: whole values before their parts.
UNSTABLE = tuple(
    (re.compile(pattern), word)
    for pattern, word in (
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z( +\+[\d.]+ m?s\b)?", "TIME"),
        (r"^( *pid(?!Version)\w*) +\S.*$", r"\1 VALUE"),  # fields about the run: process, host, times
        (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "UUID"),
        (r"\b\d+-\d+\b", "ENTRY"),
        (r"\b[0-9a-f]{12,64}\b", "HEX"),
        (r"\b\d+\.\d+\.\d+\.\d+:\d+", "ENDPOINT"),
        (r"\b(process|pid) \d+", r"\1 PID"),
        (r" *\+?\b\d[\d.]* (µs|ms|s|min|h)\b", " DURATION"),
    )
)


def stable(text: str) -> str:
    """Without what differs from run to run and from machine to machine."""
    text = "\n".join(reduced(line) for line in text.splitlines())
    lines = [re.sub(r" +", " ", line).removeprefix(PROMPT).strip() for line in text.splitlines()]
    blocks = "\n".join(line for line in lines if line).split("```")
    # What comes from the worker and from Redis at the same time has no order.
    blocks[1::2] = ["\n".join(sorted(block.splitlines())) for block in blocks[1::2]]
    return "```\n".join(blocks)


def reduced(line: str) -> str:
    for pattern, word in UNSTABLE:
        line = pattern.sub(word, line)
    return line


class Walk:
    """The page, as far as it is written, and the folder that it happens in."""

    def __init__(self, home: Path, head: str) -> None:
        self.home, self._parts = home, [head]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "TERM": "dumb"}
        self.script = home / "greeter" / "worker.py"

    def say(self, text: str) -> None:
        self._parts.append(text.strip() + "\n")

    def show(self, text: str, language: str = "console") -> None:
        self._parts.append(f"```{language}\n{self.plain(text).strip(chr(10))}\n```\n")

    def plain(self, text: str) -> str:
        # A prompt that a line of the worker's was written over is not seen.
        text = text.replace("\r\n", "\n").replace(f"{PROMPT}\r", "").replace("\r", "")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace(str(self.home), "/home/me")

    def run(self, *commands: str, code: int = 0) -> str:
        """Type these into a shell; what the last one prints."""
        shown, out = [], ""
        for command in commands:
            done = subprocess.run(
                ["sh", "-c", command], cwd=self.home, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, timeout=SECONDS,
            )  # fmt: skip
            if command == commands[-1] and done.returncode != code:
                raise RuntimeError(f"{command}: {done.returncode}: {done.stdout}")
            out = done.stdout
            shown.append(f"$ {command}\n{out}")
        self.show("".join(shown))
        return out

    def edit(self, old: str, new: str) -> None:
        """Change the script, as an editor does, and show how."""
        before = self.script.read_text()
        assert old in before
        after = before.replace(old, new)
        diff = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
        self.show("\n".join(line for line in diff if line[:3] not in ("---", "+++") and line[:2] != "@@"), "diff")
        self.script.write_text(after)

    def page(self) -> str:
        return "\n".join(self._parts)


class Terminal:
    """`sandboxrun …` at a terminal of its own; what it shows is put on the page bit by bit."""

    def __init__(self, walk: Walk, command: str) -> None:
        self._walk, self._shown = walk, f"$ {command}\n"
        program, *words = command.split()
        self.spawned = pexpect.spawn(
            program, words, cwd=str(walk.home), env=walk.env, encoding="utf-8", timeout=SECONDS, dimensions=(50, 200)
        )

    def until(self, *texts: str) -> str:
        """Until all of these have come, in any order (what the worker prints and its reply take different ways), and
        nothing more does."""
        found = ""
        while not all(text in found for text in texts) or not found.endswith(PROMPT):
            found += self.spawned.read_nonblocking(4096, SECONDS)
        with contextlib.suppress(pexpect.TIMEOUT):
            while True:
                found += self.spawned.read_nonblocking(4096, QUIET_SECONDS)
        self._shown += found
        return found

    def type(self, line: str, *answers: str) -> None:
        self.spawned.sendline(line)
        self.until(*answers)

    def shown(self) -> None:
        """Put what there is on the page."""
        self._walk.show(self._shown.removesuffix(PROMPT))
        self._shown = PROMPT if self._shown.endswith(PROMPT) else ""

    def leave(self) -> None:
        self.spawned.sendline("exit")
        self.spawned.expect(pexpect.EOF)
        self._shown += self.spawned.before
        self.shown()
        self.spawned.close()
        if self.spawned.exitstatus != 0:
            raise RuntimeError(f"dev ended with {self.spawned.exitstatus}")


HEAD = """\
<!-- Made by docs/record_walk.py: change it there. -->
# From an empty folder to a debugged worker

[record_walk.py](record_walk.py) typed every command and recorded every line; a test repeats that.
To follow along, run `pip install '.[dev,debug]'`, which also installs a Redis server.
"""


def developed(walk: Walk) -> None:
    walk.say(
        "## A worker that runs\n\n`init` makes a folder with a worker, its spec, tests, a README and a debugger configuration for VS Code:"
    )
    walk.run("sandboxrun init greeter", "cat greeter/worker.py")
    walk.say(
        "`dev` runs the worker and the tests of its `spec.json`, and prompts for requests.\n"
        "Without `REDIS_URL` it starts a Redis of its own:"
    )
    terminal = Terminal(walk, "sandboxrun dev greeter --learn")
    terminal.until("ends", "tests: 3 pass")
    terminal.type("name=world", "Hello, world!")
    terminal.shown()
    walk.say(
        "## Edit, save\n\nWhile the worker runs, change a line in an editor and save the file.\n"
        "The worker is restarted, and then `dev` says which tests fail now:"
    )
    walk.edit(HELLO, "Good morning, ")
    terminal.until("restarted in", "2 fail")
    terminal.type("name=world", "Good morning, world!")
    terminal.shown()
    walk.say("If the new code has a syntax error, `dev` prints it, and the old worker keeps running:")
    walk.edit("    data = request.data\n", "    data = (request.data\n")
    terminal.until("never closed", "is kept")
    terminal.type("name=world", "Good morning, world!")
    terminal.shown()
    walk.say("## A refusal\n\nCorrect the error, and read a file that no grant covers:")
    walk.edit("    data = (request.data\n", "    data = request.data\n    host = open('/etc/hostname').read()\n")
    terminal.until("restarted in", "2 fail")
    terminal.type("name=world", "Requires read access", "500")
    terminal.shown()
    walk.say("`--learn` has collected the refusals.\nAt the end of the session it prints commands to paste:")
    terminal.leave()


def debugged(walk: Walk) -> None:
    walk.say("Remove the line again:")
    walk.edit("    host = open('/etc/hostname').read()\n", "")
    walk.say("The worker is right, and its tests are not: `--update` writes what it answers into `spec.json`:")
    walk.run("sandboxrun test greeter --update")
    walk.run("sandboxrun test greeter --verbose")
    walk.say(
        "## Debug\n\n`--inspect` lets a debugger attach to the worker, inside its sandbox.\n"
        "In VS Code, press F5: `init` has written the launch.json.\n"
        "Here another client of the same protocol (DAP) stands in for VS Code:"
    )
    terminal = Terminal(walk, "sandboxrun dev greeter --inspect=0")
    port = int(re.search(r"listening on 127\.0\.0\.1:(\d+)", terminal.until("ends", "tests: 3 pass"))[1])  # type: ignore[index]
    terminal.shown()
    lines = walk.script.read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "return {" in text)
    with dap.session("127.0.0.1", port) as session:
        session.attach(walk.script, line)
        told = [f"attached; breakpoint at worker.py:{line}   {lines[line - 1].strip()}"]
        terminal.spawned.sendline("name=world")
        thread, at, variables = session.locals()
        told += [f"stopped at worker.py:{at}", f"data = {variables['data']}", "continue"]
        session.ask("continue", threadId=thread)
        terminal.until("Good morning, world!")
    walk.show("\n".join(told), "text")
    walk.say("The request waited at the breakpoint, and is answered now:")
    terminal.leave()


def run_for_good(walk: Walk, url: str) -> None:
    walk.env["REDIS_URL"] = url
    walk.say(
        "## Run it\n\nOutside of `dev`, a worker uses your Redis: `REDIS_URL`, or 127.0.0.1:6379 by default.\n"
        "A hash there names the script and lists its permissions.\n"
        "`set` checks a change before it writes it, and `perms` says whether the worker may do something:"
    )
    walk.run("sandboxrun set greeter 1 url=$HOME/greeter version=local")
    walk.run("sandboxrun set greeter 1 allowNet=api.example.com:99999", code=78)
    walk.run("sandboxrun perms greeter 1 --net api.example.com:443", code=77)
    worker = subprocess.Popen(
        ["sandboxrun", "greeter", "1", "--quiet"], cwd=walk.home, env=walk.env, stdin=subprocess.DEVNULL
    )
    try:
        client.call("greeter", {"name": "nobody"}, timeout=SECONDS, url=url)
        walk.say("Run `sandboxrun greeter 1` in one terminal, and in another:")
        out = walk.run("sandboxrun call greeter name=you")
        ref = re.search(r'"ref": "([^"]+)"', out)[1]  # type: ignore[index]
        walk.say("`trace` shows what became of the request, and `show` what the hash means:")
        walk.run(f"sandboxrun trace {ref}")
        walk.run("sandboxrun show greeter 1")
        walk.say("`stop` works from any machine: it removes `pid` from the hash, and the worker ends:")
        walk.run("sandboxrun stop greeter 1")
        if worker.wait(SECONDS) != 0:
            raise RuntimeError(f"the worker ended with {worker.returncode}")
    finally:
        worker.kill()
        worker.wait()


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("walk.md")
    with tempfile.TemporaryDirectory() as name, embedded.server() as url:
        walk = Walk(Path(name).resolve(), HEAD)  # as programs print it
        developed(walk)
        debugged(walk)
        run_for_good(walk, url)
    target.write_text(walk.page().replace(url, "redis://…"))


if __name__ == "__main__":
    main()
