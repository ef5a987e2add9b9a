"""The child: wait for the plan, give up every right that is not in it, run the script. Never executes again.

Run as `python -I -S bootstrap.py KEY SUPERVISOR_PID QUESTIONS ANSWERS PLAN [PACKAGE SITE…]`; QUESTIONS to PLAN are
descriptors. Needs nothing of ours and only what is light of the standard library: `socket`, `signal`, `threading` and all
that goes with them take longer than Python's own start, so they are prepared before the script imports them, or does not.
With PACKAGE (ours, or empty) and SITE folders it imports sandboxrun.worker while it would only wait for its plan. Nothing
untrusted is in this process until `_load`.

QUESTIONS is a pipe of packets (pipe(2), O_DIRECT), ANSWERS a stream, PLAN a memfd. Supervisor "plan"
once that is filled; child "ready FD NS NS NS" with the seccomp listener, which the supervisor takes, or "fail TEXT";
supervisor "go"; from then on only names are asked: child "name NUMBER HOST", supervisor "NUMBER\nok\nADDRESS…",
"NUMBER\ndenied\nMESSAGE" or "NUMBER\nEAI_CODE\nMESSAGE", and a NUL. A packet and an answer have at most PIPE_BUF bytes.
"""

import _ctypes
import _socket
import _thread
import gc
import marshal
import os
import resource
import stat
import sys
import time

_SIGKILL = 9
_EINTR, _EBADF, _ENOMEM, _EACCES, _EINVAL, _EMFILE, _EFBIG, _EPIPE, _EISCONN = 4, 9, 12, 13, 22, 24, 27, 32, 106
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_NR_PRCTL, _NR_CAPSET, _NR_SECCOMP = {"x86_64": (157, 126, 317), "aarch64": (167, 91, 277)}[os.uname().machine]
_NR_OPENAT2, _NR_LANDLOCK_CREATE_RULESET, _NR_LANDLOCK_ADD_RULE, _NR_LANDLOCK_RESTRICT_SELF = 437, 444, 445, 446
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 1 << 3
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_AT_FDCWD, _RESOLVE_NO_SYMLINKS, _RULE_PATH_BENEATH = -100, 0x04, 1


class _Long(_ctypes._SimpleCData):  # as syscalls.py has it, and why
    _type_ = "l"


class _Text(_ctypes._SimpleCData):
    _type_ = "z"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


_function = _Function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "syscall"))


def _syscall(name, number, *args):
    """Ints, and bytes of which the address is passed."""
    result = _function(_Long(number), *(_Long(arg) if isinstance(arg, int) else arg for arg in args))
    if result < 0:
        errno = _ctypes.get_errno()
        raise OSError(errno, f"{name}: {os.strerror(errno)}")
    return result


def _words(*values, bytes=8):
    return b"".join(value.to_bytes(bytes, sys.byteorder) for value in values)


def _prctl(name, option, *args):
    return _syscall(f"prctl {name}", _NR_PRCTL, option, *(*args, 0, 0, 0, 0)[:4])


def _drop_capabilities():
    """All of them, and what could bring one back (capabilities(7)); matters only where we are root."""
    if os.geteuid() == 0:
        for capability in range(64):
            try:
                _prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, capability)
            except OSError:
                break  # EINVAL past the last one, or EPERM without CAP_SETPCAP: then execve cannot be reached anyway
    _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _syscall("capset", _NR_CAPSET, _words(_LINUX_CAPABILITY_VERSION_3, 0, bytes=4), _words(0, 0, 0))


def _ruleset(rights, rules):
    """A Landlock ruleset that denies all `rights` but those of the `rules`, which are (real path, access)."""
    attr = _words(rights["fs"], rights["net"], rights["scoped"])
    # An older kernel refuses a longer structure, even where the rest of it is zero.
    size = 24 if rights["scoped"] else 16 if rights["net"] else 8
    ruleset = _syscall("landlock_create_ruleset", _NR_LANDLOCK_CREATE_RULESET, attr, size, 0)
    how = _words(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)  # struct open_how
    for path, access in rules:
        shown = os.fsdecode(path)
        try:
            # What is no real path any more is not followed: somebody has put a symlink there meanwhile.
            fd = _syscall("openat2", _NR_OPENAT2, _AT_FDCWD, path + b"\0", how, len(how))
        except FileNotFoundError:
            continue  # of a folder that is granted entry by entry, one is gone: a temporary file of somebody's
        except OSError as error:
            raise OSError(error.errno, f"cannot open {shown} to grant it: {os.strerror(error.errno)}") from error
        allowed = access & rights["fs"]
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            allowed &= rights["on_files"]
        beneath = _words(allowed) + _words(fd, bytes=4)  # struct landlock_path_beneath_attr, packed
        _syscall(f"landlock_add_rule {shown}", _NR_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, beneath, 0)
        os.close(fd)
    return ruleset


def _confine(plan):
    """In the order of seccomp(2) and landlock(7): limits, capabilities, no_new_privs, Landlock, seccomp."""
    os.umask(0o077)
    os.chdir(plan["scratch"])
    ruleset = _ruleset(plan["landlock"], plan["rules"])
    for limit, *values in plan["rlimits"]:
        most = resource.getrlimit(limit)[1]
        if most != resource.RLIM_INFINITY:
            values = [most if value == resource.RLIM_INFINITY else min(value, most) for value in values]
        resource.setrlimit(limit, tuple(values))
    _drop_capabilities()
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
    _syscall("landlock_restrict_self", _NR_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    program = _words(len(plan["bpf"]) // 8) + bytes(_Text(plan["bpf"]))  # struct sock_fprog: a length and a pointer
    flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER
    return _syscall("seccomp", _NR_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, program)


class _Names:
    """Asks the supervisor for addresses: no DNS leaves the sandbox. One question at a time."""

    def __init__(self, questions, answers):
        self._pipes = [(fd, self._identity(fd)) for fd in (questions, answers)]
        self._lock, self._number = _thread.allocate_lock(), 0

    @staticmethod
    def _identity(fd):
        found = os.fstat(fd)
        return found.st_dev, found.st_ino

    def ask(self, host):
        """Addresses as text. Raises PermissionError, or gaierror as getaddrinfo(3) would."""
        if isinstance(host, bytes):
            host = host.decode("ascii")
        with self._lock:
            self._number += 1
            # Where processes may be made, they share the pipes.
            number = b"%d%010d" % (os.getpid(), self._number)
            verdict, *rest = self._answer(number, host.encode("utf-8", "surrogatepass")[:1024])
        if verdict == "denied":
            raise PermissionError(_EACCES, rest[0])
        if verdict != "ok":
            raise _socket.gaierror(int(verdict), rest[0])
        return rest

    def _answer(self, number, host):
        (questions, _), (answers, _) = self._pipes
        try:
            # A script may have closed them, as daemons close what they do not know, and other files have the numbers now.
            if all(self._identity(fd) == identity for fd, identity in self._pipes):
                os.lockf(questions, os.F_LOCK, 0)  # of processes: each would read the other's answers
                try:
                    os.write(questions, b"name %b %b" % (number, host))
                    while data := os.read(answers, 65536):
                        for answer in data.split(b"\0"):
                            got, _, answer = answer.partition(b"\n")
                            if got == number:  # not the late answer to a question whose asker was interrupted
                                return answer.decode("utf-8").split("\n")
                finally:
                    os.lockf(questions, os.F_ULOCK, 0)
        except OSError as error:
            if error.errno not in (_EBADF, _EPIPE):  # a signal handler's own, TimeoutError for instance
                raise
        raise _socket.gaierror(_socket.EAI_SYSTEM, "the way to the supervisor is closed")


def _patch_names(ask):
    """Make look-ups ask the supervisor, below the socket module. A convenience: the boundary decides by address."""
    system, socket_class = _socket.getaddrinfo, _socket.socket
    inet = (_socket.AF_INET, _socket.AF_INET6)

    def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
        try:
            # Of text, even of an address, the codec for international names would be imported.
            literal = host.encode() if isinstance(host, str) and host.isascii() else host
            return system(literal, port, family, type, proto, flags | _socket.AI_NUMERICHOST)
        except _socket.gaierror as error:
            if error.errno != _socket.EAI_NONAME or flags & _socket.AI_NUMERICHOST:
                raise
        found = []
        for address in ask(host):
            if family in (0, _socket.AF_INET6 if ":" in address else _socket.AF_INET):
                found += system(address, port, family, type, proto, flags | _socket.AI_NUMERICHOST)
        if not found:
            raise _socket.gaierror(_socket.EAI_NONAME, "Name or service not known")
        return found

    def gethostbyname_ex(host):
        return host, [], [entry[4][0] for entry in getaddrinfo(host, None, _socket.AF_INET, _socket.SOCK_STREAM)]

    def gethostbyname(host):
        return gethostbyname_ex(host)[2][0]

    def numeric(sock, address):
        """An (host, port) address with a name looked up here, since libc's own look-up cannot leave the sandbox."""
        if sock.family in inet and isinstance(address, tuple) and len(address) >= 2:
            host = address[0]
            if isinstance(host, (str, bytes)) and host not in ("", b""):
                found = getaddrinfo(host, None, sock.family, _socket.SOCK_STREAM)
                return (found[0][4][0], *address[1:])
        return address

    class NamedSocket(socket_class):
        __slots__ = ()

        def bind(self, address):
            if self.family in inet and isinstance(address, tuple) and address[:1] in (("localhost",), (b"localhost",)):
                address = ("::1" if self.family == _socket.AF_INET6 else "127.0.0.1", *address[1:])
            again = False
            while True:
                try:
                    return super().bind(address)
                except InterruptedError:
                    again = True
                except OSError as error:
                    if again and error.errno == _EINVAL and not self._never_began():
                        return None  # the call that a signal cut off was carried out after all
                    raise

        def listen(self, *backlog):
            while True:
                try:
                    return super().listen(*backlog)
                except InterruptedError:
                    pass

        def connect(self, address):
            address, again = numeric(self, address), False
            while True:
                try:
                    super().connect(address)
                except InterruptedError:
                    if not self._never_began():
                        raise
                except OSError as error:
                    if not (again and error.errno == _EISCONN):
                        raise
                if not self._never_began():
                    self._wait_until_blocking()
                    return
                again = True

        def connect_ex(self, address):
            address, again = numeric(self, address), False
            while True:
                result = super().connect_ex(address)
                if again and result == _EISCONN:  # the call that a signal cut off was carried out after all
                    result = 0
                if result not in (0, _EINTR) or not self._never_began():
                    self._wait_until_blocking()
                    return result
                again = True

        def _never_began(self):
            """A signal before the supervisor took the call ends it with EINTR. Python takes that for a connect under way,
            waits, and finds no error on a socket that was never connected; one that was has a port."""
            return self.family in inet and self.getsockname()[1] == 0

        def _wait_until_blocking(self):
            """The supervisor makes the socket non-blocking while it connects it. A signal that ends the call before it is
            done would let the script see that: its next recv(2) would fail with EAGAIN."""
            tries = 100 if self.gettimeout() is None else 0
            while tries and self.fileno() >= 0 and not os.get_blocking(self.fileno()):
                tries -= 1
                time.sleep(0.001)

    NamedSocket.__name__ = NamedSocket.__qualname__ = "socket"
    NamedSocket.__module__ = "_socket"
    _socket.socket = _socket.SocketType = NamedSocket
    _socket.getaddrinfo, _socket.gethostbyname, _socket.gethostbyname_ex = getaddrinfo, gethostbyname, gethostbyname_ex


def _patch_metadata():
    """What the supervisor does for the worker (metadata.py) fails with EINTR if a signal arrives before it has begun, as it
    never does without a supervisor; so Python does not try again by itself."""

    def retried(call):
        def again(*args, **options):
            while True:
                try:
                    return call(*args, **options)
                except InterruptedError:
                    pass

        again.__name__ = again.__qualname__ = call.__name__
        again.__module__, again.__doc__, again.__wrapped__ = call.__module__, call.__doc__, call
        return again

    for name in ("chmod", "fchmod", "utime"):
        call = getattr(os, name)
        changed = retried(call)
        setattr(os, name, changed)
        for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if call in able:
                able.add(changed)


def _part(name):
    """A module of ours that few scripts need, from the package that the worker has anyway: imported when one does."""
    return __import__(f"sandboxrun.sandbox.child.{name}", fromlist=["*"])


class _OwnPid:
    """Wraps redis-py's commands when it is imported, as an entry of sys.meta_path; see own_pid.py."""

    _MODULE = "redis.commands.core"

    def __init__(self, key, pid):
        self._key, self._pid = key, pid

    def find_spec(self, name, path, target=None):
        if name != self._MODULE:
            return None
        import _frozen_importlib_external as external

        sys.meta_path.remove(self)
        spec = external.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _part("own_pid").wrap(module.HashCommands, self._key, self._pid)

            spec.loader.exec_module = exec_module
        return spec


def _explanation(error, key, hints):
    """A line for the operator that names the grant or the limit that was reached, or None."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == _ENOMEM):
        return hints["memory"]
    if isinstance(error, OSError) and error.errno in (_EMFILE, _EFBIG):
        return hints["files" if error.errno == _EMFILE else "scratch"]
    if not isinstance(error, PermissionError):
        return None
    try:
        return _part("tracebacks").missing_grant(error, key)
    except Exception:
        return None  # it may have put anything in the place of a module; the traceback is shown already


def _install_hooks(plan):
    """Tracebacks that begin in the script and show its source, followed by the grant that was missing."""

    def show(kind, error, traceback):
        try:
            shown = _part("tracebacks").shown(error, traceback, plan["name"])
        except Exception:  # no descriptor or memory is left to import with
            sys.__excepthook__(kind, error, traceback)
        else:
            print(shown, end="", file=sys.stderr, flush=True)
        seen = set()
        while error is not None and id(error) not in seen:  # the cause is as good as the error itself
            seen.add(id(error))
            line = _explanation(error, plan["key"], plan["hints"])
            if line is not None:
                print(line, file=sys.stderr, flush=True)
                break
            error = error.__cause__ or error.__context__

    def show_thread(args):
        if args.exc_type is not SystemExit:
            name = args.thread.name if args.thread is not None else _thread.get_ident()
            print(f"Exception in thread {name}:", file=sys.stderr, flush=True)
            show(args.exc_type, args.exc_value, args.exc_traceback)

    show_thread.__module__ = "_thread"
    sys.excepthook = show
    _thread._excepthook = show_thread  # which the threading module takes for its own when it is imported


def _prepare_imports(plan):
    sys.stdout.reconfigure(line_buffering=True)  # it is a pipe, and somebody may read along
    sys.prefix = sys.exec_prefix = plan["prefix"]
    sys.path[:0] = plan["script_path"]
    import _sitebuiltins
    import builtins

    builtins.exit, builtins.quit = _sitebuiltins.Quitter("exit", "Ctrl-D"), _sitebuiltins.Quitter("quit", "Ctrl-D")


def _add_packages(folder, *site):
    sys.path += site
    if folder:
        # sandboxrun itself, where it is not among the site packages (an editable installation): the package alone,
        # not the folder around it, so that nothing beside it can be imported.
        import _frozen_importlib as importlib
        import _frozen_importlib_external as external

        spec = external.spec_from_file_location(
            "sandboxrun", folder + "/__init__.py", submodule_search_locations=[folder]
        )
        sys.modules["sandboxrun"] = importlib._load(spec)


def _warm_up(packages):
    """What nearly every script imports, and that imports later; one that does not is no slower for it, since this waits for
    the supervisor."""
    _add_packages(*packages)
    try:
        for name in ("sandboxrun.worker", "sandboxrun.worker.serial", "urllib.parse"):
            __import__(name)  # nothing here depends on it
    except Exception:
        return  # the script that needs it will say so


class _Loader:
    """Where tracebacks find the source of a script that is no file (linecache)."""

    def __init__(self, source):
        self._source = source

    def get_source(self, name):
        return self._source


def _load(plan):
    """The script as the module `__main__`, and its code; nothing of it has run yet."""
    source = plan["source"].decode("utf-8-sig")
    main = type(sys)("__main__")
    main.__file__, main.__builtins__ = plan["name"], __builtins__
    if plan["show_source"]:
        main.__loader__ = _Loader(source)
    sys.modules["__main__"] = main
    sys.argv[:] = [plan["name"], plan["key"]]
    sys._sandboxrun_token = plan["token"]  # which sandboxrun.worker compares with `pidToken`
    if plan["code"] is not None:
        return main, marshal.loads(plan["code"])
    return main, compile(source, plan["name"], "exec", dont_inherit=True)


def _close_others(*kept):
    """Descriptors that whoever started the supervisor left open; and what is ours is not for programs that we start."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd in kept:
            os.set_inheritable(fd, False)
        elif fd > 2:
            try:
                os.close(fd)
            except OSError:
                pass  # it was listdir's own


def _await(answers, word):
    if os.read(answers, 64) != word:
        os._exit(0)  # the supervisor went away or gave up; it has said why


def main():
    (supervisor, questions, answers, plan_fd), packages = map(int, sys.argv[2:6]), sys.argv[6:]
    looked = [time.monotonic_ns()]  # at the clock, for trace.py
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != supervisor:  # it died before PDEATHSIG was armed
        os._exit(0)
    os.chdir("/")
    gc.disable()  # what is imported now stays
    _close_others(questions, answers, plan_fd)
    sys.dont_write_bytecode = True
    if packages:
        _warm_up(packages)
    _await(answers, b"plan")
    with open(plan_fd, "rb") as file:
        file.seek(0)
        plan = marshal.load(file)
    looked.append(time.monotonic_ns())
    try:
        listener = _confine(plan)
    except (OSError, ValueError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.filename is None else str(error)
        os.write(questions, b"fail " + str(reason).encode("utf-8", "replace")[:512])
        os._exit(1)
    looked.append(time.monotonic_ns())
    os.write(questions, b"ready %d %d %d %d" % (listener, *looked))
    # While the supervisor prepares, and claims the hash; a SyntaxError ends this process before it has begun.
    os.environ.update(plan["env"])
    if not packages:
        _add_packages(*plan["packages"])
    _prepare_imports(plan)
    _install_hooks(plan)
    module, code = _load(plan)
    _await(answers, b"go")
    os.close(listener)
    _patch_names(_Names(questions, answers).ask)
    _patch_metadata()
    sys.meta_path.insert(0, _OwnPid(plan["key"], os.getpid()))
    if plan["inspect"]:
        _part("debugger").listen(*plan["inspect"])
    gc.freeze()  # of all that is here already nothing is garbage
    gc.enable()
    exec(code, module.__dict__)  # from here on the process is the worker's


main()
