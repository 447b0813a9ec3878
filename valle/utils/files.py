"""Files that are there whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MIB = 2**20
_PART = ".part-"  # a prefix: the suffix stays, as writers choose a format by it


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name; it takes its own name once it is complete.

    The temporary name lies in the same folder (made if missing), so that taking the name is one
    step for the file system; before that the content is forced to the disk.

    Args:
        path: The name of the file in the end.

    Yields:
        The temporary name, to be written by the caller.

    Raises:
        OSError: It could not be written, for want of space or otherwise; the temporary file is
            gone, a file that had the name before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # random, as processes of two machines may have one number, and write to one folder
    temporary = path.with_name(f"{_PART}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        _force_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free / MIB
        raise OSError(
            f"could not write {path} ({error}); {free:,.0f} MiB are free on its disk"
        ) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def remove_leftovers(folder: str | Path) -> None:
    """Delete what a killed process was writing. Only where no other process writes."""
    for path in Path(folder).glob(f"{_PART}*"):
        path.unlink(missing_ok=True)


def copy_whole(source: str | Path, target: str | Path) -> None:
    """Give a complete file a second name, as a hard link where the file system has them.

    Only for files that are never changed in place, as those of ``written_whole``.

    Raises:
        FileNotFoundError: There is no source.
        OSError: As in ``written_whole``.
    """
    if not Path(source).is_file():
        raise FileNotFoundError(f"no file {source} to copy to {target}")
    with written_whole(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # no hard links here
            shutil.copyfile(source, temporary)


def _force_to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
