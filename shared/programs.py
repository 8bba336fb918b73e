"""Programs on disk: what tracing a function led to, so that the next process does not trace it again.

JAX's compilation cache saves compiling, but finds a computation only by what tracing it led to, and that takes a second
and more for a deep learner or a simulator. Here a function's program is found by the values that the function was made
from: the environment, the objective, the plan. Programs lie beside JAX's own cache, in a folder for one version of our
source, of JAX and of its settings. A function that was made from a user's own code is traced as ever.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, wraps
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

import jax
from jax import export
from pydantic import BaseModel

PACKAGES = ("shared", "learner", "collector")  # whose source decides what a program is
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "brax", "mujoco", "mujoco-mjx")
KEPT_VERSIONS = 8  # folders; the one used longest ago is deleted

P = ParamSpec("P")
R = TypeVar("R")

_identities: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class _Unknown(Exception):
    """A value's text would not hold all that a program may depend on."""


class _Program(NamedTuple):
    """`exported` maps the leaves of the arguments to those of a result with the structure `result`."""

    exported: export.Exported
    result: Any


def identify(value: Any, text: str) -> None:
    """Says that `text` holds everything that `value` was made from, so that programs which depend on it are kept."""
    _identities[value] = text


def keep_program(function: Callable[P, R], *parts: Any) -> Callable[P, R]:
    """Returns `function` for `jax.jit` on the default device, traced once for all processes.

    Its results do not depend on whether the program was found or made.

    Args:
        function: a pure function of pytrees of arrays, without keyword arguments.
        parts: all that the function was made from: numbers, texts, what was passed to `identify`, and our own
            dataclasses and models of these. With anything else among them, the function itself is returned.
    """
    try:
        identity = _describe(parts)
    except _Unknown:
        return function

    @wraps(function)
    def call(*args: Any) -> Any:
        settings = jax.config.values
        if settings["jax_disable_jit"] or settings["jax_debug_nans"]:  # these look into the function
            return function(*args)  # type: ignore[call-arg]
        leaves, structure = jax.tree.flatten(args)
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        program = _find(cast(Callable[..., Any], function), identity, shapes, structure)
        return jax.tree.unflatten(program.result, program.exported.call(*leaves)) if program else function(*args)  # type: ignore[call-arg]

    return cast(Callable[P, R], call)


def _describe(value: Any) -> str:
    """Returns a text that differs for values from which different programs could come. Raises _Unknown."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if type(value) in (tuple, list):
        return f"({', '.join(map(_describe, value))})"
    if type(value) is dict:
        return _describe([*value.items()])
    if isinstance(value, MethodType):
        return _describe((value.__self__, value.__name__))
    if not _is_ours(type(value)):
        raise _Unknown
    with contextlib.suppress(TypeError, KeyError):  # no weak reference, no entry
        return _identities[value]
    names = _names(value)
    return f"{type(value).__module__}.{type(value).__qualname__}{_describe({n: getattr(value, n) for n in names})}"


def _names(value: Any) -> list[str]:
    if isinstance(value, BaseModel):
        return list(type(value).model_fields)
    if is_dataclass(value):
        return [field.name for field in fields(value) if field.name not in ("parent", "name")]  # of flax's modules
    if hasattr(value, "_fields"):  # a NamedTuple
        return list(value._fields)
    raise _Unknown


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in PACKAGES


def _find(function: Callable[..., Any], identity: str, shapes: list[Any], structure: Any) -> _Program | None:
    """Returns the program of `function` for such arguments, from disk or new; None if it cannot leave its process."""
    name = f"{function.__module__}.{function.__qualname__}"
    settings = {option: getattr(jax.config, option, value) for option, value in jax.config.values.items()}
    folder = _folder(settings)
    traced = {option: value for option, value in settings.items() if "cache" not in option}
    facts = (jax.default_backend(), sorted(traced.items()), name, identity, shapes, structure)
    key = hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()
    if folder and (program := _read(folder / key)):
        return program
    program = _export(function, shapes, structure)
    if folder and program:
        _write(folder / key, program)
    return program


def _export(function: Callable[..., Any], shapes: list[Any], structure: Any) -> _Program | None:
    results = []

    def on_leaves(*leaves: Any) -> list[Any]:
        values, result = jax.tree.flatten(function(*jax.tree.unflatten(structure, leaves)))
        results.append(result)
        return values

    try:
        exported = export.export(jax.jit(on_leaves))(*shapes)
    # JAX exports no callback to Python, and no custom call without a promise of compatibility. Then, as after an error
    # of the function itself, the caller traces the function, which raises such an error again.
    except (RuntimeError, ValueError):
        return None
    return _Program(exported, results[0])


def _read(path: Path) -> _Program | None:
    if not path.exists():
        return None
    try:
        exported, result = pickle.loads(path.read_bytes())
        return _Program(export.deserialize(exported), result)
    except Exception:  # noqa: BLE001 - half a file: the program is made again
        return None


def _write(path: Path, program: _Program) -> None:
    """Writes a file in one step. A full disk, or a program that cannot be written, costs the next process time only."""
    with contextlib.suppress(Exception):
        content = pickle.dumps((program.exported.serialize(), program.result))
        with _new_file(path) as file:
            Path(file).write_bytes(content)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[str]:
    """Yields the name of a file that becomes `path`; several processes may do so at once."""
    file, name = tempfile.mkstemp(dir=path.parent)
    os.close(file)
    try:
        yield name
        os.replace(name, path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _folder(settings: Mapping[str, Any]) -> Path | None:
    """Returns the folder of this version's programs; None where JAX keeps nothing on disk, either."""
    place = settings["jax_compilation_cache_dir"]
    if not place or "://" in place or not settings["jax_enable_compilation_cache"]:
        return None
    return _make_folder(Path(place) / "programs")


@cache
def _make_folder(programs: Path) -> Path | None:
    """Makes the folder of this version in `programs`, and deletes folders of too many others."""
    folder = programs / _version()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        others = sorted(set(programs.iterdir()) - {folder}, key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return None
    for old in others[KEPT_VERSIONS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


@cache
def _version() -> str:
    """Returns a hash of our source and of the libraries that decide what tracing leads to."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        root = Path(importlib.import_module(package).__path__[0])
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    return digest.hexdigest()[:16]
