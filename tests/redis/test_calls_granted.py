"""The grant `allowCall` in every kind of start and in every command: none knows less of it than of the other grants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from hints import hint_of, paste
from pooled import pooled
from runner import ALLOW_ALL, Done, Runner

from sandboxrun.sandbox.supervisor.zygote import Zygote

Local = Callable[..., Path]
TELLS = "import os\nprint(os.environ.get('SANDBOXRUN_CALL_NONCE'), os.environ.get('SANDBOXRUN_CALL_URL'), flush=True)\n"
REFUSED = "field allowCall of t:1:h has {}"


def nonce_in(line: str) -> str:
    nonce, url = line.split()
    assert (len(nonce), nonce.strip("0123456789abcdef"), url) == (16, "", "None")
    return nonce


@pytest.mark.parametrize("zygote", [False, True])
def test_each_run_of_a_pool_has_its_own_nonce(
    r: redis.Redis, redis_url: str, run: Runner, tmp_path: Path, zygote: bool
) -> None:
    """In spares, and in children of a zygote: what was made before the run has none of it."""
    (tmp_path / "worker.py").write_text(TELLS)
    r.hset("t:h", mapping={"url": str(tmp_path), "version": "local"})
    for number in range(1, 4):
        r.hset(f"t:{number}:h", "allowCall", "price")
    run.set_policy(ALLOW_ALL + "share-memory = true\n" * zygote)
    found = []
    with pooled(redis_url, str(run.home), **({"zygote": Zygote()} if zygote else {})) as pool:
        for number in range(1, 5):
            running = pool.start("t", str(number))
            assert pool.on.end(running).code == 0
            found += pool.on.of(running)
    *nonces, none = found
    assert none == "None None"
    assert len(set(map(nonce_in, nonces))) == 3


def test_a_plain_run_has_a_nonce_only_with_the_grant(run: Runner, local: Local) -> None:
    local(TELLS)
    assert run("t", "1").out == "None None\n"
    nonces = {nonce_in(run("t", "1", "--allow-call=price").out) for _ in range(2)}
    assert len(nonces) == 2
    local(TELLS, allowCall="price", denyCall="price")
    assert run("t", "1", "--yes").out == "None None\n"
    local(TELLS, options="--allow-call=price", allowCall="", denyCall="bank")
    assert run("t", "1").code == 77  # what was denied is granted now
    nonce_in(run("t", "1", "--yes").out)


def refused(done: Done, said: str, code: int = 78) -> str:
    assert (done.code, done.out) == (code, ""), done
    assert said in done.err.splitlines()[0]
    assert len(done.err.partition("\nhint: ")[0].splitlines()) == 1
    return hint_of(done.err)


@pytest.mark.parametrize(
    ("fields", "said", "mended"),
    [
        ({"allowCall": "Price"}, REFUSED.format("'Price'"), "price"),
        ({"allowCall": "bank,price:req:x"}, REFUSED.format("'price:req:x'"), "bank,price"),
        ({"allowCal": "price"}, "field allowCal of t:1:h is not a permission of sandboxrun", "price"),
        ({"allow_call": "price"}, "field allow_call of t:1:h is spelt allowCall", "price"),
        ({"options": "--allow-cal=price"}, "is not a permission of sandboxrun", None),
    ],
)
def test_a_wrong_entry_and_a_misspelt_field_are_mended_by_the_hint(
    r: redis.Redis, run: Runner, local: Local, fields: dict[str, str], said: str, mended: str | None
) -> None:
    local(TELLS, **fields)
    hint = refused(run("t", "1"), said)
    assert paste(hint, run.env, run.home).returncode == 0
    assert r.hget("t:1:h", "allowCall") == mended
    nonce_in(run("t", "1").out)


@pytest.mark.parametrize("entry", ["*", "pri*", "-", "a" * 65, "res", "preis\u00e4", "\x1b[2J", "1a"])
def test_what_is_no_type_is_one_line(run: Runner, local: Local, entry: str) -> None:
    local(TELLS, allowCall=entry)
    done = run("t", "1")
    assert done.code == 78
    assert REFUSED.format("") in done.err
    assert "expected the type of a worker, such as price" in done.err
    assert "\x1b[2J" not in done.err
    assert len(done.err.partition("\nhint: ")[0].splitlines()) == 1


def test_a_policy_bounds_the_types_and_the_operator_agrees_to_each(run: Runner, local: Local) -> None:
    local(TELLS, allowCall="price")
    run.set_policy(ALLOW_ALL + 'allow-call = ["price"]\n')
    nonce_in(run("t", "1").out)
    local(TELLS, allowCall="price,bank")
    hint = refused(run("t", "1"), REFUSED.format("'bank'") + ", which ", 77)
    assert paste(hint, run.env, run.home).returncode == 0
    refused(run("t", "1"), "asks for more than at its last run (--allow-call bank)", 77)
    assert "  + --allow-call bank" in run("diff", "t", "1").out
    assert run("approve", "t", "1").code == 0
    nonce_in(run("t", "1").out)
    record = json.loads((run.home / ".local/state/sandboxrun/approved/t:1.json").read_text())
    assert record["allow"]["call"] == ["price", "bank"]
    run.set_policy(ALLOW_ALL + 'allow-call = ["*"]\n')
    nonce_in(run("t", "1").out)
    run.set_policy(None)  # the default policy allows the types that a hash names
    nonce_in(run("t", "1").out)


def test_it_is_shown_as_a_grant_and_in_the_plan(run: Runner, local: Local) -> None:
    local(TELLS, allowCall="price", denyCall="bank")
    assert "send requests to workers of the type price, and read their replies" in run("show", "t", "1").out
    nonce_in(run("t", "1").out)
    plan = json.loads(run("show", "t", "1", "--plan", "--json").out)
    permissions = plan["worker"]["permissions"]
    assert (permissions["allow"]["call"], permissions["deny"]["call"]) == (["price"], ["bank"])


def test_set_tells_of_a_type_that_nobody_knows_and_names_the_one_that_is_near(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    local(TELLS)
    local(TELLS, "price:1:h")
    done = run("set", "t", "1", "allowCall=price")
    assert (done.code, done.err) == (0, "")
    done = run("set", "t", "1", "allowCall=prise,bank")
    assert done.code == 0
    assert "warning: Redis knows no worker type prise: did you mean price?" in done.err
    assert "warning: Redis knows no worker type bank" in done.err
    assert r.hget("t:1:h", "allowCall") == "prise,bank"
