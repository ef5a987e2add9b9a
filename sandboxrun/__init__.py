"""sandboxrun: run pinned Python workers that live on Redis, confined by the Linux kernel."""

__version__ = "0.1.0"
