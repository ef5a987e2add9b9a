"""The address of a Redis server, parsed from its URL."""

from __future__ import annotations

from sandboxrun.errors import UsageError

_NOT_A_URL = (
    "the Redis URL is not valid: expected redis://[USER:PASSWORD@]HOST:PORT[/DB], with special characters "
    "percent-encoded"
)


class Address:
    """A parsed URL. `shown` has no password."""

    __slots__ = ("ca_file", "check", "db", "host", "password", "path", "port", "protocol", "shown", "tls", "user")

    def __init__(self) -> None:
        self.host, self.port, self.path = "127.0.0.1", 6379, ""
        self.user, self.password, self.db = "", "", 0
        self.tls, self.check, self.ca_file, self.protocol = False, True, "", 2
        self.shown = ""


def parse_url(url: str) -> Address:
    """redis://, rediss:// and unix://, as redis-py reads them, with ?db=, ?protocol= and ?ssl_ca_certs=.

    Raises UsageError, which never shows the URL: it may have a password.
    """
    address = Address()
    try:
        url.encode()
    except UnicodeEncodeError:  # bytes of the command line or the environment
        raise UsageError("the Redis URL is not UTF-8 text", hint=url_hint()) from None
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme = ""  # text without a scheme may be a password
    if scheme not in ("redis", "rediss", "unix"):
        raise UsageError(
            f"the Redis URL begins with {scheme[:20]!r}: expected redis://, rediss:// or unix://", hint=url_hint()
        )
    rest, _, query = rest.partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    authority, slash, path = rest.partition("/")
    login, at, server = authority.rpartition("@")
    if at:
        user, _, password = login.partition(":")
        address.user, address.password = _unquote(user), _unquote(password)
    try:
        if scheme == "unix":
            if not slash:
                raise UsageError(
                    "the Redis URL unix://… has no path", hint="export REDIS_URL=unix://USER:PASSWORD@/PATH"
                )
            address.path = "/" + _unquote(path)
            address.shown = f"unix://{address.path}"
        else:
            _set_server(address, scheme, server)
            address.db = int(path) if path else 0
        address.db = int(options.get("db", address.db))
        address.protocol = int(options.get("protocol", 2))
    except ValueError:
        raise UsageError(_NOT_A_URL, hint=url_hint()) from None
    if not 0 < address.port < 65536:
        # Without the number: of a password with a slash in it, it may be the first part.
        raise UsageError("the Redis URL's port is not between 1 and 65535", hint=url_hint())
    if address.protocol not in (2, 3):
        raise UsageError(f"the Redis URL's protocol is {address.protocol}: expected 2 or 3", hint=url_hint())
    address.check = options.get("ssl_cert_reqs", "required") != "none"
    address.ca_file = _unquote(options.get("ssl_ca_certs", ""))
    if address.ca_file and not address.ca_file.startswith("/"):  # the worker reads it from another folder
        raise UsageError(
            f"the Redis URL's ssl_ca_certs={address.ca_file[:200]} is not an absolute path",
            hint=certificates_hint(address),
        )
    return address


def url_hint() -> str:
    return "export REDIS_URL=redis://USER:PASSWORD@HOST:PORT"


def login_hint(shown: str) -> str:
    """The same server, with another login."""
    from shlex import quote

    scheme, _, place = shown.partition("://")
    return f"export REDIS_URL={scheme}://USER:PASSWORD@{quote(place)}"


def certificates_hint(address: Address) -> str:
    """The same server, with a file of certificates in PEM, which every worker can read."""
    from shlex import quote

    return f"export REDIS_URL='rediss://USER:PASSWORD@'{quote(address.shown.partition('://')[2])}'?ssl_ca_certs=/FILE'"


def client_options(address: Address) -> str:
    """The options of redis-cli for this server, without a login: its option -u knows neither IPv6 nor certificates."""
    from shlex import quote

    if address.path:
        return f"-s {quote(address.path)}"
    tls = ["--tls"] * address.tls
    if address.tls and address.ca_file:
        tls += ["--cacert", quote(address.ca_file)]
    if address.tls and not address.check:
        tls.append("--insecure")
    return " ".join(["-h", quote(address.host), "-p", str(address.port), *tls])


def _set_server(address: Address, scheme: str, server: str) -> None:
    """`server`: HOST[:PORT]. Raises ValueError."""
    host, colon, port = server.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = server, ""
    address.host = host.strip("[]") or "127.0.0.1"
    address.port = int(port or 6379)
    address.tls = scheme == "rediss"
    address.shown = f"{scheme}://{address.host}:{address.port}"


def _unquote(text: str) -> str:
    """As urllib.parse.unquote, which takes longer to import than a worker to connect."""
    first, *parts = text.encode().split(b"%")
    for part in parts:
        code = part[:2]
        is_code = len(code) == 2 and not code.strip(b"0123456789abcdefABCDEF")
        first += bytes((int(code, 16),)) + part[2:] if is_code else b"%" + part
    return first.decode("utf-8", "replace")
