"""A network of its own for a command: loopback, a DNS server that remembers what it was asked, TCP listeners.

    python namespace.py REPORT '{"dns": {NAME: [[ADDRESS, …], …]}, "listen": [[ADDRESS, PORT], …]}' COMMAND…

With "low_ports": true in it, COMMAND may listen on ports below 1024.

Runs in new user, mount and network namespaces, so an ordinary user may, and nothing leaves the machine. Each query of a
name takes its next answer; the last one stays. REPORT gets {"asked": [NAME, …], "connections": {"ADDRESS:PORT": COUNT}}.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
SIOCSIFFLAGS, IFF_UP_RUNNING = 0x8914, 0x41
TYPES = {1: socket.AF_INET, 28: socket.AF_INET6}  # A, AAAA

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


def enter() -> None:
    uid, gid = os.geteuid(), os.getegid()
    checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP_RUNNING))


def replace(path: str, text: str, folder: str) -> None:
    own = os.path.join(folder, os.path.basename(path))
    with open(own, "w") as file:
        file.write(text)
    checked(libc.mount(own.encode(), path.encode(), None, MS_BIND, None), f"mount {path}")


def answer(query: bytes, answers: dict[str, list[list[str]]], asked: list[str]) -> bytes:
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    name = ".".join(labels).lower()
    (kind,) = struct.unpack_from(">H", query, at + 1)
    asked.append(name)
    found = answers.get(name, [[]])
    addresses = found[0]
    if kind == 28 and len(found) > 1:  # A is asked first, AAAA with it
        found.pop(0)
    records = b""
    count = 0
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        if TYPES.get(kind) == family:
            data = socket.inet_pton(family, address)
            records += b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 0, len(data)) + data
            count += 1
    header = query[:2] + struct.pack(">HHHHH", 0x8180 if name in answers else 0x8183, 1, count, 0, 0)
    return header + query[12 : at + 5] + records


def serve_dns(server: socket.socket, answers: dict[str, list[list[str]]], asked: list[str]) -> None:
    while True:
        query, peer = server.recvfrom(512)
        server.sendto(answer(query, answers, asked), peer)


def serve_tcp(server: socket.socket, name: str, connections: dict[str, int]) -> None:
    while True:
        peer, _ = server.accept()
        connections[name] += 1
        peer.sendall(b"hello")
        peer.close()


def main() -> int:
    report, spec, command = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
    enter()
    if spec.get("low_ports"):
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w") as file:
            file.write("0")
    asked: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        replace("/etc/resolv.conf", "nameserver 127.0.0.1\noptions attempts:1 timeout:2\n", folder)
        replace("/etc/hosts", "127.0.0.1 localhost\n", folder)
        dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        dns.bind(("127.0.0.1", 53))
        threading.Thread(target=serve_dns, args=(dns, spec.get("dns", {}), asked), daemon=True).start()
        connections = {}
        for address, port in spec.get("listen", ()):
            server = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
            connections[f"{address}:{port}"] = 0
            threading.Thread(target=serve_tcp, args=(server, f"{address}:{port}", connections), daemon=True).start()
        code = subprocess.run(command, check=False).returncode
        with open(report, "w") as file:
            json.dump({"asked": asked, "connections": connections}, file)
    return code


sys.exit(main())
