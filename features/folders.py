"""Folders that are whole or not there: written aside, and given their name at the end."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from features.errors import ArtifactError, DataError
from features.files import cannot_write


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into, which takes the place of `folder` at the end, or vanishes on an error."""
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    try:
        remove_leftovers(folder)
        partial.mkdir(parents=True)
        yield partial
        _replace(partial, folder, old)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise cannot_write(folder, error) from error
        raise


@contextmanager
def workshop(folder: Path, *, doing: str = "preparing this store") -> Iterator[Path]:
    """Gives one process at a time a folder beside `folder` for work in progress, which vanishes at the end.

    After an error, or when the process is killed, what is in it stays, so that the next run goes on with it.

    Args:
        folder: What is made.
        doing: What another process that has it is said to do.

    Raises:
        ArtifactError: Another process has it, or it cannot be written.
    """
    work = folder.with_name(f".{folder.name}.work")
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise cannot_write(work, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The process before may have removed the file that was opened here: then it locks nobody out.
            held = os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
        except OSError:
            held = False
        if not held:
            raise ArtifactError(f"another process is {doing}", field=str(folder), mend="wait until it has ended")
        try:
            yield work
        except BaseException:
            if os.listdir(work) == [os.path.basename(lock.name)]:
                shutil.rmtree(work)
            raise
        shutil.rmtree(work)


@contextmanager
def finished(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into, which gets the name of `folder` at the end: a folder of that name is whole.

    Of two processes that write the same, the first one to end gives the folder.

    Raises:
        ArtifactError: It cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        _name_once(partial, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _name_once(partial: Path, folder: Path) -> None:
    try:
        os.replace(partial, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def link(source: Path, target: Path) -> None:
    """Gives a file that nobody changes a second name, or copies it where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def spool_beside(folder: Path) -> Iterator[Path]:
    """Gives a folder beside `folder` for copies that nobody needs afterwards."""
    spool = folder.with_name(f".{folder.name}.{os.getpid()}.spool")
    shutil.rmtree(spool, ignore_errors=True)  # of a killed process of this number
    try:
        yield spool
    finally:
        shutil.rmtree(spool, ignore_errors=True)


@contextmanager
def kept_aside(inner: Path, folder: Path) -> Iterator[None]:
    """On a DataError moves `inner` out of a folder that is about to vanish: to `folder`.quarantine."""
    aside = folder.with_name(f"{folder.name}.{inner.name}")
    try:
        yield
    except DataError:
        if inner.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(inner, aside)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _replace(partial: Path, folder: Path, old: Path) -> None:
    """Gives `partial` the name of `folder`, also while another process does the same: the last one stays."""
    try:
        while True:
            try:
                os.replace(partial, folder)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            shutil.rmtree(old, ignore_errors=True)
            with suppress(FileNotFoundError):
                os.replace(folder, old)
    finally:
        _put_back(old, folder)


def remove_leftovers(folder: Path) -> None:
    """Puts back a folder that a killed process had moved aside, and removes what else it left.

    Processes that still run keep theirs.
    """
    if not folder.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.([0-9]+)\.(partial|old|spool)")
    for path in folder.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        own = int(match[1]) == os.getpid()
        if (own and match[2] == "spool") or (not own and _runs(int(match[1]))):
            continue
        if match[2] == "old":
            _put_back(path, folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _put_back(old: Path, folder: Path) -> None:
    """Removes the store that was replaced, or gives it its name back if nothing took its place."""
    if old.exists() and not folder.exists():
        # Another process may have put its own there meanwhile.
        with suppress(OSError):
            os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
