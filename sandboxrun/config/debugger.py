"""Where a debugger listens: `--inspect=HOST:PORT` in a hash's options or on the command line. Imported only if it is given."""

from __future__ import annotations

import ipaddress

from sandboxrun.config.permissions import ListenTarget
from sandboxrun.errors import ConfigError
from sandboxrun.records import record

DEFAULT = "127.0.0.1:9229"
FLAGS = ("--inspect", "--inspect-wait")
_EXPECTED = "an address and a port, as in --inspect=127.0.0.1:9229 or --inspect=9229; port 0 is a free port"


@record
class Inspect:
    """The debugger's socket. `wait`: the script begins when a client has attached. `where`: the flag, and the field if it stands in
    one, for messages."""

    address: ListenTarget
    wait: bool
    where: str

    @classmethod
    def parse(cls, flag: str, value: str | None, where: str) -> Inspect:
        """From `--inspect`, `--inspect-wait` or `--inspect-brk`, and the value behind its `=`. Raises ConfigError."""
        text = DEFAULT if value is None else f"127.0.0.1:{value}" if value.isdigit() else value
        try:
            return cls(ListenTarget.parse(text), flag != "--inspect", where)
        except ValueError as error:
            raise ConfigError(f"{where} has {text[:80]!r}: {error}; expected {_EXPECTED}") from error

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.address.address in (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))

    @property
    def plan(self) -> tuple[str, int, bool]:
        """Address, port and `wait`, for the child's plan."""
        return str(self.address.address), self.address.port, self.wait

    def __str__(self) -> str:
        return f"--inspect{'-wait' if self.wait else ''}={self.address}"
