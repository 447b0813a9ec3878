"""Compiles `fused_step.cpp` at first use and opens the door to it: its function and its structs.

The library is kept in the user's cache folder under a name that depends on all that went into it,
this machine's processor included, as a home may be shared by different machines.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from valle.utils.files import written_whole

_SOURCE = Path(__file__).with_name("fused_step.cpp")
_HEADER = Path(__file__).with_name("fused_vectors.h")
_FLAGS = "-O3 -std=c++17 -ffp-contract=off -fPIC -shared -fopenmp -Wno-psabi"
_COMPILERS = ("g++", "c++", "clang++")
_DIGEST_BYTES = hashlib.sha256().digest_size
_one_at_a_time = threading.Lock()


class Linear(ctypes.Structure):
    """Where the weights of a linear layer lie, and in which format."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "row_bytes", "format")),
    )


class Norm(ctypes.Structure):
    """Parameters of a layer norm; without a gain nothing is normalised."""

    _fields_ = (("gain", ctypes.c_void_p), ("shift", ctypes.c_void_p), ("eps", ctypes.c_double))


class Layer(ctypes.Structure):
    """One decoder layer, in the order in which it computes."""

    _fields_ = (
        ("before_attention", Norm),
        ("qkv", Linear),
        ("out", Linear),
        ("before_feed_forward", Norm),
        ("up", Linear),
        ("down", Linear),
    )


class Frame(ctypes.Structure):
    """All that the compiled function is told; `fused_step.cpp` explains the fields."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "D", "H", "F", "V", "num_layers", "max_len")),
        ("num_threads", ctypes.c_int64),
        ("residual_is_normed", ctypes.c_int64),
        ("cache_is_bfloat16", ctypes.c_int64),
        ("layers", ctypes.POINTER(Layer)),
        ("before_head", Norm),
        ("head", Linear),
        *((name, ctypes.c_void_p) for name in ("x", "positions", "cosines", "sines")),
        *((name, ctypes.c_void_p) for name in ("cache", "logits")),
    )


@dataclass(frozen=True)
class Library:
    """The compiled function (it takes a pointer to a `Frame`), or why there is none."""

    function: Any = None
    failure: str | None = None


class _CompilationError(Exception):
    """Says in one sentence, and in the compiler's words, what failed."""


def compiled_library() -> Library:
    """Load the library, compiled before or now. Asked again it gives the same answer."""
    with _one_at_a_time:
        return _library()


@lru_cache(maxsize=1)
def _library() -> Library:
    try:
        return Library(_function())
    except (OSError, subprocess.SubprocessError, _CompilationError) as error:
        return Library(failure=str(error))


def _function() -> Any:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "valle"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # not ours to write, or no home: a folder for this process
        with tempfile.TemporaryDirectory(prefix="valle-") as private:
            return _function_in(Path(private))
    return _function_in(folder)


def _function_in(folder: Path) -> Any:
    compiler = _compiler()
    try:
        path = _built(folder, compiler, [*_FLAGS.split(), "-march=native"])
    except _CompilationError:  # some compilers know no "native"
        path = _built(folder, compiler, _FLAGS.split())
    function = ctypes.CDLL(str(path)).valle_decode_frame
    function.argtypes, function.restype = [ctypes.POINTER(Frame)], ctypes.c_int
    return function


def _compiler() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise _CompilationError(
        f"no C++ compiler was found (looked for {', '.join(_COMPILERS)}); install one, or name it "
        "in the environment variable CXX"
    )


def _built(folder: Path, compiler: list[str], flags: list[str]) -> Path:
    """The library of this command, from the folder if it is there and whole."""
    command = [*compiler, *flags, str(_SOURCE), *_openmp_of_torch()]
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    parts = (
        *(file.read_bytes() for file in (_SOURCE, _HEADER)),
        *(repr(command).encode(), version, _processor().encode()),
    )
    path = folder / f"fused_step-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:20]}.so"
    if not _is_whole(path):
        logging.getLogger(__name__).info("compiling %s with %s, once", _SOURCE.name, command[0])
        _compile(command, path)
    return path


def _compile(command: list[str], path: Path) -> None:
    with written_whole(path) as temporary:
        done = subprocess.run(
            [*command, "-o", str(temporary)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0 or not temporary.exists():
            last_lines = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise _CompilationError(
                f"{command[0]} could not compile {_SOURCE.name} (exit status {done.returncode})"
                + (f": {last_lines}" if last_lines else "")
            )
        content = temporary.read_bytes()
        temporary.write_bytes(content + hashlib.sha256(content).digest())  # loaders ignore the end


def _is_whole(path: Path) -> bool:
    """Loading a truncated library would kill the process, so its digest stands at its end."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    return hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]


def _openmp_of_torch() -> list[str]:
    """Link to the OpenMP library that torch has loaded, to share its threads.

    A second one would start threads of its own, and both sets would wait busily.
    """
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    files = {line.split(maxsplit=5)[-1] for line in lines if "/" in line}
    openmp = [f for f in files if Path(f).name.startswith(("libgomp", "libiomp5", "libomp"))]
    if not openmp:
        return []
    near_torch = str(Path(torch.__file__).parent)
    chosen = sorted(openmp, key=lambda file: (not file.startswith(near_torch), file))[0]
    return [chosen, "-Wl,--as-needed"]  # the compiler's own comes after it, and is not needed


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{platform.machine()} {platform.processor()}"
    first = cpuinfo.read_text().split("\n\n")[0].splitlines()
    wanted = ("model name", "flags", "Features", "CPU part", "isa")
    return "\n".join(line for line in first if line.startswith(wanted))
