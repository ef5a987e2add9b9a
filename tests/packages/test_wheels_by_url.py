"""The second form of a lock: wheels by their URLs, from the hosts that may be asked, by https alone."""

from __future__ import annotations

import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from index import Index, serving
from installer import Machine
from packaging.tags import sys_tags
from wheels import Wheel, pylock_text, wheel

from sandboxrun.errors import FetchError, IntegrityError, ScriptError
from sandboxrun.fetch.download import Unreachable
from sandboxrun.fetch.resolve import ImportList
from sandboxrun.packages import verify
from sandboxrun.packages.lock import Lock, read_lock
from sandboxrun.packages.options import Options
from sandboxrun.packages.urls import PublicHosts, fetch_wheel
from sandboxrun.packages.wheels import choose
from tests.support import certificates

ADDRESS = "127.0.0.2"  # which is no loopback that the project treats as one
URL = "https://files.example/a/"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A host of wheels with a certificate that the operator's environment trusts."""
    made = certificates.make(tmp_path, f"IP:{ADDRESS}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
    with serving(address=ADDRESS, tls=context) as found:
        yield found


def listed(host: Index) -> ImportList:
    return ImportList([(ADDRESS, host.port)])


def locked(host: Index, *wheels: Wheel) -> Lock:
    host.publish(*wheels)
    return read_lock(pylock_text(*((each, host.url_of(each)) for each in wheels)), "pylock.toml")


def test_wheels_are_fetched_from_their_urls_alone(machine: Machine, host: Index) -> None:
    one, other = wheel("first"), wheel("second", "1.0+local")
    lock = locked(host, one, other)
    path = machine.install(lock, hosts=listed(host))
    assert sorted(file.name for file in path.glob("*.py")) == ["first.py", "second.py"]
    assert sorted(host.requests) == [f"/files/{one.filename}", f"/files/{other.filename}"]
    host.close()
    again = Lock("pylock.toml", "0" * 64, lock.packages)
    assert machine.content(machine.install(again, cached_only=True)) == machine.content(path)


def test_other_bytes_are_refused_and_not_kept(machine: Machine, host: Index) -> None:
    good, other = wheel("evil"), wheel("evil", files={"evil.py": "planted"})
    lock = locked(host, good)
    host.serve_instead(good, other.data)
    text = machine.refused(lock, IntegrityError, hosts=listed(host))
    assert text == f"{good.filename} has sha256 {other.sha256}, but the lock pins {good.sha256}"
    assert list((machine.cache / "wheels").iterdir()) == []


def test_an_endless_wheel_is_cut_off(machine: Machine, host: Index) -> None:
    good = wheel("evil")
    lock = locked(host, good)
    host.serve_instead(good, b"x" * (1 << 16), endless=True)
    start = time.monotonic()
    text = machine.refused(lock, FetchError, hosts=listed(host), packed_max=1 << 20)
    assert text == f"{host.url_of(good)} has more than 1 MiB: the file may not have more"
    assert time.monotonic() - start < 20


def test_a_wheel_has_the_time_that_is_left(host: Index, tmp_path: Path) -> None:
    good = wheel("evil")
    host.publish(good)
    host.serve_instead(good, b"x", endless=True)
    with pytest.raises(FetchError, match=r"did not arrive within 0\.3 s"):
        fetch_wheel(
            host.url_of(good),
            str(tmp_path / "wheel"),
            max_bytes=1 << 40,
            seconds=0.3,
            options=Options(hosts=listed(host)),
            say=lambda text: None,
        )


def test_a_wheel_that_says_that_it_is_too_long_is_not_fetched(machine: Machine, host: Index) -> None:
    lock = locked(host, wheel("evil", files={"data": b"x" * 5000}, compressed=False))
    assert "the file may have 4096 bytes" in machine.refused(lock, FetchError, hosts=listed(host), packed_max=4096)


def test_a_wheel_that_is_gone_says_so(machine: Machine, host: Index) -> None:
    lock = read_lock(pylock_text((wheel("evil"), host.url_of(wheel("evil")))), "pylock.toml")
    assert machine.refused(lock, FetchError, hosts=listed(host)).endswith("-any.whl answers 404 Not Found")


def test_a_redirect_to_a_host_that_may_not_be_asked_is_not_followed(
    machine: Machine, host: Index, index: Index
) -> None:
    good = wheel("evil")
    lock = locked(host, good)
    index.publish(good)
    for target in (f"{index.origin}/files/{good.filename}", f"http://{ADDRESS}:{host.port}/x", "https://h.example/x"):
        host.redirect(f"/files/{good.filename}", target)
        text = machine.refused(lock, FetchError, hosts=listed(host))
        assert "redirected from" in text
    assert index.requests == []


def test_a_redirect_to_a_listed_host_is_followed(machine: Machine, host: Index) -> None:
    good = wheel("evil")
    host.publish(good)
    lock = read_lock(pylock_text((good, f"{host.origin}/moved/{good.filename}")), "pylock.toml")
    host.redirect(f"/moved/{good.filename}", host.url_of(good))
    assert machine.install(lock, hosts=listed(host)).is_dir()


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        (f"https://{ADDRESS}/x/", "127.0.0.2 is not a public host"),
        ("https://localhost/x/", "localhost is not a public host"),
        ("https://a.localhost/x/", "a.localhost is not a public host"),
        ("https://intranet/x/", "intranet is not a public host"),
        ("https://files.internal./x/", "files.internal is not a public host"),
        ("https://10.0.0.1/x/", "10.0.0.1 is not a public host"),
        ("https://169.254.169.254/x/", "169.254.169.254 is not a public host"),
        ("https://[::1]/x/", "::1 is not a public host"),
        ("https://[::ffff:10.0.0.1]/x/", "::ffff:10.0.0.1 is not a public host"),
        ("https://[fd00::1]/x/", "fd00::1 is not a public host"),
        ("https://h.example:99999/x/", "is not a URL"),
        ("https://127.1/x/", "127.1 is not a public host"),
        ("https://0x7f.1/x/", "0x7f.1 is not a public host"),
        ("https://0177.0.0.1./x/", "0177.0.0.1 is not a public host"),
    ],
)
def test_a_lock_cannot_make_this_machine_ask_its_own_network(machine: Machine, url: str, cause: str) -> None:
    good = wheel("evil")
    lock = read_lock(pylock_text((good, url + good.filename)), "pylock.toml")
    assert cause in machine.refused(lock, FetchError)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1%eth0", "100.64.0.1"])
def test_a_public_name_with_an_address_inside_is_refused(address: str) -> None:
    with pytest.raises(FetchError, match="which is not public"):
        PublicHosts().check_peer(address)
    PublicHosts().check_peer("9.9.9.9")


class Inside(ImportList):
    """Hosts that are listed, whose addresses must be public nonetheless."""

    def check_peer(self, address: str) -> None:
        PublicHosts().check_peer(address)


@pytest.mark.parametrize(
    "proxies",
    [
        {},
        {"no_proxy": "localhost"},
        {"http_proxy": "http://127.0.0.1:1"},
        {"ftp_proxy": "http://127.0.0.1:1"},
        {"https_proxy": "http://127.0.0.1:1", "no_proxy": f"x.example,{ADDRESS}"},
        {"all_proxy": "http://127.0.0.1:1", "no_proxy": "x.example,*"},
    ],
)
def test_a_peer_is_checked_before_anything_is_asked(
    machine: Machine, host: Index, proxies: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    lock = locked(host, wheel("evil"))
    text = machine.refused(lock, FetchError, hosts=Inside([(ADDRESS, host.port)]))
    assert text == f"the host has the address {ADDRESS}, which is not public"
    assert host.requests == []


@pytest.mark.parametrize("variable", ["https_proxy", "all_proxy"])
def test_a_proxy_may_have_an_address_inside(
    machine: Machine, index: Index, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, index.origin)  # which answers CONNECT with 501
    lock = read_lock(pylock_text((wheel("evil"), URL + wheel("evil").filename)), "pylock.toml")
    text = machine.refused(lock, Unreachable)
    assert "501" in text and "not public" not in text


def names(*filenames: str, version: str = "1.0") -> Lock:
    wheels = "".join(
        f'{{ url = "{URL}{name}", hashes = {{ sha256 = "{number:064x}" }} }},\n'
        for number, name in enumerate(filenames)
    )
    text = f'lock-version = "1.0"\n[[packages]]\nname = "a"\nversion = "{version}"\nwheels = [\n{wheels}]\n'
    return read_lock(text.encode(), "pylock.toml")


def test_the_wheel_that_fits_best_is_chosen_whatever_its_place() -> None:
    best, worst = next(iter(sys_tags())), "py3-none-any"
    filenames = (f"a-1.0-{worst}.whl", f"a-1.0-{best}.whl", "a-1.0-cp311-cp311-win_amd64.whl", f"a-1.0-1-{worst}.whl")
    for order in (filenames, filenames[::-1]):
        lock = names(*order)
        assert choose(lock.packages[0], lock)[0] == f"{URL}a-1.0-{best}.whl"
    lock = names(f"a-1.0-{worst}.whl", f"a-1.0-1-{worst}.whl", f"a-1.0-12-{worst}.whl", f"a-1.0-2-{worst}.whl")
    assert choose(lock.packages[0], lock)[0] == f"{URL}a-1.0-12-{worst}.whl"


def test_all_wheels_of_a_lock_have_one_deadline(machine: Machine, host: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = locked(host, wheel("first"), wheel("second"), wheel("third"))
    clock = Clock()
    monkeypatch.setattr("sandboxrun.packages.wheels.time", clock)

    def delayed(url: str, path: str, *, seconds: float, **options: Any) -> None:
        assert seconds == 600 - clock.now
        fetch_wheel(url, path, seconds=seconds, **options)
        clock.now += 300

    monkeypatch.setattr("sandboxrun.packages.urls.fetch_wheel", delayed)
    text = machine.refused(lock, FetchError, hosts=listed(host))
    assert text == "the wheels of pylock.toml did not arrive within 600 s"
    assert len(host.requests) == 2


class Clock:
    """Stands in for the module time."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("entry", "is_listed", "login"),
    [
        (f"machine {ADDRESS}", True, "Basic bWU6c2VjcmV0"),
        (f"machine {ADDRESS}", False, None),
        ("default", True, None),
        ("default", False, None),
    ],
)
def test_a_login_is_for_a_listed_host_alone(
    machine: Machine,
    host: Index,
    entry: str,
    is_listed: bool,
    login: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / ".netrc").write_text(f"{entry} login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    if not is_listed:  # the host counts as public
        monkeypatch.setattr(PublicHosts, "check", lambda self, url, came_from=None: None)
        monkeypatch.setattr(PublicHosts, "check_peer", lambda self, address: None)
    machine.install(locked(host, wheel("first")), hosts=listed(host) if is_listed else None)
    assert host.logins == [login]


COMPRESSED = "py3.none.any.py2.py4.py5.py6.py7.py8"  # nine parts, and 729 combinations of three


@pytest.mark.parametrize(
    ("filename", "cause"),
    [
        ("a-1.0-cp311-cp311-win_amd64.whl", f"has no wheel of a 1.0 that fits Python 3.{sys.version_info.minor} on "),
        ("b-1.0-py3-none-any.whl", "the name of another one's wheel"),
        ("a-1.1-py3-none-any.whl", "the name of another one's wheel"),
        ("a.whl", "no wheel's name"),
        ("a-x-py3-none-any.whl", "no wheel's name"),
        (f"a-1.0-py3-none-any{'.any' * 60}.whl", "a name of more than 255 bytes or 512 tags"),
        (f"a-1.0-{COMPRESSED}-{COMPRESSED}-{COMPRESSED}.whl", "a name of more than 255 bytes or 512 tags"),
    ],
)
def test_a_lock_without_a_wheel_for_this_machine_names_the_package(machine: Machine, filename: str, cause: str) -> None:
    text = machine.refused(names(filename), ScriptError)
    assert text.startswith("pylock.toml has ")
    assert cause in text


def test_verification_knows_environments_of_both_forms(machine: Machine, host: Index) -> None:
    machine.install(locked(host, wheel("first")), hosts=listed(host))
    (found,) = verify.environments(str(machine.cache), machine.key)
    assert found.seal is not None
    assert (found.seal.lock, found.seal.packages) == ("pylock.toml", (("first", "1.0"),))
