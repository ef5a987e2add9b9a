"""Runs in the worker's process: the grants that a program needs which a worker could not run.

subprocess, os.spawn*, os.exec*, os.posix_spawn and multiprocessing raise; os.system() and a shell only return a code.
"""

from __future__ import annotations

import os
import shlex

from sandboxrun.sandbox.child.denials import Grants, printable, requirement

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.sandbox.child.calls import FailedCall

_EXECUTES = frozenset("execv execve fork_exec posix_spawn posix_spawnp".split())
# Functions of Python that call one of these, or fork(2) for one, with the variable that has the program.
_CALLERS = {"_spawnvef": "file", "_execvpe": "file", "spawnv_passfds": "path"}
_FOLDERS = ("/usr/local/bin", "/usr/bin", "/bin")  # where allowRun looks for a name, config.targets.PROGRAM_FOLDERS
_SHELL = "sh"
_SHELLS = ("sh", "/bin/sh", "/usr/bin/sh")
_SEPARATORS = frozenset(
    ("|", "||", "&", "&&", ";", "(", ")", "|&", "!", "{", "then", "do", "else", "if", "while", "until")
)
_BUILTINS = frozenset(
    "[ echo false kill printf pwd test true".split()
)  # of every shell, though there are files of them
_NO_PROGRAM, _NOT_EXECUTED = 127, 126  # exit codes of a shell, and of system(3) if there is none
# Any program in allowRun lets a worker have processes; this one does nothing.
_HARMLESS = "true"


def of_call(call: FailedCall, error: OSError) -> list[str]:
    """The programs that the call was to run; none if it was for something else."""
    variables = call.variables
    if call.module == "subprocess":
        if variables.get("child_exec_never_called"):
            return []  # it is the folder `cwd` that was refused
        words, executable = variables.get("args"), variables.get("orig_executable") or variables.get("executable")
        first = _text(executable) or _text(error.filename)
        if variables.get("shell") and isinstance(words, list | tuple) and words:
            return [_SHELL if first in _SHELLS else first, *of_shell(_text(words[-1]))]
        return [first] if first else []
    if call.caller in _CALLERS:
        return [text] if (text := _text(variables.get(_CALLERS[call.caller]))) else []
    if call.name in _EXECUTES:
        return [text] if (text := _text(error.filename or call.argument(0, "path", default=""))) else []
    return []


def of_shell(command: str) -> list[str]:
    """The programs that a command line of a shell names, as far as they are there."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    programs: list[str] = []
    first = True
    try:
        for word in lexer:
            if word in _SEPARATORS:
                first = True
            elif first and not ("=" in word and word.partition("=")[0].isidentifier()):
                first = False
                if word not in _BUILTINS and word not in programs and _path_of(word) is not None:
                    programs.append(word)
    except ValueError:  # a quotation that does not end
        pass
    return programs


def of_command(error: BaseException) -> list[str]:
    """Of a subprocess.CalledProcessError: what a shell could not run, because it is not granted."""
    command: Any = getattr(error, "cmd", None)
    return of_shell(command) if isinstance(command, str) and getattr(error, "returncode", 0) == _NOT_EXECUTED else []


def lines(names: list[str], grants: Grants) -> list[str]:
    """One for each program that is not granted yet."""
    found = []
    for name in names:
        path = _path_of(name)
        if path is None:
            found.append(f"{requirement('run', name)}, which is no program here")
        elif grants.allows("run", path):
            continue
        elif grants.allows("write", path):
            found.append(f"{requirement('run', name)}, which no grant gives: the worker could have written it")
        elif "," in name:
            found.append(f"{requirement('run', name)}, which no grant can name because of its comma")
        else:
            by_name = "/" not in name and os.path.dirname(path) in _FOLDERS
            shown = printable(name if by_name else path)
            found.append(grants.denial("run", shown, shown))
    return found


def fork_lines(grants: Grants) -> list[str]:
    if grants.runs_programs:
        return []
    return [grants.denial("run", "a process of its own", _HARMLESS)]


def of_status(command: str, status: int, grants: Grants) -> list[str]:
    """The lines after os.system(command), of which `status` is the wait status."""
    code = os.waitstatus_to_exitcode(status) if status >= 0 else _NO_PROGRAM
    if code == _NO_PROGRAM and not grants.allows("run", _path_of(_SHELL) or "/bin/sh"):
        return lines([_SHELL, *of_shell(command)], grants)
    return lines(of_shell(command), grants) if code == _NOT_EXECUTED else []


def _path_of(name: str) -> str | None:
    if "/" in name:
        path = os.path.abspath(name)
        return path if os.path.isfile(path) and os.access(path, os.X_OK) else None
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, name)
        if os.path.isabs(folder) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _text(value: Any) -> str:
    return os.fsdecode(value) if isinstance(value, str | bytes | os.PathLike) else ""
