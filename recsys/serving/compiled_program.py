"""A program as machine code for the processor at hand, by AOTInductor."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from features.errors import ArtifactError, ConfigError
from features.frames import first_line


def check_compiler() -> None:
    """Refuses a machine that cannot compile.

    Raises:
        ConfigError: there is no C++ compiler.
    """
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "compiling needs a C++ compiler",
            field="--aot",
            found=f"no {' or '.join(name for name in config.cpp.cxx if name)}",
            mend="install g++, name another one in the environment variable CXX, or leave --aot out",
        ) from error


def compile_program(program: ExportedProgram, path: Path) -> None:
    """Compiles a program for this processor and torch's present number of threads.

    What is written is native code with the tensors in it; loading it runs it.

    Args:
        program: of `export_program`.
        path: ends in .pt2.

    Raises:
        ConfigError: there is no C++ compiler.
        ArtifactError: it does not compile.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.utils import fresh_cache

    check_compiler()
    try:
        # the tensors would stay in the cache, once a model; what torch warns of is its own use of itself
        with fresh_cache(), warnings.catch_warnings(action="ignore", category=FutureWarning):
            aoti_compile_and_package(program, package_path=str(path))
    except (OSError, RuntimeError) as error:
        raise ArtifactError(
            "torch cannot compile this model", field=str(path), found=first_line(error), mend="leave --aot out"
        ) from error


def load_compiled(path: Path) -> Callable[..., Tensor]:
    """What `compile_program` wrote, as a function of the program's inputs by name."""
    from torch._inductor import aoti_load_package

    run: Any = aoti_load_package(str(path))
    return lambda **inputs: run(**inputs)
