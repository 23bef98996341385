"""Downloads, from a server on this machine: whole, checked, again after a damage."""

import hashlib
import http.server
import threading

import numpy as np
import pytest

from passl_mae.data.download import fetch

CONTENT = np.random.default_rng(0).bytes(200_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server():
    """Serves CONTENT; `asked` holds the paths, /cut ends after half of what it announces."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = CONTENT[:100_000] if self.path == "/cut" else CONTENT
            self.send_response(404 if self.path == "/absent" else 200)
            if self.path != "/unknown_length":
                self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            """Nothing on the console."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()


@pytest.mark.parametrize("path", ["/file", "/unknown_length"])
def test_a_file_comes_whole_once_and_again_when_it_was_damaged(server, tmp_path, capfd, path):
    url, asked = server
    file = tmp_path / "new folder/file.bin"
    assert fetch(url + path, file, MD5) == file and file.read_bytes() == CONTENT
    assert capfd.readouterr().err == f"downloading {url}{path} to {file}\n"  # no bar in a pipe
    fetch(url + path, file, MD5)
    assert asked == [path]
    file.write_bytes(CONTENT[:-1])
    fetch(url + path, file, MD5)
    assert asked == [path] * 2 and file.read_bytes() == CONTENT
    assert [p.name for p in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "path,md5,message",
    [
        ("/cut", MD5, "100000 of 200000 bytes|IncompleteRead"),
        ("/file", "0" * 32, f"damaged: MD5 {MD5}, expected 0000"),
        ("/absent", MD5, "404"),
    ],
)
def test_what_goes_wrong_is_said_and_nothing_is_left(server, tmp_path, path, md5, message):
    with pytest.raises(OSError, match=message):
        fetch(server[0] + path, tmp_path / "file.bin", md5)
    assert list(tmp_path.iterdir()) == []
