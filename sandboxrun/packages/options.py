"""What the operator's policy says about packages."""

from __future__ import annotations

from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.fetch.resolve import ImportList

RAISED_BY = "; packages-size in the policy raises it"  # ends what is said of a limit


@record
class Options:
    """Sizes are in bytes, and apply to all packages of a lock together."""

    index: str | None = None  # instead of those of pip's own configuration
    hosts: ImportList | None = None  # of the URLs in a PEP 751 lock; None: every public one
    packed_max: int = 64 << 20
    unpacked_max: int = 512 << 20
    files_max: int = 20_000
    cached_only: bool = False
    degraded: tuple[str, ...] = ()  # as for a run
