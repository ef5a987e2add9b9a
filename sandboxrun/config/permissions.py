"""What a worker may touch: one table of kinds, and pure decisions over it.

The spelling is Deno's. `allowNet` in a hash, `--allow-net` in its `options` and `--allow-net` on our command line
are the same thing. An unset or empty list grants nothing; deny beats allow.
"""

from __future__ import annotations

import enum
import ipaddress
import os.path
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from sandboxrun.errors import ConfigError
from sandboxrun.records import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

TARGETS_MAX = 256  # entries in one list
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
# Not marked private by the registries, but never the answer for a public name: site-local (RFC 3879), local NAT64 (RFC 8215),
# IPv4-compatible and IPv4-translated IPv6 (RFC 4291, RFC 2765), which some hosts route to IPv4; a cloud's metadata address.
_NEVER_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        ("fec0::/10", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96", "192.0.0.0/24", "168.63.129.16/32"),
    )
)
PROGRAM_FOLDERS = ("/usr/local/bin", "/usr/bin", "/bin")  # where a program that is named without a path is looked for
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # RFC 4291 2.5.5.2
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits


def canonical_address(address: IPAddress) -> IPAddress:
    """The address that a packet would really go to.

    IPv4-mapped IPv6 (RFC 4291 2.5.5.2) becomes IPv4, and the unspecified address, which Linux connects to the
    loopback interface, becomes loopback; so no second spelling passes a rule that names the first.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address.scope_id is not None:
            address = ipaddress.IPv6Address(int(address))
    if address.is_unspecified:
        return ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return address


def embedded_address(address: IPAddress) -> IPAddress | None:
    """The IPv4 address that a gateway may translate or tunnel this (canonical) one to: NAT64 (RFC 6052), 6to4 (RFC 3056)."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


def is_public(address: IPAddress) -> bool:
    """Whether an address lies on the public Internet, and so may be the answer for a public name."""
    address = canonical_address(address)
    embedded = embedded_address(address)
    if embedded is not None:
        return is_public(embedded)
    return address.is_global and not address.is_multicast and not any(address in block for block in _NEVER_PUBLIC)


def canonical_host(host: str) -> str:
    """A DNS name in lower case ASCII (IDNA) without its trailing dot. Raises ValueError."""
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise ValueError("not a valid international domain name") from error
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("not a valid host name")
    # WHATWG URL: a last label that is a number makes it an IPv4 address in an odd form (127.1, 0x7f.1, 2130706433).
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
        raise ValueError("not a plain IPv4 address (write all four numbers in decimal)")
    return host


@record
class NetTarget:
    """One entry of a net list: `host`, `host:port`, `[v6]:port`, CIDR, `*.example.com`, `*`; port None is any port.

    Exactly one of `network`, `host`, `suffix` is set, or none for `*`, which is every *public* address: loopback,
    private, link-local and multicast addresses have to be listed by address.
    """

    network: IPNetwork | None = None
    host: str | None = None
    suffix: str | None = None  # ".example.com"
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> NetTarget:
        host, port = _split_port(text)
        if host == "*":
            return cls(port=port)
        if host.startswith("*."):
            return cls(suffix="." + canonical_host(host[2:]), port=port)
        if "/" in host or ":" in host or re.fullmatch(r"[0-9.]+", host):
            if "%" in host:
                raise ValueError("an address with a zone (%) cannot be listed; leave the zone out")
            network = _network(host)
            if network.num_addresses == 1 and network.network_address.is_unspecified:
                raise ValueError("the unspecified address is not a destination; write 127.0.0.1 or [::1]")
            return cls(network=network, port=port)
        return cls(host=canonical_host(host), port=port)

    def __str__(self) -> str:
        if self.network is not None:
            single = self.network.num_addresses == 1
            host = str(self.network.network_address if single else self.network)
        else:
            host = self.host or f"*{self.suffix or ''}"
        return host if self.port is None else endpoint(host, self.port)

    def matches_name(self, name: str) -> bool:
        if self.host is not None:
            return self.host == name
        if self.suffix is not None:
            return name.endswith(self.suffix)
        return self.network is None

    def matches(self, address: IPAddress, port: int, names: Iterable[str]) -> bool:
        """`address` must be canonical; `names` are those the supervisor itself resolved to it."""
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            return address in self.network
        if self.host is None and self.suffix is None:
            return is_public(address)
        return any(self.matches_name(name) for name in names)


def _network(text: str) -> IPNetwork:
    """An address or a block; one of IPv4-mapped IPv6 addresses as IPv4, which is what is decided on. Raises ValueError."""
    try:
        network = ipaddress.ip_network(text, strict=True)
    except ValueError as error:
        # ipaddress quotes what it was given, however long that is.
        why = "host bits are set" if "host bits" in str(error) else "not an IP address or block"
        raise ValueError(why) from error
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        low = int(network.network_address) & 0xFFFFFFFF
        return ipaddress.IPv4Network((low, network.prefixlen - 96))
    return network


@record
class ListenTarget:
    """One entry of a listen list: an address of this machine and a port; port 0 is one that the kernel chooses.

    0.0.0.0 is every IPv4 address of it, [::] every address, of IPv4 too, because a socket bound to [::] takes both.
    """

    address: IPAddress
    port: int

    @classmethod
    def parse(cls, text: str) -> ListenTarget:
        host, port = _split_port(text, least=0)
        if port is None:
            raise ValueError("the port is missing")
        if "%" in host:
            raise ValueError("an address with a zone (%) cannot be listed")
        try:
            address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        except ValueError as error:
            raise ValueError("not an IP address") from error
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return cls(address, port)

    def has_address(self, address: IPAddress) -> bool:
        """Whether all that reaches a socket bound to `address`, which is not an IPv4-mapped one, reaches this entry's."""
        if self.address.is_unspecified and self.address.version >= address.version:
            return True
        return self.address == address

    def shares_address(self, address: IPAddress) -> bool:
        """Whether some of it does; a socket bound to [::] is taken to be for IPv6 alone here."""
        if address.is_unspecified and address.version == self.address.version:
            return True
        return self.has_address(address)

    def __str__(self) -> str:
        return endpoint(str(self.address), self.port)


def _split_port(text: str, *, least: int = 1) -> tuple[str, int | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("expected [IPv6]:PORT")
        if ":" not in host:
            raise ValueError("only an IPv6 address is written in brackets")
        port = rest[1:] if rest else None
    elif text.count(":") == 1:
        host, port = text.split(":")
    else:
        host, port = text, None
    if port is None:
        return host, None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not least <= int(port) < 65536:
        raise ValueError(f"the port is not a number from {least} to 65535")
    return host, int(port)


def parse_path(text: str) -> str:
    """An absolute path without `..`; symlinks are resolved later, when the policy is made. Raises ValueError."""
    if not os.path.isabs(text):
        raise ValueError("the path is not absolute")
    if "\0" in text or ".." in text.split("/"):
        raise ValueError("the path has a NUL or ..")
    return os.path.normpath(text)


def parse_program(text: str) -> str:
    """A program: an absolute path, or a name to be looked up in PROGRAM_FOLDERS. Raises ValueError."""
    return text if _PROGRAM.fullmatch(text) else parse_path(text)


def parse_env(text: str) -> str:
    """The name of an environment variable. Raises ValueError."""
    if not _ENV_NAME.fullmatch(text):
        raise ValueError("not the name of an environment variable")
    if text.startswith(("LD_", "PYTHON")) or text in _OWN_ENV:
        raise ValueError("this variable is set by sandboxrun or steers the interpreter")
    return text


@record
class RedisTarget:
    """One entry of a redis list, in the spelling of Redis's ACL rules: `chat:*` or `~chat:*` is keys to read and write,
    `%R~config:*` to read, `%W~log:*` to write, `+pubsub:news` a channel, `+eval` a command. `*` and `?` are wildcards."""

    access: str  # "rw", "r", "w", "channel", "command"
    pattern: str  # in lower case for a command

    @classmethod
    def parse(cls, text: str) -> RedisTarget:
        prefix = next(prefix for prefix in _REDIS_PREFIXES if text.startswith(prefix))
        access, pattern = _REDIS_PREFIXES[prefix], text.removeprefix(prefix)
        if access == "command":
            pattern = pattern.lower()
            if not _REDIS_COMMAND.fullmatch(pattern):
                raise ValueError("not the name of a command")
            if pattern.partition("|")[0] in _REDIS_NEVER:
                raise ValueError("this command is for administrators, or reaches every key, and is never granted")
        elif not _REDIS_PATTERN.fullmatch(pattern):
            raise ValueError("a pattern has 1 to 256 of A-Z a-z 0-9 _ : . - / @ # { } and the wildcards * and ?")
        return cls(access, pattern)

    def matches(self, name: str) -> bool:
        """Whether a key or channel of this name is covered."""
        return re.fullmatch(_glob(self.pattern), name, re.DOTALL) is not None

    def __str__(self) -> str:
        return {access: prefix for prefix, access in _REDIS_PREFIXES.items()}[self.access] + self.pattern


def _glob(pattern: str) -> str:
    """Redis's wildcards as a regular expression."""
    return re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")


# In the order in which they are tried; the last one of "rw" is how it is shown.
_REDIS_PREFIXES = {"+pubsub:": "channel", "+": "command", "%RW~": "rw", "%R~": "r", "%W~": "w", "~": "rw", "": "rw"}
_REDIS_PATTERN = re.compile(r"[A-Za-z0-9_:.\-/@#{}*?]{1,256}")
_REDIS_COMMAND = re.compile(r"[a-z][a-z0-9_.\-]{0,63}(\|[a-z][a-z0-9_\-]{0,63})?")
# @admin and @dangerous of Redis 6.2 to 8 and Valkey 9 (ACL CAT), and what has no key that a rule could bound. Whatever a
# server adds to these two categories is taken away by its own rules, see identity.py.
_REDIS_NEVER = frozenset(
    "acl bgrewriteaof bgsave client cluster command commandlog config copy dbsize debug failover flushall flushdb function "
    "hotkeys info keys lastsave latency memory migrate module monitor move object pfdebug pfselftest psync randomkey "
    "replconf replicaof reset restore restore-asking role save scan script select shutdown slaveof slowlog sort sort_ro "
    "swapdb sync wait waitaof".split()
)

_OWN_ENV = frozenset({"REDIS_URL", "SANDBOXRUN_HASH_URL", "PATH", "LANG", "HOME", "TMPDIR"})


class Verdict(enum.StrEnum):
    """What a list does with what it names."""

    ALLOW = "allow"
    DENY = "deny"


class Kind(enum.StrEnum):
    """The kinds of permission, each with its row of the one table.

    `parse` reads an entry of its lists and raises ValueError; `expected` completes "expected …" in an error. `words` say
    what an entry grants, {} being the entry in words. `default` is what a hash may be granted where no policy file says,
    {} being the worker's own data folder. `metavar` and `question` are for the option of `perms` that asks about it.
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
        "connecting there",
    )
    READ = (
        "read",
        parse_path,
        "an absolute path",
        "read {} and what is below it",
        "what is in {}",
        "PATH",
        "reading this file or folder",
    )
    WRITE = (
        "write",
        parse_path,
        "an absolute path",
        "write, make and remove {} and what is below it",
        "what is in {}",
        "PATH",
        "writing it, or making it",
    )
    RUN = (
        "run",
        parse_program,
        "the name or the absolute path of a program",
        "run the program {}, in the same sandbox",
        "nothing",
        "PROGRAM",
        "running it",
    )
    LISTEN = (
        "listen",
        ListenTarget.parse,
        "address:port, as in 127.0.0.1:8000 or [::1]:8000",
        "listen {}",
        "nothing",
        "ADDRESS:PORT",
        "listening there",
    )
    ENV = (
        "env",
        parse_env,
        "the name of an environment variable",
        "see the variable {} of the operator's environment",
        "nothing",
        "NAME",
        "seeing this variable of yours",
    )
    REDIS = (
        "redis",
        RedisTarget.parse,
        "keys as in chat:* or %R~config:*, a channel as in +pubsub:news, or +COMMAND",
        "{}",
        "keys and channels without a wildcard in front of the first colon; no commands",
        "KEYS",
        "reading and writing keys; %R~KEYS reading, %W~KEYS writing, +pubsub:CHANNEL, +COMMAND",
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
        """Whether an entry is a path that stands for what is below it too."""
        return self.parse is parse_path

    @property
    def is_path(self) -> bool:
        """Whether an entry may be a path."""
        return self.parse in (parse_path, parse_program)

    @property
    def has_wildcards(self) -> bool:
        """Whether a hash may write patterns; of the other kinds a ceiling may say `*` for all, and a hash lists each."""
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
    """What is allowed and what is denied, by the text of a kind, which unlike a Kind can be marshalled, and which a Kind finds.
    Deny beats allow; nothing listed is nothing granted."""

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

    def allows_net(
        self,
        address: IPAddress,
        port: int,
        names: Iterable[str] = (),
        private_names: Iterable[str] = (),
        denied_names: Iterable[str] = (),
    ) -> bool:
        """Whether TCP to this address and port may be opened.

        `names` are those that resolved to the address; `private_names` are those of them that may stand for an address
        that is not public. For the others such an address has to be listed itself, with this port: whoever owns a
        name chooses what it resolves to. `denied_names` count where they are denied only: those of `embedded_address`.
        """
        address = canonical_address(address)
        names = tuple(names)
        if self.denies_net(address, port, (*names, *denied_names)):
            return False
        usable = names if is_public(address) else tuple(private_names)
        return any(t.matches(address, port, usable) for t in self.allow.get(Kind.NET, ()))

    def denies_net(self, address: IPAddress, port: int, names: Iterable[str] = ()) -> bool:
        """Whether a deny entry refuses it, however it is spelt, so that no grant helps. `names`: all that count for denials."""
        address, names = canonical_address(address), tuple(names)
        spellings = [found for found in (address, embedded_address(address)) if found is not None]
        return any(t.matches(found, port, names) for t in self.deny.get(Kind.NET, ()) for found in spellings)

    def allows_name(self, name: str) -> bool:
        """Whether a (canonical) name may be resolved at all: some port of it is allowed, and not all are denied."""
        return not self.denies_name(name) and any(t.matches_name(name) for t in self.allow.get(Kind.NET, ()))

    def denies_name(self, name: str) -> bool:
        """Whether a deny entry refuses all ports of a name."""
        return any(t.port is None and t.matches_name(name) for t in self.deny.get(Kind.NET, ()))

    def allows_listen(self, address: IPAddress, port: int, *, bound: bool = False, both: bool = False) -> bool:
        """Whether a socket may listen on all that this address stands for, at this port.

        `bound`: a port that the kernel chose may be it. `both`: the socket takes IPv4 too, where `address` is [::].
        """

        def allowed(wanted: int) -> bool:
            granted = any(t.port == wanted and t.has_address(address) for t in self.allow.get(Kind.LISTEN, ()))
            return granted and not self.denies_listen(address, wanted, both=both)

        return allowed(port) or (bound and allowed(0) and not self.denies_listen(address, port, both=both))

    def denies_listen(self, address: IPAddress, port: int, *, both: bool = False) -> bool:
        """Whether a deny entry refuses some of it, so that no grant helps."""
        addresses = [address]
        if both and address == ipaddress.IPv6Address(0):
            addresses.append(ipaddress.IPv4Address(0))
        denied = [t for t in self.deny.get(Kind.LISTEN, ()) if t.port == port]
        return any(t.shares_address(found) for t in denied for found in addresses)

    def lists_answer(self, name: str, address: IPAddress) -> bool:
        """Whether an allow entry names this address itself (alone or in a block), for a port that the name is granted."""
        address = canonical_address(address)
        targets = self.allow.get(Kind.NET, ())
        ports = {t.port for t in targets if t.network is not None and address in t.network}
        wanted = {t.port for t in targets if t.matches_name(name)}
        return bool(ports & wanted) or (None in ports and bool(wanted)) or (None in wanted and bool(ports))


@record
class Denial:
    """What the sandbox refused a worker, and the grant that would allow it; its text is the message to the operator.

    `grant` is the entry for the allow list of this kind; None: a deny entry refuses the resource, so no grant helps.
    `key` is the hash in which that list stands.
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
    """The first words of a denial, which the worker's own exception has too."""
    return f'Requires {kind} access to "{resource}"'


def endpoint(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address: the form that the net lists read."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
