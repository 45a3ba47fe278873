"""No file is accepted without its hash, whatever the source; a broken download goes on where it stopped."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from segforge import fetch as module
from segforge.config.recipe import Download
from segforge.errors import SegforgeError
from segforge.fetch import fetch

CONTENT = bytes(os.urandom(1 << 16)) * 50 + b"the end"  # 3.1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CACHED = Path("data/.downloads") / SHA256


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `script` holds one word per request to come: ok, cut, busy, missing, plain, other."""

    script: list[str]
    seen: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        how = self.server.script.pop(0)
        asked = self.headers.get("Range")
        self.server.seen.append(asked)
        if how in ("busy", "missing"):
            self.send_error(503 if how == "busy" else 404)
            return
        content = CONTENT[::-1] if how == "other" else CONTENT
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and how != "plain" else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: 3 << 19] if how == "cut" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEGFORGE_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(module, "BACKOFF_S", 0.0)
    server = Server(("127.0.0.1", 0), Handler)
    server.script, server.seen = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def wanted(server: Server | None = None, sha256: str = SHA256) -> Download:
    url = f"http://127.0.0.1:{server.server_address[1]}/file.tar" if server else ""
    return Download(url=url, sha256=sha256, name="file.tar")


def test_downloads_once_and_then_takes_the_cache(server: Server) -> None:
    server.script = ["ok"]
    assert fetch(wanted(server)) == CACHED
    assert CACHED.read_bytes() == CONTENT
    assert fetch(wanted(server)) == CACHED
    assert len(server.seen) == 1


def test_a_cut_download_is_resumed_within_one_call(server: Server) -> None:
    server.script = ["cut", "busy", "cut", "ok"]
    assert fetch(wanted(server)).read_bytes() == CONTENT
    assert server.seen[0] is None
    assert server.seen[1] == server.seen[2] != server.seen[3]
    assert all(asked and asked.startswith("bytes=") for asked in server.seen[1:])


def test_a_cut_download_is_kept_and_resumed_by_the_next_call(server: Server) -> None:
    server.script = ["cut"] + ["busy"] * 4
    with pytest.raises(SegforgeError, match=r"could not be downloaded(.|\n)*bytes are kept(.|\n)*goes on from there"):
        fetch(wanted(server))
    part = CACHED.with_name(f"{SHA256}.part")
    kept = part.stat().st_size
    assert 0 < kept < len(CONTENT)
    assert not CACHED.exists()
    server.script = ["ok"]
    assert fetch(wanted(server)).read_bytes() == CONTENT
    assert server.seen[-1] == f"bytes={kept}-"
    assert not part.exists()


def test_a_part_that_is_whole_needs_no_more_bytes(server: Server) -> None:
    CACHED.parent.mkdir(parents=True)
    CACHED.with_name(f"{SHA256}.part").write_bytes(CONTENT)
    server.script = ["ok"]
    assert fetch(wanted(server)).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server: Server) -> None:
    server.script = ["cut", "plain"]
    assert fetch(wanted(server)).read_bytes() == CONTENT


def test_wrong_bytes_are_removed_and_both_hashes_named(server: Server) -> None:
    server.script = ["other"]
    with pytest.raises(SegforgeError) as error:
        fetch(wanted(server))
    assert SHA256 in str(error.value)
    assert hashlib.sha256(CONTENT[::-1]).hexdigest() in str(error.value)
    assert list(CACHED.parent.iterdir()) == []


def test_a_missing_file_is_not_asked_for_again(server: Server) -> None:
    server.script = ["missing"]
    with pytest.raises(SegforgeError, match="404"):
        fetch(wanted(server))
    assert len(server.seen) == 1


def test_a_spoilt_cache_is_fetched_again(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    CACHED.parent.mkdir(parents=True)
    CACHED.write_bytes(b"spoilt")
    server.script = ["ok"]
    assert fetch(wanted(server)).read_bytes() == CONTENT
    assert "removed" in capsys.readouterr().err


def test_a_url_that_is_none(server: Server) -> None:
    with pytest.raises(SegforgeError, match="could not be downloaded"):
        fetch(Download(url="nowhere", sha256=SHA256, name="file.tar"))


def test_file_urls(server: Server, tmp_path: Path) -> None:
    source = tmp_path / "with space.tar"
    source.write_bytes(CONTENT)
    assert fetch(Download(url=source.as_uri(), sha256=SHA256, name="file.tar")) == CACHED
    source.write_bytes(CONTENT[:-1])
    CACHED.unlink()
    with pytest.raises(SegforgeError, match=SHA256):
        fetch(Download(url=source.as_uri(), sha256=SHA256, name="file.tar"))
    assert list(CACHED.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["file.tar", "another name", "deeper/still.bin"])
def test_mirror_by_hash_under_any_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    mirror = tmp_path / "mirror"
    (mirror / name).parent.mkdir(parents=True)
    (mirror / name).write_bytes(CONTENT)
    (mirror / "aaa").write_bytes(b"something else")
    monkeypatch.setenv("SEGFORGE_MIRROR", str(mirror))
    assert fetch(wanted(server)) == mirror / name
    assert server.seen == []


def test_mirror_with_a_cut_file_is_refused_and_left_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.tar").write_bytes(CONTENT[:-1])
    monkeypatch.setenv("SEGFORGE_MIRROR", str(tmp_path))
    with pytest.raises(SegforgeError, match=f"{len(CONTENT) - 1} bytes(.|\n)*cut short(.|\n)*{SHA256}"):
        fetch(wanted(server))
    assert (tmp_path / "file.tar").exists()
    (tmp_path / "whole").write_bytes(CONTENT)
    assert fetch(wanted(server)) == tmp_path / "whole"


def test_no_url_and_no_mirror_says_what_to_do(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SegforgeError, match=f"no public address(.|\n)*{SHA256}(.|\n)*SEGFORGE_MIRROR="):
        fetch(wanted())
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("SEGFORGE_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(SegforgeError, match="mirror does not hold it"):
        fetch(wanted())
    monkeypatch.setenv("SEGFORGE_MIRROR", str(tmp_path / "none"))
    with pytest.raises(SegforgeError, match="none is no folder"):
        fetch(wanted())


def test_the_first_digits_of_a_hash_do_where_no_more_is_published(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = ["ok", "ok"]
    found = fetch(wanted(server, SHA256[:8]))
    assert found.read_bytes() == CONTENT
    assert SHA256 in capsys.readouterr().err
    other = "0" * 8 if SHA256[:8] != "0" * 8 else "1" * 8
    with pytest.raises(SegforgeError, match=SHA256):
        fetch(wanted(server, other))
    for short in (SHA256[:7], "", "xyz" * 4):
        with pytest.raises(SegforgeError, match="first 8 or more"):
            fetch(wanted(server, short))


def test_the_stage_fetches_a_recipes_weights(stage: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    recipe = "deeplabv3plus-mobilenet_v2-shapes"
    path = tmp_path / "conf" / "recipe" / f"{recipe}.yaml"
    content = yaml.safe_load(path.read_text()) | {"weights": {"name": "some.pth", "sha256": SHA256}}
    path.write_text(yaml.safe_dump(content))
    small = "dataset.options.scenes={train: 1, val: 1, test: 1}", "dataset.options.objects={train: 5, val: 5, test: 5}"
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "x").write_bytes(CONTENT[:-1])
    done = stage("download", f"recipe={recipe}", *small, SEGFORGE_MIRROR=str(tmp_path / "mirror"))
    assert done.returncode == 1
    assert SHA256 in done.stderr
    (tmp_path / "mirror" / "x").write_bytes(CONTENT)
    done = stage("download", f"recipe={recipe}", *small, SEGFORGE_MIRROR=str(tmp_path / "mirror"))
    assert done.returncode == 0, done.stderr
