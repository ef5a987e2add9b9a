"""sandboxrun: run pinned Python workers that live on Redis, confined by the Linux kernel."""

__version__ = "0.1.0"

__all__ = ["__version__", "aconnect", "connect"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.client.services import aconnect, connect


def __getattr__(name: str) -> object:
    """`connect` and `aconnect` of the client, imported at first use, because every part of sandboxrun imports this file."""
    if name not in ("aconnect", "connect"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sandboxrun.client import services

    return getattr(services, name)
