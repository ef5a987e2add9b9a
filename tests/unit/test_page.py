"""The page of an agent: hostile text is text in it, and what is wrong stands on top."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import shlex
from html.parser import HTMLParser

import pytest
from agent_status import HEALTH, STATUS, WORKER, busy, with_workers

from sandboxrun.describe.page import TEXT_MAX_CHARS, Page, render
from sandboxrun.describe.style import POLICY, STYLE
from sandboxrun.fleet.problems import healthy, problems
from sandboxrun.fleet.status import AgentStatus, Denied
from sandboxrun.records import replace


class Parsed(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def shown(status: AgentStatus) -> str:
    return render(status, {}, clock=200.0, now=1.6e9)


HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='x", "</title><script>", "</style><b>", "&lt;&#60;",
    "a\nb\r\n\r\n<p>", "\x00\x1b[31m", "\u202egnp.exe", "\u2066\u2067\u2069", "\ud800", "<" * 10_000, "-->", "`$(id)`", "\u2028\u2029",
]  # fmt: skip


def everywhere(text: str) -> AgentStatus:
    worker = replace(
        WORKER, type=text, id=text, state="failing", version=text, last_reason=text, restarts_by=((text, 1),),
        denials=(Denied(text, text, text, 1),),
    )  # fmt: skip
    status = with_workers(worker, replace(worker, state="stuck"), replace(worker, state="waiting"))
    types = (replace(status.types[0], type=text, dead=1, oldest_waiting=99.0),)
    return replace(status, name=text, host=text, version=text, redis=text, redis_up=False, draining=True, types=types)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_makes_no_element_no_attribute_and_no_control_character(text):
    harmless, found = Parsed(shown(everywhere("x"))), Parsed(shown(everywhere(text)))
    # The same elements and attributes, but for commands, which are left out if they cannot be pasted.
    without = [tag for tag in found.tags if tag[0] not in ("code", "br")]
    assert without == [tag for tag in harmless.tags if tag[0] not in ("code", "br")]
    assert not [piece for piece in found.text if not piece.replace("\n", "").isprintable()]
    assert all(
        len(piece) <= 2 * TEXT_MAX_CHARS
        for piece in found.text
        if STYLE[:40] not in piece and "sandboxrun " not in piece
    )


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_command_to_paste_is_whole_or_left_out(text):
    page = shown(with_workers(replace(WORKER, denials=(Denied("net", text, text, 1),))))
    commands = re.findall("<code>(.*?)</code>", page, flags=re.S)
    asking = [shlex.split(html.unescape(command)) for command in commands if "perms" in command]
    if text.isprintable() and len(text) < 1000:
        option = [f"--net={text}"] if text.startswith("-") else ["--net", text]
        assert asking == [["sandboxrun", "perms", "greeter", "1", *option]] * 2
    else:
        assert not asking


def test_what_is_wrong_stands_on_top_the_worst_first():
    text = " ".join(Parsed(shown(busy(clock=200.0, now=1.6e9))).text)
    order = [
        "1 worker is stuck: thumbnail 5 has handled one request for 95 s", "sandboxrun stop thumbnail 5 && sandboxrun start thumbnail 5",
        "1 worker is failing: bot 3: exit code 1, KeyError: 'chat_id'; next start in 21 s", "sandboxrun logs bot 3 -n 50",
        "bot has 3 dead letters", "sandboxrun dead bot", "was refused something: greeter 12", "sandboxrun perms greeter 12 --net telemetry.example:443",
        "Types",
    ]  # fmt: skip
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_nothing_is_loaded_and_nothing_runs():
    found = Parsed(shown(busy(clock=200.0, now=1.6e9)))
    assert {tag for tag, _ in found.tags}.isdisjoint(
        {"script", "img", "link", "iframe", "form", "input", "object", "base"}
    )
    targets = {value for _, attributes in found.tags for name, value in attributes if name in ("href", "src")}
    assert targets == {"/?still", "/metrics", "/status.json"}
    assert not [
        name for _, attributes in found.tags for name, _ in attributes if name.startswith("on") or name == "style"
    ]
    assert "url(" not in STYLE and "@import" not in STYLE


def test_the_policy_names_the_style_by_its_digest():
    (style,) = re.findall("<style>(.*?)</style>", shown(STATUS), flags=re.S)
    assert f"style-src 'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" == POLICY


def test_the_page_has_every_worker_and_the_rates_between_two_looks():
    times = iter(range(100))
    page = Page(lambda: busy(next(times), clock=200.0, now=1.6e9))
    page._now()
    page._samples[0] = (page._samples[0][0] - 2.0, page._samples[0][1])  # two seconds ago
    reply = page.routes()["/"]("", {})
    text = Parsed(reply.body.decode()).text
    assert text.count("running") == 48
    assert "Requests/s" in text and any(re.fullmatch(r"\d\.\d", piece) for piece in text)


def test_the_metrics_alone_show_no_text_of_workers():
    assert set(Page(lambda: STATUS).routes(text=False)) == {"/metrics", "/healthz"}


def test_a_status_is_asked_for_once_a_second_at_most():
    asked = []
    page = Page(lambda: asked.append(1) or STATUS)  # type: ignore[func-returns-value]
    for _ in range(50):
        page.routes()["/metrics"]("", {})
    assert len(asked) < 50


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((), True),
        (("running",), True),
        (("running", "stuck", "failing"), True),
        (("failing",), False),
        (("stuck", "stopped"), False),
        (("waiting",), True),
        (("failing", "starting"), True),
    ],
)
def test_a_probe_is_told_only_if_no_worker_works(states, expected):
    assert healthy(with_workers(*(replace(WORKER, state=state) for state in states))) is expected


def test_each_problem_has_its_words():
    waiting = replace(WORKER, state="waiting", last_exit=78, last_reason="", denials=())
    stuck = replace(WORKER, state="stuck", health=replace(HEALTH, handling_since=0.0), denials=())
    status = with_workers(*(replace(stuck, id=str(n)) for n in range(5)), waiting)
    found = problems(replace(status, redis_up=False, draining=True), clock=0, now=0)
    assert [(problem.text, problem.hint) for problem in found] == [
        ("Redis at redis://127.0.0.1:6379 cannot be reached", "sandboxrun doctor --redis redis://127.0.0.1:6379"),
        (
            "5 workers are stuck: greeter 0, greeter 1, greeter 2 and 2 more; greeter 0 does not answer",
            "sandboxrun stop greeter 0 && sandboxrun start greeter 0",
        ),
        ("1 worker waits for a change of hash or policy: greeter 1: exit code 78", "sandboxrun show greeter 1"),
        ("agent a1 is draining: it takes no new worker", ""),
    ]


@pytest.mark.parametrize(("code", "command"), [(64, "show"), (65, "show"), (77, "approve"), (78, "show")])
def test_what_the_policy_refuses_is_approved(code, command):
    (found,) = problems(with_workers(replace(WORKER, state="waiting", last_exit=code, denials=())), clock=0, now=0)[:1]
    assert found.hint == f"sandboxrun {command} greeter 1"
