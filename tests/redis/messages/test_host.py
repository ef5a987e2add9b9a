"""The hints of sandboxrun/host and sandboxrun/fleet: each is made to appear, pasted, and then the command that failed works."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import redis
from hints import DRAIN, hint_of, is_of, paste, templates
from raw_host import RawHost
from runner import Runner
from terminal import at_terminal

KEY = "worker-v0 " + "0123456789abcdef" * 4 + "\n"


class Newcomer(NamedTuple):
    r: redis.Redis
    run: Runner
    host: RawHost
    local: Callable[..., Path]
    template: str

    def hint(self, text: str, said: str) -> str:
        assert said in text, text
        hint = hint_of(text)
        assert is_of(self.template.replace("TYPE ID", "t 1"), hint), hint
        return hint

    def works_after(self, hint: str, *args: str, **placeholders: str) -> str:
        """The command in the shell in which the hint was pasted; its output."""
        done = paste("\n".join([hint, *args]), self.run.env, self.run.home, **placeholders)
        assert (done.returncode, "error: " in done.stderr) == (0, False), done
        return done.stdout


def relative_home(new: Newcomer) -> None:
    home = new.run.env["HOME"]
    for wrong in ("relative", "~"):
        new.run.env["HOME"] = wrong
        done = new.run("t", "1")
        assert done.code == 78
        hint = new.hint(done.err, f"HOME is {wrong!r}, and must be an absolute path")
        assert new.works_after(hint, "sandboxrun t 1", FOLDER=home[1:]) == "ran\n"


def relative_xdg(new: Newcomer) -> None:
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        new.run.env[variable] = "relative"
        done = new.run("t", "1")
        assert done.code == 78
        hint = new.hint(done.err, f"{variable} is 'relative', and must be an absolute path")
        assert new.works_after(hint, "sandboxrun t 1") == "ran\n"
        del new.run.env[variable]


def not_fetched(new: Newcomer) -> None:
    new.host.files["/v1.0.0/worker.py"] = "print('fetched')\n"
    new.r.hset("t:1:h", mapping={"url": new.host.url + "/{version}/worker.py", "version": "v1.0.0"})
    done = new.run("show", "t", "1", "--plan")
    assert done.code == 69
    hint = new.hint(done.err, "the script of t:1:h was not fetched here yet, so there is no plan")
    assert new.works_after(hint) == "fetched\n"
    assert new.run("show", "t", "1", "--plan").code == 0


def no_key(new: Newcomer) -> None:
    new.local("from sandboxrun import worker\nprint(worker.secrets()['token'])\n")
    (new.run.home / "key").write_text(KEY)
    text = new.run("encrypt", "t", "1", "--key-file", "key", stdin=json.dumps({"token": "t0ken"}))
    _, key, *fields = text.out.replace('"', "").split()
    new.r.hset(key, mapping=dict(zip(fields[::2], fields[1::2], strict=True)))
    shown = at_terminal(new.run.command("t", "1"), new.run.env, new.run.home)
    assert shown.code == 78
    hint = new.hint(shown.text, "t:1:h has secrets (encryptedJson), and standard input is a terminal")
    assert new.works_after(hint, KEYFILE="key") == "t0ken\n"
    pipe = subprocess.PIPE  # in which nothing comes
    with subprocess.Popen(new.run.command("t", "1"), env=new.run.env, stdin=pipe, stderr=pipe, text=True) as process:
        assert process.wait(60) == 78
        assert process.stderr is not None
        err = process.stderr.read()
    hint = new.hint(err, "t:1:h has secrets (encryptedJson), and no key came on standard input within 10 s")
    assert new.works_after(hint, KEYFILE="key") == "t0ken\n"


def no_hash(new: Newcomer) -> None:
    done = new.run("stop", "t", "2")
    assert done.code == 78
    hint = new.hint(done.err, "t:2:h is no hash in this Redis")
    assert "t" in new.works_after(hint).split()
    assert new.run("stop", "t", "1").code == 0


def stale_list(new: Newcomer) -> None:
    folder = new.local(
        '# /// script\n# [tool.sandboxrun]\n# files = { "more.py" = "sha256:' + "0" * 64 + '" }\n# ///\nprint()\n'
    )
    (folder / "more.py").write_text("")
    hint = new.hint(new.run("t", "1").err.partition("\nsandboxrun: ")[0], "lists other contents of more.py than")
    new.run.env["FOLDER"] = str(folder)
    done = paste(f"{hint}\nsandboxrun t 1", new.run.env, new.run.home)
    assert (done.returncode, "warning: " in done.stderr) == (0, False), done


def not_resolved(new: Newcomer) -> None:
    """An empty list of wheels is a resolution too."""
    new.local("# /// script\n# dependencies = [\"absent; python_version < '3'\"]\n# ///\nprint('ran')\n")
    new.run.env |= {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    done = new.run("t", "1", "--cached-only")
    assert done.code == 69
    hint = new.hint(done.err, "were not resolved yet, and --cached-only forbids asking an index")
    assert new.works_after(hint, "sandboxrun t 1 --cached-only") == "ran\nran\n"


def no_queue(new: Newcomer) -> None:
    new.r.set("t:started:q", "no list")
    new = new._replace(template=new.template.replace(" DEL", " --user default DEL"))  # REDIS_URL names no user
    hint = new.hint(new.run("start", "t", "1").err, "t:started:q is no list")
    assert "\nt 1 is ordered\n" in new.works_after(hint, "sandboxrun start t 1")


def no_count(new: Newcomer) -> None:
    new.r.hset("t:h", mapping={"count": "many", "url": "/x"})
    hint = new.hint(new.run("start", "t", "1").err, "field count of t:h is 'many': expected a number")
    assert "t 2 is ordered\n" in new.works_after(hint, "sandboxrun start t 2")


def two_counts(new: Newcomer) -> None:
    new.r.hset("t:h", mapping={"count": "1", "workerCount": "2", "url": "/x"})
    hint = new.hint(new.run("start", "t", "1").err, "t:h has count 1 and workerCount 2, and they mean the same")
    assert "t 2 is ordered\n" in new.works_after(hint, "sandboxrun start t 2")


def key_for_all(new: Newcomer) -> None:
    (new.run.home / "-key").write_text(KEY)
    (new.run.home / "-key").chmod(0o644)
    command = ("agent", "t", "--key-file=-key")
    done = new.run(*command)
    assert done.code == 78
    hint = new.hint(done.err, "the key file -key can be read by others (mode 644)")
    assert "drains" in new.works_after(hint, f"sandboxrun {' '.join(command)} & {DRAIN}")


def page_for_all(new: Newcomer) -> None:
    new.run.set_policy("")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        done = new.run("agent", "t", "--page", f"0.0.0.0:{sock.getsockname()[1]}")
    assert done.code == 64
    hint = new.hint(done.err, "and the page listens on loopback only")
    assert "drains" in new.works_after(f"{hint} & {DRAIN}")


def agreed_to_write_its_hash(new: Newcomer) -> None:
    new.r.hset("t:1:h", "allowRedis", "chat:*,order:*")
    assert new.run("t", "1").code == 0
    new.r.hset("chat:1:h", mapping={name: new.r.hget("t:1:h", name) for name in ("url", "version")})
    done = new.run("chat", "1")
    assert done.code == 77
    hint = new.hint(done.err, "the approved grant chat:* of t:1:h covers hashes of type chat")
    assert new.works_after(hint, "sandboxrun chat 1").endswith("ran\n")
    assert new.r.hget("t:1:h", "allowRedis") == "order:*"


SITUATIONS: dict[str, Callable[[Newcomer], None]] = {
    "export HOME=/FOLDER": relative_home,
    "unset {}": relative_xdg,
    "sandboxrun {} {}": not_fetched,
    "sandboxrun {} {} <KEYFILE": no_key,
    "sandboxrun lock {}": stale_list,
    "sandboxrun TYPE ID": not_resolved,
    "sandboxrun ps {} --all": no_hash,
    'redis-cli -u "$REDIS_URL" DEL {}': no_queue,
    "chmod 600 -- {}": key_for_all,
    "sandboxrun agent {} {} 127.0.0.1:{}": page_for_all,
    "sandboxrun scale {} 1": no_count,
    "sandboxrun scale {} {}": two_counts,
    "{}\nsandboxrun approve {} {}": agreed_to_write_its_hash,
}
ELSEWHERE = {
    "sandboxrun agent {} {} 127.0.0.1:9300": "a port of its own: as the one with the port that was given",
    "python3 -m pip install 'sandboxrun[debug]'": "an environment without debugpy, and a package index",
}


@pytest.mark.parametrize("template", SITUATIONS)
def test_a_hint_that_is_pasted_ends_the_trouble(
    r: redis.Redis, run: Runner, host: RawHost, local: Callable[..., Path], template: str
) -> None:
    local("print('ran')\n")
    run.set_policy(None)
    SITUATIONS[template](Newcomer(r, run, host, local, template))


def test_these_are_all_the_hints() -> None:
    assert set(templates("host")) | set(templates("fleet")) == {*SITUATIONS, *ELSEWHERE}
