"""What the filter of system calls depends on: a part of the policy, and the calls that the supervisor answers."""

from __future__ import annotations

from sandboxrun.records import record

# Stands for the child's pid while compiling; never a real pid (PID_MAX_LIMIT is 4194304) and never another constant.
PID_PLACEHOLDER = 0x7BADC0DE


@record
class Grants:
    """The part of a policy that the filter depends on."""

    unix_sockets: bool = False  # Redis is reached by one
    listen: bool = False
    run: bool = False
    signals: bool = False  # with `run`: Landlock keeps signals within the sandbox (ABI 6)

    @property
    def no_unix_sockets(self) -> bool:
        return not self.unix_sockets


# The calls that the supervisor answers, with their numbers: a notification has only the number.
TRAPPED = {
    "x86_64": {"connect": 42, "bind": 49, "listen": 50, "clone": 56, "chmod": 90, "fchmod": 91, "fchmodat": 268,
               "utimensat": 280, "fchmodat2": 452},
    "aarch64": {"connect": 203, "bind": 200, "listen": 201, "clone": 220, "fchmod": 52, "fchmodat": 53, "utimensat": 88,
                "fchmodat2": 452},
}  # fmt: skip
