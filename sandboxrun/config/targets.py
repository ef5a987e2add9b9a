"""The entries of permission lists: hosts and addresses, paths, programs, variables, keys of Redis, types of workers. Pure."""

from __future__ import annotations

import functools
import ipaddress
import os.path
from collections.abc import Iterable

from sandboxrun.config.keys import DIGITS, LETTERS, LOWER, TYPE_MAX_CHARS, check_type, consists_of
from sandboxrun.errors import ConfigError
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# As text, also where `block` is used: most starts need few of these blocks, and to make them all takes 1 ms.
# The registries do not call these private, but no public name may resolve to them: site-local (RFC 3879), local NAT64
# (RFC 8215), IPv4-compatible and IPv4-translated IPv6 (RFC 4291, RFC 2765), which some hosts route to IPv4, and a cloud's
# metadata address.
_NEVER_PUBLIC = ("fec0::/10", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96", "192.0.0.0/24", "168.63.129.16/32")
PROGRAM_FOLDERS = ("/usr/local/bin", "/usr/bin", "/bin")  # searched for a program without a path
_MAPPED = "::ffff:0:0/96"  # RFC 4291 2.5.5.2
_NAT64 = "64:ff9b::/96"  # RFC 6052: an IPv4 address in the last 32 bits


@functools.cache
def block(text: str) -> IPNetwork:
    """A block of addresses, made once."""
    return ipaddress.ip_network(text)


def canonical_address(address: IPAddress) -> IPAddress:
    """The address to which a packet would really go.

    IPv4-mapped IPv6 (RFC 4291 2.5.5.2) becomes IPv4. The unspecified address becomes loopback, to which Linux connects it. So no
    second spelling of an address passes a rule for the first.
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
    """The IPv4 address to which a gateway may translate or tunnel this (canonical) one: NAT64 (RFC 6052), 6to4 (RFC 3056)."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in block(_NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


def is_public(address: IPAddress) -> bool:
    """Whether an address lies on the public Internet, so that a public name may resolve to it."""
    address = canonical_address(address)
    embedded = embedded_address(address)
    if embedded is not None:
        return is_public(embedded)
    return address.is_global and not address.is_multicast and not any(address in block(text) for text in _NEVER_PUBLIC)


def canonical_host(host: str) -> str:
    """A DNS name in lower case ASCII (IDNA) without its trailing dot. Raises ValueError."""
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise ValueError("not a valid international domain name") from error
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(map(_is_label, labels)):
        raise ValueError("not a valid host name")
    # WHATWG URL: a last label that is a number makes it an IPv4 address in an odd form (127.1, 0x7f.1, 2130706433).
    last = labels[-1]
    if consists_of(DIGITS, last) or (last.startswith("0x") and not last[2:].strip(DIGITS + "abcdef")):
        raise ValueError("not a plain IPv4 address (write all four numbers in decimal)")
    return host


def _is_label(label: str) -> bool:
    return len(label) <= 63 and consists_of(LOWER + DIGITS + "_-", label) and label.strip("-") == label


@record
class NetTarget:
    """One entry of a net list: `host`, `host:port`, `[v6]:port`, CIDR, `*.example.com`, `*`; port None is any port.

    Exactly one of `network`, `host`, `suffix` is set, or none for `*`. That is every *public* address: loopback, private,
    link-local and multicast addresses must be listed by address.
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
        if "/" in host or ":" in host or consists_of(DIGITS + ".", host):
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
        """`address` must be canonical; `names` are those that the supervisor itself has resolved to it."""
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            return address in self.network
        if self.host is None and self.suffix is None:
            return is_public(address)
        return any(self.matches_name(name) for name in names)


def _network(text: str) -> IPNetwork:
    """An address or a block. IPv4-mapped IPv6 becomes IPv4, because decisions are made on that. Raises ValueError."""
    try:
        network = ipaddress.ip_network(text, strict=True)
    except ValueError as error:
        # The text of ipaddress quotes the whole input, which may be long.
        reason = "host bits are set" if "host bits" in str(error) else "not an IP address or block"
        raise ValueError(reason) from error
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(ipaddress.IPv6Network(_MAPPED)):
        low = int(network.network_address) & 0xFFFFFFFF
        return ipaddress.IPv4Network((low, network.prefixlen - 96))
    return network


@record
class ListenTarget:
    """One entry of a listen list: an address of this machine and a port. Port 0 lets the kernel choose one.

    0.0.0.0 is every IPv4 address of the machine. [::] is every address, IPv4 included, because a socket bound to [::] accepts
    both.
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
        """Whether this entry includes everything that can reach a socket bound to `address`, which is not IPv4-mapped."""
        if self.address.is_unspecified and self.address.version >= address.version:
            return True
        return self.address == address

    def shares_address(self, address: IPAddress) -> bool:
        """Whether this entry includes some of it. A socket bound to [::] counts as one for IPv6 alone."""
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
    if len(port) > 5 or not consists_of(DIGITS, port) or not least <= int(port) < 65536:
        raise ValueError(f"the port is not a number from {least} to 65535")
    return host, int(port)


OWN_DATA = "~data"  # in lists of folders and files: the worker's own data folder


def parse_path(text: str) -> str:
    """An absolute path without `..`. Symlinks are resolved later, when the policy is built. Raises ValueError."""
    if not os.path.isabs(text):
        raise ValueError("the path is not absolute")
    return _normal(text)


def parse_folder(text: str) -> str:
    """An absolute path, or one in the worker's own data folder: `~data` or `~data/NAME`. Raises ValueError."""
    if is_own_data(text):
        return _normal(text)
    if text.startswith("~"):
        raise ValueError(f"of the paths with ~ only {OWN_DATA} and {OWN_DATA}/… are known")
    return parse_path(text)


def _normal(path: str) -> str:
    if "\0" in path or ".." in path.split("/"):
        raise ValueError("the path has a NUL or ..")
    return os.path.normpath(path)


def is_own_data(entry: str) -> bool:
    """Whether an entry is the worker's own data folder, or something in it."""
    return f"{entry}/".startswith(f"{OWN_DATA}/")


def below_data(entry: Any, data: str) -> Any:
    """An entry, of which `~data` is replaced by the folder `data`; another one as it is."""
    own = isinstance(entry, str) and is_own_data(entry)
    return data + entry.removeprefix(OWN_DATA) if own else entry


def parse_program(text: str) -> str:
    """A program: an absolute path, or a name that is searched in PROGRAM_FOLDERS. Raises ValueError."""
    is_name = len(text) <= 128 and consists_of(LETTERS + DIGITS + "._+-", text) and text[0] not in "._+-"
    return text if is_name else parse_path(text)


def parse_env(text: str) -> str:
    """The name of an environment variable. Raises ValueError."""
    if len(text) > 128 or not consists_of(LETTERS + DIGITS + "_", text) or text[0] in DIGITS:
        raise ValueError("not the name of an environment variable")
    if text.startswith(("LD_", "PYTHON")) or text in _OWN_ENV:
        raise ValueError("sandboxrun sets this variable, or it steers the interpreter")
    return text


def parse_type(text: str) -> str:
    """The type of a worker. Raises ValueError."""
    try:
        return check_type(text)
    except ConfigError as error:
        raise ValueError(
            f"not a type: a type is a lower-case letter, then up to {TYPE_MAX_CHARS - 1} of a-z 0-9 - _, and not req or res"
        ) from error


@record
class RedisTarget:
    """One entry of a redis list, in the spelling of Redis's ACL rules: `chat:*` or `~chat:*` is keys to read and write,
    `%R~config:*` to read, `%W~log:*` to write, `+pubsub:news` a channel, `+eval` a command. `*` and `?` are wildcards."""

    access: str  # "rw", "r", "w", "channel", "command"
    pattern: str  # in lower case for a command

    @classmethod
    def parse(cls, text: str) -> RedisTarget:
        import re

        prefix = next(prefix for prefix in _REDIS_PREFIXES if text.startswith(prefix))
        access, pattern = _REDIS_PREFIXES[prefix], text.removeprefix(prefix)
        if access == "command":
            pattern = pattern.lower()
            if not re.fullmatch(_REDIS_COMMAND, pattern):
                raise ValueError("not the name of a command")
            if pattern.partition("|")[0] in _REDIS_NEVER:
                raise ValueError("this command is never granted: it is for administrators, or reaches every key")
        elif not re.fullmatch(_REDIS_PATTERN, pattern):
            raise ValueError("a pattern has 1 to 256 of A-Z a-z 0-9 _ : . - / @ # { } and the wildcards * and ?")
        return cls(access, pattern)

    def matches(self, name: str) -> bool:
        """Whether a key or channel of this name is covered."""
        import re

        return re.fullmatch(_glob(self.pattern), name, re.DOTALL) is not None

    def __str__(self) -> str:
        return {access: prefix for prefix, access in _REDIS_PREFIXES.items()}[self.access] + self.pattern


def _glob(pattern: str) -> str:
    """Redis's wildcards as a regular expression."""
    import re

    return re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")


# They are tried in this order. The last one of "rw" is the one that is shown.
_REDIS_PREFIXES = {"+pubsub:": "channel", "+": "command", "%RW~": "rw", "%R~": "r", "%W~": "w", "~": "rw", "": "rw"}
_REDIS_PATTERN = r"[A-Za-z0-9_:.\-/@#{}*?]{1,256}"
_REDIS_COMMAND = r"[a-z][a-z0-9_.\-]{0,63}(\|[a-z][a-z0-9_\-]{0,63})?"
# @admin and @dangerous of Redis 6.2 to 8 and Valkey 9 (ACL CAT), and commands without a key that a rule could bound. If a server
# has more commands in these two categories, its own rules take them away, see redis/acl.py.
_REDIS_NEVER = frozenset(
    "acl bgrewriteaof bgsave client cluster command commandlog config copy dbsize debug failover flushall flushdb function "
    "hotkeys info keys lastsave latency memory migrate module monitor move object pfdebug pfselftest psync randomkey "
    "replconf replicaof reset restore restore-asking role save scan script select shutdown slaveof slowlog sort sort_ro "
    "swapdb sync wait waitaof".split()
)

_OWN_ENV = frozenset(
    "REDIS_URL SANDBOXRUN_HASH_URL SANDBOXRUN_CALL_URL SANDBOXRUN_CALL_NONCE SANDBOXRUN_DATA PATH LANG HOME TMPDIR".split()
)


def endpoint(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address: the form that the net lists read."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
