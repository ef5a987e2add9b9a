"""The names of keys in Redis, and the rules for their parts; what a worker finds in its environment about them."""

from __future__ import annotations

from sandboxrun.errors import ConfigError

TYPE_MAX_CHARS = 64
ID_MAX_CHARS = 128
REF_MAX_CHARS = 256
GROUP = "worker"  # the consumer group of the workers that answer a request stream
# Environment of a worker that may call others.
CALL_NONCE = "SANDBOXRUN_CALL_NONCE"  # what the refs of its calls begin with
CALL_URL = "SANDBOXRUN_CALL_URL"  # the login for its calls, if the login of REDIS_URL cannot make them
# Not as patterns: re takes longer to import than most of a start's other modules together.
LOWER, UPPER, DIGITS = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
LETTERS = LOWER + UPPER
_TYPE_CHARS, _ID_CHARS = LOWER + DIGITS + "-_", LETTERS + DIGITS + "-_."
# Every worker may write res:REF and req:REF:h. With such a type, they would be hashes of workers, which grant permissions.
_RESERVED_TYPES = frozenset({"req", "res"})


def check_type(type_: str) -> str:
    """Return `type_` unchanged, or raise ConfigError."""
    if not _reads_as_type(type_):
        raise ConfigError(
            f"worker type {shown(type_)} is not valid: expected a lower-case letter, then up to "
            f"{TYPE_MAX_CHARS - 1} of a-z 0-9 - _, as in demo-worker"
        )
    if type_ in _RESERVED_TYPES:
        raise ConfigError(f"worker type {type_} is not valid: {type_}:… are keys of requests and replies")
    return type_


def is_type(text: str) -> bool:
    """Whether `check_type` accepts it."""
    return _reads_as_type(text) and text not in _RESERVED_TYPES


def _reads_as_type(text: str) -> bool:
    return len(text) <= TYPE_MAX_CHARS and text[:1] in LOWER and consists_of(_TYPE_CHARS, text)


def check_id(id_: str) -> str:
    """Return `id_` unchanged, or raise ConfigError."""
    if len(id_) > ID_MAX_CHARS or id_[:1] in ("-", "_", ".") or not consists_of(_ID_CHARS, id_):
        raise ConfigError(
            f"worker id {shown(id_)} is not valid: expected a letter or digit, then up to "
            f"{ID_MAX_CHARS - 1} of A-Z a-z 0-9 - _ ., as in 1"
        )
    return id_


def is_of_ids(char: str) -> bool:
    """Whether ids may have this character."""
    return char in _ID_CHARS


def consists_of(chars: str, text: str) -> bool:
    """Whether `text` has characters, and all of them are among `chars`."""
    return text != "" and not text.strip(chars)


def split_worker_key(key: str) -> tuple[str, str]:
    """`TYPE:ID:h` to (type, id)."""
    parts = key.split(":")
    if len(parts) != 3 or parts[2] != "h":
        raise ConfigError(f"worker key {shown(key)} is not valid: expected TYPE:ID:h, as in demo-worker:1:h")
    return check_type(parts[0]), check_id(parts[1])


def type_key(type_: str) -> str:
    return f"{type_}:h"


def worker_key(type_: str, id_: str) -> str:
    return f"{type_}:{id_}:h"


def in_words(key: str) -> str:
    """The hash `TYPE:ID:h` or `TYPE:h` as commands take it: `TYPE ID` or `TYPE`."""
    return key.removesuffix(":h").replace(":", " ")


def set_hint(key: str, *words: str) -> str:
    """The command that changes this hash; `words` are FIELD=VALUE and options. An empty value is the default."""
    import shlex

    return f"sandboxrun set {in_words(key)} {' '.join(map(shlex.quote, words))}"


def request_stream(type_: str) -> str:
    return f"{type_}:req:x"


def response_stream(type_: str) -> str:
    return f"{type_}:res:x"


def dead_stream(type_: str) -> str:
    """The stream of requests that were given up."""
    return f"{type_}:dead:x"


def start_queue(type_: str) -> str:
    """The list of ids that wait to be started. New ones come in at the left, and the next one is taken from the right."""
    return f"{type_}:start:q"


def started_queue(type_: str) -> str:
    """The list of ids that somebody has taken from `start_queue`."""
    return f"{type_}:started:q"


def stopped_queue(type_: str) -> str:
    """The list of ids that were stopped, and are started by order only."""
    return f"{type_}:stopped:q"


def fence_key(stream: str, consumer: str) -> str:
    """The hash that guards a consumer's replies (worker/claims.py). Whoever may use the stream may write it: fence_pattern.

    It never ends in `:h`, whatever the names of stream and consumer, because such a key would be the hash of a worker.
    """
    return f"{stream}:fence:{consumer}:f"


def fence_pattern(stream: str) -> str:
    """The fences of a stream, for ACL rules. `stream`: escaped."""
    return f"{stream}:fence:*:f"


def old_fence_key(stream: str, consumer: str) -> str:
    """The fence of workers of 0.1, which every worker could write. To be removed with 0.3."""
    return f"req:{stream} {consumer}:h"


def reply_key(ref: str) -> str:
    return f"res:{ref}"


def trace_key(ref: str) -> str:
    return f"req:{ref}:h"


def trace_field(type_: str) -> str:
    """The field of `trace_key` that a worker of this type writes: `demo-worker` to `demoWorkerTrace`."""
    first, *rest = type_.replace("_", "-").split("-")
    return first + "".join(part.capitalize() for part in rest) + "Trace"


def is_ref(ref: str) -> bool:
    """Whether a request can be answered under this ref: text without control characters, of at most REF_MAX_CHARS."""
    if not 0 < len(ref) <= REF_MAX_CHARS:
        return False
    # Unicode's category Cc: C0, DEL and C1.
    return ref.isprintable() or not any(c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in ref)


def shown(text: str) -> str:
    """At most 80 characters of untrusted text, quoted, control characters escaped."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")
