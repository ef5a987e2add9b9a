"""The compiled filter against its table, run by an interpreter: each call, each condition, each architecture.

What the table ought to say is tested with real system calls (kernel/test_table.py).
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from bpf import Program
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from sandboxrun.sandbox.compile import seccomp
from sandboxrun.sandbox.compile.filters import for_pid
from sandboxrun.sandbox.compile.grants import TRAPPED, Grants
from sandboxrun.sandbox.compile.seccomp import Action, Rule

pyseccomp = pytest.importorskip("pyseccomp")

# linux/audit.h: AUDIT_ARCH_*
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FOREIGN = {"i386": 0x40000003, "arm": 0x40000028, "armeb": 0x28, "riscv64": 0xC00000F3, "s390x": 0x80000016,
           "ppc64le": 0xC0000015, "mips64": 0x80000008, "loongarch64": 0xC0000102, "none": 0, "all": 0xFFFFFFFF}  # fmt: skip
X32 = 0x40000000  # __X32_SYSCALL_BIT
# linux/seccomp.h: SECCOMP_RET_*
KILL_PROCESS, ERRNO, NOTIFY, ALLOW = 0x80000000, 0x00050000, 0x7FC00000, 0x7FFF0000
EPERM = ERRNO | errno.EPERM
RETURNS = {
    Action.ALLOW: ALLOW,
    Action.ASK: NOTIFY,
    Action.ABSENT: ERRNO | errno.ENOSYS,
    Action.UNSUPPORTED: ERRNO | errno.ENOTSUP,
}
PLACEHOLDER, PID = 0x7BADC0DE, 31337
ONES = (1 << 64) - 1
NUMBERS = range(601)  # of system calls: the highest of any architecture is below 500

# What a busy worker calls most. A list of the numbers would take more than a hundred instructions, the tree takes 16.
HOT = "read write recvfrom epoll_wait epoll_pwait futex"
HOT_STEPS_MAX = 20
# The kernel takes 4096 (BPF_MAXINSNS); there are 501 at most now. A leap means that libseccomp no longer shares parts.
PROGRAM_MAX = 600

LATER = {"memfd_secret": 447, "fchmodat2": 452, "map_shadow_stack": 453, "mseal": 462}  # than some libseccomp
EVERYTHING = Grants(unix_sockets=True, listen=True, run=True, signals=True)
GRANTS = [
    Grants(),
    Grants(unix_sockets=True),
    Grants(listen=True),
    Grants(run=True),
    Grants(run=True, signals=True),
    EVERYTHING,
]


@functools.cache
def number_of(machine: str, name: str) -> int:
    """Negative where `machine` has no such call."""
    arch = pyseccomp.Arch.AARCH64 if machine == "aarch64" else pyseccomp.Arch.X86_64
    return LATER.get(name) or int(pyseccomp.resolve_syscall(arch, name))


class Compiled:
    """The program of one machine and policy, and the rows it was made of: those whose call the machine has."""

    def __init__(self, machine: str, grants: Grants) -> None:
        self.machine, self.grants = machine, grants
        self.code = seccomp.compile_program(grants, machine=machine)
        self.program = Program(for_pid(self.code, PID))
        self.rows: dict[int, list[Rule]] = {}
        native = machine == os.uname().machine
        for row in seccomp.granted(grants):
            number = number_of(machine, row.name)
            # libseccomp cannot translate numbers it does not know to another machine than this one.
            if number >= 0 and (native or row.name not in LATER):
                args = tuple(arg._replace(value=PID if arg.value == PLACEHOLDER else arg.value) for arg in row.args)
                self.rows.setdefault(number, []).append(row._replace(args=args))

    def returns(self, number: int, args: Sequence[int]) -> int:
        return self.program.run(ARCH[self.machine], number, args).returned

    def table_says(self, number: int, args: Sequence[int]) -> int:
        """The table, read as its documentation says it is."""
        if (
            self.machine == "x86_64" and X32 <= number < 0xFFFFFFFF
        ):  # seccomp skips a call of number -1: no kernel has it
            return KILL_PROCESS
        matching = {row.action for row in self.rows.get(number, ()) if holds(row, args)}
        assert len(matching) <= 1, "rows contradict each other"
        return RETURNS[matching.pop()] if matching else EPERM


def holds(row: Rule, args: Sequence[int]) -> bool:
    return all(args[arg.position] & arg.mask == arg.value for arg in row.args)


def satisfying(row: Rule, fill: int) -> list[int]:
    """Arguments that the row takes; every bit that it does not look at is that of `fill`."""
    args = [fill] * 6
    for arg in row.args:
        args[arg.position] = arg.value | fill & ~arg.mask & ONES
    return args


def bits(mask: int) -> Iterable[int]:
    return (1 << place for place in range(64) if mask >> place & 1)


@pytest.fixture(scope="module", params=itertools.product(ARCH, GRANTS), ids=lambda p: f"{p[0]}-{GRANTS.index(p[1])}")
def compiled(request: pytest.FixtureRequest) -> Compiled:
    return Compiled(*request.param)


def test_every_row_is_reached_whatever_stands_in_bits_it_does_not_look_at(compiled: Compiled) -> None:
    for number, rows in compiled.rows.items():
        for row, fill in itertools.product(rows, (0, ONES, 0x5555555555555555, 0xAAAAAAAAAAAAAAAA)):
            assert compiled.returns(number, satisfying(row, fill)) == RETURNS[row.action], (row, hex(fill))


def test_the_high_half_of_an_int_changes_nothing(compiled: Compiled) -> None:
    whole = {(row.name, arg.position) for row in seccomp.rules() for arg in row.args if arg.mask >> 32}
    assert whole == {("sendto", 4)}  # the only pointer; every other argument in the table is an int in the kernel
    for number, rows in compiled.rows.items():
        for row in rows:
            for arg in row.args:
                if arg.mask >> 32 == 0:
                    for high in (1 << 32, 1 << 63, 0xFFFFFFFF << 32):
                        args = satisfying(row, 0)
                        args[arg.position] |= high
                        assert compiled.returns(number, args) == RETURNS[row.action], (row, arg.text, hex(high))


def test_each_broken_condition_is_refused(compiled: Compiled) -> None:
    for number, rows in compiled.rows.items():
        if any(not row.args for row in rows):
            continue  # allowed whatever its arguments are
        for row in rows:
            for arg in row.args:
                alone = 0
                for bit in bits(arg.mask):
                    args = satisfying(row, 0)
                    args[arg.position] ^= bit
                    if not any(holds(other, args) for other in rows):
                        assert compiled.returns(number, args) == EPERM, (row, arg.text, hex(bit))
                        alone += 1
                assert alone, f"{row} never needs {arg.text!r}"


def test_what_the_table_does_not_have_is_refused(compiled: Compiled) -> None:
    missing = set(NUMBERS) - set(compiled.rows)
    assert len(missing) > 380  # most: or the table was not read
    for number in (*sorted(missing), 1024, 4096, X32 - 1, 0xFFFFFFFF):
        for fill in (0, ONES):
            assert compiled.returns(number, [fill] * 6) == EPERM, number


def test_another_architecture_kills(compiled: Compiled) -> None:
    for arch in {**FOREIGN, **ARCH}.values():
        if arch != ARCH[compiled.machine]:
            for number in (*NUMBERS, X32, 0xFFFFFFFF):
                assert compiled.program.run(arch, number, [0] * 6).returned == KILL_PROCESS, (hex(arch), number)


def test_the_x32_table_kills(compiled: Compiled) -> None:
    wanted = KILL_PROCESS if compiled.machine == "x86_64" else EPERM  # others have no such table
    for number in (*NUMBERS, X32 - 1, X32 - 2):
        assert compiled.returns(X32 | number, [0] * 6) == wanted, number


def test_the_pid_is_put_everywhere_and_nothing_else_changes(compiled: Compiled) -> None:
    before, after = Program(compiled.code).instructions, compiled.program.instructions
    changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert changed
    for (code, jt, jf, k), new in changed:
        assert (code, k) == (0x15, PLACEHOLDER)  # a comparison
        assert new == (code, jt, jf, PID)
    assert PLACEHOLDER not in {k for *_, k in after}
    assert PID not in {k for *_, k in before}
    kill = number_of(compiled.machine, "kill")
    assert compiled.returns(kill, [PID, 15, 0, 0, 0, 0]) == ALLOW
    everybody = ALLOW if compiled.grants.signals else EPERM
    for stranger in (PLACEHOLDER, PID + 1, 0, -PID & ONES, 1):
        assert compiled.returns(kill, [stranger, 15, 0, 0, 0, 0]) == everybody, stranger


@pytest.mark.parametrize("machine", ARCH)
def test_the_supervisor_answers_exactly_what_is_asked(machine: str) -> None:
    asked = {row.name for row in seccomp.rules() if row.action is Action.ASK}
    resolved = {name: number_of(machine, name) for name in asked}
    assert {name: number for name, number in resolved.items() if number >= 0} == TRAPPED[machine]
    assert set(TRAPPED["x86_64"]) == asked


def test_no_call_is_both_asked_and_allowed(compiled: Compiled) -> None:
    # The supervisor goes by the number alone. Of clone it is asked about threads, never about processes.
    for number, rows in compiled.rows.items():
        if compiled.grants.run and number == number_of(compiled.machine, "clone"):
            asked = [[arg.text for arg in row.args] for row in rows if row.action is Action.ASK]
            assert asked == [["a thread"]]
        else:
            assert len({row.action is Action.ASK for row in rows}) == 1, rows


def test_hot_calls_take_few_instructions(compiled: Compiled) -> None:
    for name in HOT.split():
        number = number_of(compiled.machine, name)
        if number >= 0:
            ran = compiled.program.run(ARCH[compiled.machine], number, [ONES] * 6)
            assert ran.returned == ALLOW
            assert not ran.looked, name  # else the kernel could not remember the answer (5.11: seccomp_cache_allow)
            assert ran.steps <= HOT_STEPS_MAX, name


def test_the_program_is_short(compiled: Compiled) -> None:
    assert len(compiled.program.instructions) <= PROGRAM_MAX


# Every number that some condition compares with, and what lies beside it.
_COMPARED = sorted(
    {value for row in seccomp.rules() for arg in row.args for value in (arg.value, arg.mask)} - {PLACEHOLDER}
)
_LOW = st.one_of(
    st.sampled_from([0, 1, PID, PLACEHOLDER, 0xFFFFFFFF, 1 << 31]),
    st.sampled_from(_COMPARED).flatmap(
        lambda value: st.sampled_from([value, value ^ 1, value + 1 & ONES, value - 1 & ONES])
    ),
    st.tuples(st.sampled_from(_COMPARED), st.sampled_from(_COMPARED)).map(lambda pair: pair[0] | pair[1]),
)
_VALUES = st.one_of(_LOW, _LOW.map(lambda low: low | 1 << 32), _LOW.map(lambda low: ~low & ONES), st.integers(0, ONES))
ORACLE = [Compiled(machine, grants) for machine in ARCH for grants in (Grants(), EVERYTHING)]


@st.composite
def calls(draw: st.DrawFn) -> tuple[Compiled, int, list[int]]:
    """Half of them take some row's conditions and change up to two arguments; the others are anything."""
    chosen = draw(st.sampled_from(ORACLE))
    if draw(st.booleans()):
        number = draw(st.sampled_from(sorted(number for number, rows in chosen.rows.items() if rows[0].args)))
        args = satisfying(draw(st.sampled_from(chosen.rows[number])), draw(st.sampled_from([0, ONES, 1 << 32])))
        for _ in range(draw(st.integers(0, 2))):
            args[draw(st.integers(0, 5))] = draw(_VALUES)
        return chosen, number, args
    number = draw(st.one_of(st.sampled_from(NUMBERS), st.integers(0, 0xFFFFFFFF)))
    return chosen, number, draw(st.lists(_VALUES, min_size=6, max_size=6))


@settings(derandomize=True, deadline=None, database=None, max_examples=1500)
@given(calls())
def test_the_program_does_what_the_table_says(call: tuple[Compiled, int, list[int]]) -> None:
    compiled, number, args = call
    assert compiled.returns(number, args) == compiled.table_says(number, args)


def test_security_md_shows_the_table_as_it_is() -> None:
    """Where this fails, put what `python -c 'from sandboxrun.sandbox.compile import seccomp; print(seccomp.markdown())'` prints
    between the two lines."""
    text = (Path(__file__).parent.parent.parent / "SECURITY.md").read_text()
    section = text.partition("\n## The filter\n")[2]
    shown = section.partition("<!-- filter table: made by sandboxrun.sandbox.compile.seccomp.markdown() -->\n")[2]
    shown, end, _ = shown.partition("<!-- end of filter table -->")
    assert end
    assert shown.strip() == seccomp.markdown().strip()


@pytest.fixture(autouse=True)
def _nothing_on_disk(tmp_path: Path) -> None:
    set_hypothesis_home_dir(tmp_path)
