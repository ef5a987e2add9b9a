"""What a worker may touch: one table of kinds, and the decisions over it. Pure.

The spelling is Deno's. `allowNet` in a hash, `--allow-net` in its `options` and `--allow-net` on the command line mean the same.
A list that is unset or empty grants nothing; deny beats allow.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

# Exported again, because decisions on permissions are decisions on targets.
from sandboxrun.config.targets import OWN_DATA as OWN_DATA
from sandboxrun.config.targets import PROGRAM_FOLDERS as PROGRAM_FOLDERS
from sandboxrun.config.targets import IPAddress as IPAddress
from sandboxrun.config.targets import IPNetwork as IPNetwork
from sandboxrun.config.targets import ListenTarget as ListenTarget
from sandboxrun.config.targets import NetTarget as NetTarget
from sandboxrun.config.targets import RedisTarget as RedisTarget
from sandboxrun.config.targets import below_data as below_data
from sandboxrun.config.targets import canonical_address as canonical_address
from sandboxrun.config.targets import canonical_host as canonical_host
from sandboxrun.config.targets import embedded_address as embedded_address
from sandboxrun.config.targets import endpoint as endpoint
from sandboxrun.config.targets import is_own_data as is_own_data
from sandboxrun.config.targets import is_public as is_public
from sandboxrun.config.targets import parse_env, parse_folder, parse_program, parse_type
from sandboxrun.config.targets import parse_path as parse_path
from sandboxrun.enums import StrEnum
from sandboxrun.errors import ConfigError
from sandboxrun.records import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TARGETS_MAX = 256  # entries in one list


class Verdict(StrEnum):
    """Whether a list allows or denies its entries."""

    ALLOW = "allow"
    DENY = "deny"


class Kind(StrEnum):
    """The kinds of permission, each with its row of the one table.

    `parse` reads an entry of a list and raises ValueError. `expected` completes "expected …" in an error. `words` describe the
    grant of an entry, which {} stands for. `default` is the bound if no policy file sets the kind; {} stands for the worker's
    own data folder. `metavar` and `question` describe the option of `perms` that asks about this kind.
    """

    parse: Callable[[str], Any]
    expected: str
    words: str
    default: str
    metavar: str
    question: str

    NET = (
        "net",
        NetTarget.parse,
        "host, host:port, [IPv6]:port, a CIDR block or *.example.com",
        "connect to {}",
        "hosts and single addresses; no wildcards, no blocks, none where clouds keep credentials",
        "HOST:PORT",
        "ask about connecting to this address",
    )
    READ = (
        "read",
        parse_folder,
        "an absolute path, or ~data, the worker's own folder",
        "read {} and what is below it",
        "what is in {}",
        "PATH",
        "ask about reading this file or folder",
    )
    WRITE = (
        "write",
        parse_folder,
        "an absolute path, or ~data, the worker's own folder",
        "write, make and remove {} and what is below it",
        "what is in {}",
        "PATH",
        "ask about writing or making this file or folder",
    )
    RUN = (
        "run",
        parse_program,
        "the name or the absolute path of a program",
        "run the program {}, in the same sandbox",
        "nothing",
        "PROGRAM",
        "ask about running this program",
    )
    LISTEN = (
        "listen",
        ListenTarget.parse,
        "address:port, as in 127.0.0.1:8000 or [::1]:8000",
        "listen {}",
        "nothing",
        "ADDRESS:PORT",
        "ask about listening on this address",
    )
    ENV = (
        "env",
        parse_env,
        "the name of an environment variable",
        "see the variable {} of the operator's environment",
        "nothing",
        "NAME",
        "ask about this variable of your environment",
    )
    REDIS = (
        "redis",
        RedisTarget.parse,
        "keys as in chat:* or %R~config:*, a channel as in +pubsub:news, or +COMMAND",
        "{}",
        "keys and channels without a wildcard in front of the first colon; no commands",
        "KEYS",
        "ask about reading and writing these keys; %R~KEYS: only reading; %W~KEYS: only writing; also +pubsub:CHANNEL and +COMMAND",
    )
    CALL = (
        "call",
        parse_type,
        "the type of a worker, such as price",
        "send requests to workers of the type {}, and read their replies",
        "any type, listed by name (no wildcard)",
        "TYPE",
        "ask about sending requests to workers of this type",
    )

    def __new__(
        cls,
        name: str,
        parse: Callable[[str], Any],
        expected: str,
        words: str,
        default: str,
        metavar: str,
        question: str,
    ) -> Kind:
        kind = str.__new__(cls, name)
        kind._value_ = name
        kind.parse, kind.expected, kind.words, kind.default = parse, expected, words, default
        kind.metavar, kind.question = metavar, question
        return kind

    def flag(self, verdict: str = Verdict.ALLOW) -> str:
        return f"--{verdict}-{self}"

    def field(self, verdict: str = Verdict.ALLOW) -> str:
        return verdict + self.capitalize()

    @property
    def is_folder(self) -> bool:
        """Whether an entry is a path, which includes everything below it."""
        return self.parse is parse_folder

    @property
    def is_path(self) -> bool:
        """Whether an entry may be a path."""
        return self.parse in (parse_folder, parse_program)

    @property
    def has_wildcards(self) -> bool:
        """Whether a hash may have patterns. Of the other kinds, a policy may say `*` for all, and a hash lists each entry."""
        return self in (Kind.NET, Kind.REDIS)


KINDS: Mapping[str, Kind] = MappingProxyType({str(kind): kind for kind in Kind})  # by their text
VERDICTS = tuple(Verdict)


def parse_list(kind: Kind, text: str, where: str) -> tuple[Any, ...]:
    """A comma-separated list of targets; `where` names the field or flag in errors. Raises ConfigError."""
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if len(entries) > TARGETS_MAX:
        raise ConfigError(f"{where} has {len(entries)} entries: at most {TARGETS_MAX} are read")
    targets = []
    for entry in entries:
        try:
            targets.append(kind.parse(entry))
        except ValueError as error:
            raise ConfigError(f"{where} has {entry[:80]!r}: {error}; expected {kind.expected}") from error
    return tuple(dict.fromkeys(targets))


@record
class Permissions:
    """What is allowed and what is denied. The keys are the texts of kinds: they can be marshalled, and a Kind equals its text.
    Deny beats allow; an empty list grants nothing."""

    allow: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    deny: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @classmethod
    def parse(cls, lists: Iterable[tuple[str, str, str, str]]) -> Permissions:
        """From (verdict, kind, comma-separated text, where it stands); lists of one kind add up."""
        both: dict[str, dict[str, tuple[Any, ...]]] = {verdict: {} for verdict in Verdict}
        for verdict, kind, text, where in lists:
            targets, listed = parse_list(KINDS[kind], text, where), both[verdict]
            listed[str(kind)] = tuple(dict.fromkeys((*listed.get(kind, ()), *targets)))
        return cls(both[Verdict.ALLOW], both[Verdict.DENY])

    def union(self, other: Permissions) -> Permissions:
        def add(a: Mapping[str, tuple[Any, ...]], b: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
            return {name: tuple(dict.fromkeys((*a.get(name, ()), *b.get(name, ())))) for name in {**a, **b}}

        return Permissions(add(self.allow, other.allow), add(self.deny, other.deny))

    @property
    def implied(self) -> Permissions:
        """With the grants that follow: ~data may be read if it may be written."""
        own = tuple(filter(is_own_data, self.allow.get(Kind.WRITE, ())))
        return self.union(Permissions({str(Kind.READ): own})) if own else self

    def with_data(self, data: str) -> Permissions:
        """For the kernel: with the grants that follow, and the folder `data` in the place of `~data`."""

        def placed(lists: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
            return {kind: tuple(dict.fromkeys(below_data(t, data) for t in targets)) for kind, targets in lists.items()}

        return Permissions(placed(self.implied.allow), placed(self.deny))

    def allows_net(
        self,
        address: IPAddress,
        port: int,
        names: Iterable[str] = (),
        private_names: Iterable[str] = (),
        denied_names: Iterable[str] = (),
    ) -> bool:
        """Whether TCP to this address and port may be opened.

        `names` have resolved to the address. `private_names` are those of them that may stand for an address that is not
        public. For the other names such an address must be listed itself, with this port, because the owner of a name chooses
        its answers. `denied_names` count for denials only: they have resolved to the `embedded_address`.
        """
        address = canonical_address(address)
        names = tuple(names)
        if self.denies_net(address, port, (*names, *denied_names)):
            return False
        usable = names if is_public(address) else tuple(private_names)
        return any(t.matches(address, port, usable) for t in self.allow.get(Kind.NET, ()))

    def denies_net(self, address: IPAddress, port: int, names: Iterable[str] = ()) -> bool:
        """Whether a deny entry refuses the address in any spelling, so that no grant helps. `names`: all that count for denials."""
        address, names = canonical_address(address), tuple(names)
        spellings = [spelling for spelling in (address, embedded_address(address)) if spelling is not None]
        return any(t.matches(spelling, port, names) for t in self.deny.get(Kind.NET, ()) for spelling in spellings)

    def allows_name(self, name: str) -> bool:
        """Whether a (canonical) name may be resolved: a port of it is allowed, and not all of its ports are denied."""
        return not self.denies_name(name) and any(t.matches_name(name) for t in self.allow.get(Kind.NET, ()))

    def denies_name(self, name: str) -> bool:
        """Whether a deny entry refuses all ports of a name."""
        return any(t.port is None and t.matches_name(name) for t in self.deny.get(Kind.NET, ()))

    def allows_listen(self, address: IPAddress, port: int, *, bound: bool = False, both: bool = False) -> bool:
        """Whether a socket may listen at this port on every address that `address` stands for.

        `bound`: the kernel may have chosen the port, for which port 0 is granted. `both`: the socket accepts IPv4 too if `address`
        is [::].
        """

        def allowed(wanted: int) -> bool:
            granted = any(t.port == wanted and t.has_address(address) for t in self.allow.get(Kind.LISTEN, ()))
            return granted and not self.denies_listen(address, wanted, both=both)

        return allowed(port) or (bound and allowed(0) and not self.denies_listen(address, port, both=both))

    def denies_listen(self, address: IPAddress, port: int, *, both: bool = False) -> bool:
        """Whether a deny entry refuses one of the addresses, so that no grant helps."""
        addresses = [address]
        if both and address == ipaddress.IPv6Address(0):
            addresses.append(ipaddress.IPv4Address(0))
        denied = [t for t in self.deny.get(Kind.LISTEN, ()) if t.port == port]
        return any(t.shares_address(part) for t in denied for part in addresses)

    def lists_answer(self, name: str, address: IPAddress) -> bool:
        """Whether an allow entry names this address itself (alone or in a block), for a port that the name is granted."""
        address = canonical_address(address)
        targets = self.allow.get(Kind.NET, ())
        ports = {t.port for t in targets if t.network is not None and address in t.network}
        wanted = {t.port for t in targets if t.matches_name(name)}
        return bool(ports & wanted) or (None in ports and bool(wanted)) or (None in wanted and bool(ports))


@record
class Denial:
    """A refusal of the sandbox, and the grant that would allow the act. Its text is the message to the operator.

    `grant` is the entry for the allow list of this kind. It is None if a deny entry refuses the resource, so that no grant
    helps. `key` is the hash with that list.
    """

    kind: Kind
    resource: str
    grant: str | None
    key: str

    def __str__(self) -> str:
        wanted = requirement(self.kind, self.resource)
        if self.grant is None:
            return f"{wanted}, which {self.kind.field(Verdict.DENY)} of {self.key} refuses"
        return f"{wanted}; grant it with: {self.kind.flag()}={self.grant} (field {self.kind.field()} of {self.key})"

    @property
    def fields(self) -> dict[str, object]:
        """For a log event; `grant` is None as above."""
        return {"kind": str(self.kind), "target": self.resource, "grant": self.grant}


def requirement(kind: str, resource: str) -> str:
    """The first words of a denial. The worker's exception has the same."""
    return f'Requires {kind} access to "{resource}"'
