"""sandboxrun perms."""

from __future__ import annotations

import argparse

from sandboxrun.cli.looking import examined, first_fault, painter, redis_shown, run_options, to_json
from sandboxrun.cli.mistakes import again_hint
from sandboxrun.cli.parser import worker_parser
from sandboxrun.config.permissions import Kind
from sandboxrun.describe.question import FLAGS, Question, parse
from sandboxrun.errors import PolicyError, UsageError
from sandboxrun.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.describe.answer import Answer

_EXAMPLE = """\
  sandboxrun perms demo-worker 1                                   everything that the worker may do, in words
  sandboxrun perms demo-worker 1 --net example.com:443             whether it may connect, why, and how to change that
  sandboxrun perms demo-worker 1 --read /srv/data --write /srv/data && echo both

exit codes: 0 everything asked about is allowed   77 something is not   78 the hash is wrong"""
_STYLES = {"allowed": "good", "denied": "bad", "refused": "bad", "missing": "odd"}
_SAID = {"allowed": "yes", "denied": "no", "refused": "no", "missing": "no"}


def main(args: list[str]) -> int:
    parser = worker_parser(
        "perms",
        description="Say whether a worker may do something, which entry of which field decides that, and how to change it.",
        example=_EXAMPLE,
    )
    for kind in Kind:
        parser.add_argument(
            FLAGS[kind],
            dest=f"{kind}_",
            metavar=kind.metavar,
            action="append",
            default=[],
            help=kind.question.replace("%", "%%"),
        )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    if options.redis is not None and "://" not in options.redis:
        raise UsageError(
            f"--redis is {options.redis[:80]!r}: expected the URL of Redis; --redis-keys asks about keys",
            hint=again_hint(parser, ["--redis-keys" if word == "--redis" else word for word in args]),
        )
    questions = [parse(kind, text) for kind in Kind for text in getattr(options, f"{kind}_")]
    return _answer_all(options, questions) if questions else _list(options)


def _list(options: argparse.Namespace) -> int:
    from sandboxrun.describe.report import permissions, policy
    from sandboxrun.describe.show import always, may, serves

    hashes, found = examined(options)
    if found.config is None:
        raise first_fault(found)
    services = found.config.loop.services
    about = {"worker": f"{options.type}:{options.id}", "key": hashes.own.key, "services": list(services)}
    made = {**about, **permissions(found.config, redis_shown(options), hashes), "policy": policy(found)}
    if options.json:
        print(to_json(made))
        return 0
    paint = painter()
    print("\n".join([*may(made, paint), *serves(services, paint), *always(made, paint)]), flush=True)
    if found.faults:
        fault = first_fault(found)
        Log().warning("fault", f"the worker would not start: {fault}", hint=fault.hint)
    return 0


def _answer_all(options: argparse.Namespace, questions: list[Question]) -> int:
    from sandboxrun.config.worker import read_fields
    from sandboxrun.describe.answer import answer
    from sandboxrun.describe.decide import decide
    from sandboxrun.host.plan import redis_target
    from sandboxrun.redis.address import parse_url

    hashes, found = examined(options)
    if found.config is None or found.ceiling is None:
        raise first_fault(found)
    fields = {
        name: value for stored in (hashes.shared, hashes.own) for name, value in read_fields(stored.fields, "").items()
    }
    address = parse_url(run_options(options).redis_url)
    redis = address.path or redis_target(address)
    decisions = [decide(question, found.config, found.policy, redis, found.ceiling.data) for question in questions]
    answers = [
        answer(question, decision, hashes.place(decision.where), found.config, found.ceiling, fields)
        for question, decision in zip(questions, decisions, strict=True)
    ]
    if options.json:
        print(to_json([one.as_json for one in answers]))
    else:
        print("\n".join(map(_text, answers)), flush=True)
    if found.faults:
        fault = first_fault(found)
        Log().warning("fault", f"the worker would not start: {fault}", hint=fault.hint)
    return 0 if all(one.verdict == "allowed" for one in answers) else PolicyError.exit_code


def _text(one: Answer) -> str:
    paint = painter()
    head = f"{paint(_SAID[one.verdict], _STYLES[one.verdict])}  {paint(one.question)}: {paint(one.text)}"
    return (
        f"{head}\n     {'change it with' if one.verdict == 'denied' else 'grant it with'}: {paint(one.fix)}"
        if one.fix
        else head
    )
