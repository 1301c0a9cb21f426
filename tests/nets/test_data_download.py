import hashlib
import http.server
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from nets import load_data
from nets.datasets import catalogue, download, files, idx
from nets.datasets.catalogue import CIFAR_SETS, IDX_NAMES, IDX_SETS, TINY_IMAGENET, Remote
from nets.datasets.download import Resumable
from nets.datasets.errors import DataError
from tests.nets.data_files import write_idx

CONTENT = bytes(range(256)) * 1000
HALF = 100_000
REMOTES = [
    *(remote for kind in IDX_SETS.values() for remote in kind.remotes),
    *(kind.archive for kind in CIFAR_SETS.values()),
    TINY_IMAGENET.archive,
]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; ``/drop`` breaks off half-way, ``/plain`` knows no ranges, and so on."""

    def do_GET(self):
        mode, have = self.path.split("/")[1], self.headers.get("Range", "")
        self.server.asked.append(have)
        start = int(have[6:-1]) if have else 0
        if mode in ("missing", "redirect"):
            self.send_response(404 if mode == "missing" else 302)
            self.send_header("Location", "/ranges/file.bin")
            self.end_headers()
            return
        if have and mode == "refuse":
            self.send_error(416)
            return
        ranged = bool(have) and mode not in ("plain", "wrong")
        body = CONTENT[start if ranged else 0 :]
        body = {"wrong": body[::-1], "long": body + bytes(10), "short": body[:HALF]}.get(mode, body)
        self.send_response(206 if ranged else 200)
        if ranged:
            first = start + (1 if mode == "shifted" else 0)
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if mode != "short":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:HALF] if mode == "drop" and not have else body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def server(served, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served.asked.clear()
    return served


def fetch(server, folder, mode):
    url = f"http://127.0.0.1:{server.server_address[1]}/{mode}/file.bin"
    remote = Remote(url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    part, target = folder / "file.bin.part", folder / "file.bin"
    Resumable(remote, part)(url, str(target), None)
    assert not part.exists()
    return target.read_bytes()


def test_fetches_and_leaves_no_part(server, tmp_path):
    assert fetch(server, tmp_path, "ranges") == CONTENT
    assert server.asked == [""]


@pytest.mark.parametrize("mode", ["drop", "short"])
def test_a_broken_transfer_is_kept_and_resumed(server, tmp_path, mode):
    with pytest.raises(DataError, match=r"broke after 100,000 of 256,000 bytes.*root= or named by THALWEG_DATA.*kept"):
        fetch(server, tmp_path, mode)
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:HALF]
    assert not (tmp_path / "file.bin").exists()
    assert fetch(server, tmp_path, "ranges") == CONTENT
    assert server.asked[-1] == "bytes=100000-"


@pytest.mark.parametrize("mode", ["plain", "refuse", "shifted"])
def test_a_server_that_will_not_resume_is_asked_for_all(server, tmp_path, mode):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:HALF])
    assert fetch(server, tmp_path, mode) == CONTENT
    assert server.asked == (["bytes=100000-"] if mode == "plain" else ["bytes=100000-", ""])


def test_a_complete_part_needs_no_server(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path, "missing") == CONTENT
    assert server.asked == []


def test_a_part_longer_than_the_file_is_started_over(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(server, tmp_path, "ranges") == CONTENT
    assert server.asked == [""]


def test_wrong_bytes_are_deleted_and_said(server, tmp_path):
    part = tmp_path / "file.bin.part"
    for mode, begun, words in (("wrong", b"", "fetched in one go"), ("ranges", bytes(HALF), "resumed after 100,000")):
        part.write_bytes(begun)
        with pytest.raises(DataError, match=rf"file\.bin\.part: found sha256.*{words}.*deleted"):
            fetch(server, tmp_path, mode)
        assert list(tmp_path.iterdir()) == []
    assert fetch(server, tmp_path, "ranges") == CONTENT


def test_a_server_that_sends_too_much_is_stopped(server, tmp_path):
    with pytest.raises(DataError, match="more than the file's 256,000 bytes"):
        fetch(server, tmp_path, "long")
    assert (tmp_path / "file.bin.part").stat().st_size == 0
    assert fetch(server, tmp_path, "ranges") == CONTENT


def test_an_answer_that_is_no_file(server, tmp_path):
    with pytest.raises(DataError, match="404"):
        fetch(server, tmp_path, "missing")
    assert fetch(server, tmp_path, "redirect") == CONTENT


def test_https_that_leads_on_to_http_is_refused(tmp_path, monkeypatch):
    class Answer(requests.Response):
        def close(self):
            pass

    def get(url, **_):
        answer = Answer()
        answer.url, answer.status_code = "http://elsewhere/file.bin", 200
        return answer

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(DataError, match=r"redirects to http://elsewhere.*expected https"):
        Resumable(REMOTES[0], tmp_path / "part")(REMOTES[0].url, str(tmp_path / "out"), None)


def test_offline_says_so_and_what_to_do(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("THALWEG_DATA", str(tmp_path / "new"))
    # a closed port speaks no https either: as good as a machine without a network
    offline = [replace(remote, url=f"https://127.0.0.1:{port}/{remote.name}") for remote in REMOTES]
    kind = replace(IDX_SETS["mnist"], remotes=tuple(offline[:4]))
    monkeypatch.setitem(catalogue.IDX_SETS, "mnist", kind)
    for name in ("cifar-10", "cifar-100"):
        monkeypatch.setitem(catalogue.CIFAR_SETS, name, replace(CIFAR_SETS[name], archive=offline[8]))
    for name, file in (("mnist", "train-images"), ("mnist-7x7", "train-images"), ("cifar-100", "cifar-10-binary")):
        with pytest.raises(DataError, match=rf"https://127.*{file}.*offline.*{file}.*root= or named by THALWEG_DATA"):
            load_data(name)


def test_only_what_is_missing_is_downloaded_beside_the_rest(tmp_path, monkeypatch):
    whole, cache = tmp_path / "whole", tmp_path / "cache"
    write_idx(whole)
    write_idx(cache / "mnist")
    (cache / "mnist" / f"{IDX_NAMES[1]}.gz").unlink()
    asked = []

    def stand_in(remote, folder):
        asked.append((remote.name, folder))
        return whole / remote.name

    monkeypatch.setattr(idx, "download", stand_in)
    monkeypatch.setenv("THALWEG_DATA", str(cache))
    assert len(load_data("mnist")) == 30
    assert asked == [(f"{IDX_NAMES[1]}.gz", cache / "mnist")]


def test_pooch_keeps_a_file_with_the_right_hash(tmp_path):
    remote = Remote("https://127.0.0.1:9/file.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert download.download(remote, tmp_path) == tmp_path / "file.bin"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot store file\.bin"):
        download.download(remote, tmp_path / "file" / "below")


def test_the_cache_is_the_variable_or_the_systems(tmp_path, monkeypatch):
    monkeypatch.setenv("THALWEG_DATA", str(tmp_path))
    assert files.cache_folder() == tmp_path
    for unset in ("", None):
        monkeypatch.setenv("THALWEG_DATA", "") if unset == "" else monkeypatch.delenv("THALWEG_DATA")
        assert "thalweg" in files.cache_folder().parts
        assert files.cache_folder().is_absolute()


def test_the_public_addresses_are_https_with_whole_hashes():
    assert len(REMOTES) == 11
    for remote in REMOTES:
        assert remote.url.startswith("https://")
        assert len(bytes.fromhex(remote.sha256)) == 32
        assert remote.size > 0
    assert len({remote.sha256 for remote in REMOTES}) == 11
    with pytest.raises(DataError, match="expected https"):
        download.download(replace(REMOTES[0], url="http://here/file"), Path())


def test_importing_nets_imports_no_network():
    code = "import sys, nets; print([n for n in ('pooch', 'requests', 'PIL') if n in sys.modules])"
    root = Path(__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
