"""Source that makes a thousand times as much code: the supervisor takes and keeps a bounded part of it, and nothing fails."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxrun.config.script import Block
from sandboxrun.errors import FetchError
from sandboxrun.fetch import Artifact, Obtained, _code, compile_tree, integrity
from sandboxrun.fetch.bounded import output_of
from sandboxrun.fetch.bundle import bundled, make_tree
from sandboxrun.fetch.cache import Cache
from sandboxrun.fetch.compiled import CODE_MAX_BYTES
from sandboxrun.fetch.resolve import ImportList, Source, resolve

MIB = 1 << 20
URL = "https://example.com/v1/w.py"
COMPILE_PRINT_PEAK = """\
import sys
sys.path[:0] = sys.argv[1:]
from sandboxrun.fetch.compile_tree import compile_all
from test_compiling_bounds import folding
compile_all({f"f{number}.py": folding(12, number) for number in range(10)})
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


def folding(mib: int, number: int = 0) -> bytes:
    """Source whose constants have about `mib` MiB, after the compiler has folded them."""
    return "".join(f'x="{number:02}{line:06}"*512\n' for line in range(256 * mib)).encode()


def size(codes: dict[str, bytes]) -> int:
    return sum(map(len, codes.values()))


def test_the_code_of_all_files_is_bounded_and_the_first_files_have_theirs() -> None:
    sources = {"small.py": b"x = 1\n"} | {f"f{number}.py": folding(12, number) for number in range(4)}
    codes = compile_tree.compile_all(sources | {"last.py": b"y = 2\n"})
    assert list(codes) == ["small.py", "f0.py", "f1.py", "last.py"]
    assert size(codes) <= compile_tree.CODES_MAX_BYTES + 16 * len(codes)


def test_the_supervisor_takes_bounded_memory_to_compile_files() -> None:
    root = Path(compile_tree.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE_PRINT_PEAK, str(root), str(Path(__file__).parent)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) << 10 < 200 * MIB  # 120 MiB of code would be there three times


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(str(tmp_path / "cache"), str(tmp_path / "state"))


def lay_out(cache: Cache, sources: dict[str, bytes]) -> Path:
    """The tree of a script with these files, which come from the cache."""
    digests = {path: hashlib.sha256(source).hexdigest() for path, source in sources.items()}
    for path, digest in digests.items():
        cache.keep(sources[path], digest)
    script = b"print(1)\n"
    origin = resolve(URL, "v1", key="t:1:h")
    assert isinstance(origin, Source)
    bundle = bundled(origin, script, hashlib.sha256(script).hexdigest(), Block(1, 2, files=tuple(digests.items())))
    allowed = ImportList((("example.com", 443),), loopback=False)
    return Path(make_tree(bundle, cache, allowed=allowed, cached_only=True, progress=print))


def test_a_tree_keeps_bounded_code_on_disk(cache: Cache) -> None:
    folder = lay_out(cache, {f"f{number}.py": folding(12, number) for number in range(4)})
    kept = {path.name: path.stat().st_size for path in folder.rglob("*.pyc")}
    assert len(kept) == 2
    assert sum(kept.values()) <= compile_tree.CODES_MAX_BYTES + MIB


def test_processes_killed_while_they_lay_out_a_tree_leave_one_copy(cache: Cache) -> None:
    for _ in range(3):
        process = multiprocessing.get_context("fork").Process(target=die_in_the_middle, args=(cache,))
        process.start()
        process.join()
        assert process.exitcode == 9
    [left] = Path(cache.trees).glob(".staging-*")
    assert (left / "helpers.py").exists()
    folder = lay_out(cache, {"helpers.py": b"x = 1\n"})
    assert [path for path in Path(cache.trees).iterdir() if path.is_dir()] == [folder]


def die_in_the_middle(cache: Cache) -> None:
    os.rename = lambda *_: os._exit(9)  # type: ignore[assignment]
    lay_out(cache, {"helpers.py": b"x = 1\n"})


def test_code_of_a_script_beyond_the_bound_is_left_to_the_child() -> None:
    assert integrity.compile_python(b"print(1)\n" + folding(CODE_MAX_BYTES // MIB + 4), URL) == b""
    assert len(integrity.compile_python(b"print(1)\n" + folding(4), URL)) > 4 * MIB


def test_a_script_without_code_is_compiled_by_the_supervisor_once(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folding(CODE_MAX_BYTES // MIB + 4)
    artifact = Artifact(source, hashlib.sha256(source).hexdigest(), URL, Obtained.CACHED)
    assert _code(artifact, URL, cache) == b""
    monkeypatch.setattr(integrity, "compile_python", lambda *_: pytest.fail("compiled again"))
    assert _code(artifact, URL, cache) == b""


def test_a_complaint_does_not_repeat_a_megabyte_of_the_text() -> None:
    name = b"a" * 500_000
    with pytest.raises(FetchError, match="is not valid Python: line 3") as error:
        integrity.compile_python(b"def f():\n " + name + b" = 1\n global " + name + b"\n", URL)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("program", "data", "expected"),
    [
        ("import sys; sys.stdout.write('a' * 5); sys.exit(3)", b"", (b"aaaaa", 3)),
        ("import sys; sys.stdout.write(sys.stdin.read()[-5:])", b"a" * 3_000_000 + b"bcdef", (b"bcdef", 0)),
        ("print('a' * 3_000_000)", b"a" * 3_000_000, (b"a" * 10_000, -9)),
        ("while True: print('a' * 9)", b"", (b"aaaaaaaaa\n" * 1000, -9)),
        ("import sys; sys.stderr.write('a' * 3_000_000)", b"", (b"", 0)),
    ],
)
def test_output_is_bounded_whatever_the_input(program: str, data: bytes, expected: tuple[bytes, int]) -> None:
    assert output_of([sys.executable, "-c", program], data, max_bytes=10_000, seconds=60) == expected


@pytest.mark.parametrize(
    "program", ["import time; time.sleep(600)", "import os, time; os.write(1, b'a'); os.close(1); time.sleep(600)"]
)
@pytest.mark.timeout(60)
def test_a_program_that_waits_for_ever_is_killed(program: str) -> None:
    descriptors = os.listdir("/proc/self/fd")
    output, status = output_of([sys.executable, "-c", program], b"", max_bytes=10, seconds=1)
    assert output in (b"", b"a")
    assert status == -9
    assert os.listdir("/proc/self/fd") == descriptors
