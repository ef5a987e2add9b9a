"""Runs in the worker's process: wait for the plan, give up every right that is not in it, run the script.

Run as `python -I -S bootstrap.py KEY SUPERVISOR_PID QUESTIONS ANSWERS PLAN HEALTH WARM PACKAGE SITE…`, once: the process never
executes another program unless a grant says so. QUESTIONS to HEALTH are descriptors. WARM is 1, or 0 if sandboxrun.worker
is not to be imported while this waits. PACKAGE is the folder sandboxrun/, or empty if a SITE folder has it.

QUESTIONS is a pipe of packets (pipe(2), O_DIRECT), ANSWERS a stream, PLAN a memfd. Supervisor "plan" once that is filled;
child "ready FD NS NS NS" with the seccomp listener, which the supervisor takes, or "fail TEXT"; supervisor "go". From then
on only names are asked (names.py): child "name NUMBER HOST", supervisor "NUMBER\nok\nADDRESS…", "NUMBER\ndenied\nMESSAGE"
or "NUMBER\nEAI_CODE\nMESSAGE", and a NUL. A packet and an answer have at most PIPE_BUF bytes.

A child that was forked instead (zygote.py) has all of this imported already, and begins with `run`.

Only light modules are imported: `socket`, `signal` and `threading` take longer than Python's own start. runtime.py has
what decides nothing; it is imported before the plan arrives, from folders that no worker can write. Nothing untrusted is
in this process until `_load`.
"""

import _ctypes
import gc
import marshal
import os
import resource
import stat
import sys
import time

_SIGKILL = 9
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_NR_PRCTL, _NR_CAPSET, _NR_SECCOMP = {"x86_64": (157, 126, 317), "aarch64": (167, 91, 277)}[os.uname().machine]
_NR_OPENAT2, _NR_LANDLOCK_CREATE_RULESET, _NR_LANDLOCK_ADD_RULE, _NR_LANDLOCK_RESTRICT_SELF = 437, 444, 445, 446
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 1 << 3
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_BOM = b"\xef\xbb\xbf"  # of UTF-8; the codec utf-8-sig is a module of its own
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
    """All of them, and what could bring one back (capabilities(7)); matters only for root."""
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
    # An older kernel refuses a longer structure, even if the rest of it is zero.
    size = 24 if rights["scoped"] else 16 if rights["net"] else 8
    ruleset = _syscall("landlock_create_ruleset", _NR_LANDLOCK_CREATE_RULESET, attr, size, 0)
    how = _words(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)  # struct open_how
    for path, access in rules:
        shown = os.fsdecode(path)
        try:
            # A symlink that was put there meanwhile is not followed.
            fd = _syscall("openat2", _NR_OPENAT2, _AT_FDCWD, path + b"\0", how, len(how))
        except FileNotFoundError:
            continue  # an entry of a folder that is granted entry by entry, removed meanwhile: a temporary file
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
        hard = resource.getrlimit(limit)[1]
        if hard != resource.RLIM_INFINITY:
            values = [hard if value == resource.RLIM_INFINITY else min(value, hard) for value in values]
        resource.setrlimit(limit, tuple(values))
    _drop_capabilities()
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
    _syscall("landlock_restrict_self", _NR_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    program = _words(len(plan["bpf"]) // 8) + bytes(_Text(plan["bpf"]))  # struct sock_fprog: a length and a pointer
    flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER
    return _syscall("seccomp", _NR_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, program)


def import_runtime(warm, package, *site):
    """runtime.py of the running package, imported before anything untrusted is in this process.

    Python may compile and keep these modules, as an editable installation has not compiled them; it keeps none later."""
    sys.path += site
    if package:
        # sandboxrun itself, if it is not among the site packages (an editable installation): the package alone, not the
        # folder around it, so that nothing beside it can be imported.
        import _frozen_importlib as importlib
        import _frozen_importlib_external as external

        init = package + "/__init__.py"
        spec = external.spec_from_file_location("sandboxrun", init, submodule_search_locations=[package])
        sys.modules["sandboxrun"] = importlib._load(spec)
    from sandboxrun import modulecache

    modulecache.install()
    from sandboxrun.sandbox.child import runtime

    if warm:
        runtime.warm_up()
    modulecache.close()
    sys.dont_write_bytecode = True
    return runtime


def _load(plan, runtime):
    """The script as the module `__main__`, and its code; nothing of it has run yet."""
    source = plan["source"].removeprefix(_BOM).decode()
    main = type(sys)("__main__")
    main.__file__, main.__builtins__ = plan["file"], __builtins__
    if plan["show_source"]:
        main.__loader__ = runtime.SourceLoader(source)
    sys.modules["__main__"] = main
    sys.argv[:] = [plan["name"], plan["key"]]
    sys._sandboxrun_token = plan["token"]  # which sandboxrun.worker compares with `pidToken`
    if plan["code"] is not None:
        return main, marshal.loads(plan["code"])
    return main, compile(source, plan["name"], "exec", dont_inherit=True)


def close_others(*kept):
    """Close the descriptors that were open when the supervisor started; programs of the script do not inherit ours."""
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


def _read_plan(plan_fd):
    with open(plan_fd, "rb") as file:
        file.seek(0)
        return marshal.load(file)


def _confine_or_exit(plan, questions):
    """Fail closed: without every part of the boundary there is no script."""
    try:
        return _confine(plan)
    except (OSError, ValueError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.filename is None else str(error)
        os.write(questions, b"fail " + str(reason).encode("utf-8", "replace")[:512])
        os._exit(1)


def end_with(supervisor):
    """Have the kernel kill this process when its parent ends, which must be the supervisor."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != supervisor:  # it died before PDEATHSIG was armed
        os._exit(0)


def run(runtime, questions, answers, plan_fd, health, times):
    """Of every child, spawned or forked, from the wait for its plan on."""
    close_others(questions, answers, plan_fd, health)
    runtime.share_health(health)
    _await(answers, b"plan")
    plan = _read_plan(plan_fd)
    if sys.argv[1].endswith(" "):  # a spare (spares.py), which is named now
        runtime.show_key(plan["key"])
    times.append(time.monotonic_ns())
    listener = _confine_or_exit(plan, questions)
    times.append(time.monotonic_ns())
    os.write(questions, b"ready %d %d %d %d" % (listener, *times))
    # While the supervisor prepares, and claims the hash; a SyntaxError ends this process before it has begun.
    os.environ.update(plan["env"])
    runtime.prepare(plan)
    module, code = _load(plan, runtime)
    _await(answers, b"go")
    os.close(listener)
    runtime.patch(plan, questions, answers)
    gc.freeze()  # nothing of what exists now is garbage
    gc.enable()
    exec(code, module.__dict__)  # from here on the process is the worker's


def main():
    (supervisor, questions, answers, plan_fd, health, warm), packages = map(int, sys.argv[2:8]), sys.argv[8:]
    times = [time.monotonic_ns()]  # for timing.py
    end_with(supervisor)
    os.chdir("/")
    gc.disable()  # the modules that are imported now stay
    runtime = import_runtime(warm, *packages)
    run(runtime, questions, answers, plan_fd, health, times)


if __name__ == "__main__":
    main()
