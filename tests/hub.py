"""A small server on this machine that speaks the file protocol of the Hugging Face Hub, and misbehaves as told."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

REPOSITORY = "HuggingFaceFW/fineweb"


class Hub:
    """Files by path at each commit of `main`, and what goes wrong with them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.commits = ["a" * 40]
        self.dropped: dict[str, list[int]] = {}
        """How many bytes of a file the next answers send before the connection ends."""
        self.changed: dict[str, int] = {}
        """How many of the next answers have a byte changed."""
        self.stalled: set[str] = set()
        """Files of which the second half never comes."""
        self.unlisted: set[str] = set()
        """Files that are listed without their sha256."""
        self.asked: list[tuple[str, str, str | None]] = []
        """Method, path and range of what was asked for."""
        self.sent_bytes = 0

    def listed(self, folder: str) -> list[dict]:
        """What the Hub lists of a folder."""
        paths = [path for path in self.files if path.rpartition("/")[0] == folder]
        return [
            {
                "type": "file",
                "path": path,
                "size": len(self.files[path]),
                "oid": "0" * 40,
                **({} if path in self.unlisted else self._pointer(path)),
            }
            for path in reversed(paths)
        ]

    def _pointer(self, path: str) -> dict:
        data = self.files[path]
        return {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The address at which it answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Be silent."""

        def do_HEAD(self) -> None:
            self._answer(is_head=True)

        def do_GET(self) -> None:
            self._answer(is_head=False)

        def _answer(self, is_head: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.asked.append((self.command, path, self.headers.get("Range")))
            prefix = f"/api/datasets/{REPOSITORY}"
            if path.startswith(f"{prefix}/revision/"):
                revision = path.rpartition("/")[2]
                commit = hub.commits[-1] if revision == "main" else revision
                return self._json({"id": REPOSITORY, "sha": commit}) if commit in hub.commits else self._nothing()
            if found := re.fullmatch(rf"{prefix}/tree/(\w+)/(.+)", path):
                return self._json(hub.listed(found[2]))
            if found := re.fullmatch(rf"/datasets/{REPOSITORY}/resolve/(\w+)/(.+)", path):
                return self._file(found[1], found[2], is_head)
            return self._nothing()

        def _json(self, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _nothing(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _file(self, commit: str, path: str, is_head: bool) -> None:
            data, asked = hub.files[path], re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            first = int(asked[1]) if asked else 0
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            if is_head:
                return
            if hub.changed.get(path):
                hub.changed[path] -= 1
                data = data[:-1] + bytes([data[-1] ^ 1])
            cut = hub.dropped.get(path) or []
            body = data[first:]
            if path in hub.stalled:
                body = body[: len(body) // 2]
                self.wfile.write(body)
                self.wfile.flush()
                hub.sent_bytes += len(body)
                threading.Event().wait(30)
                self.close_connection = True
                return
            if cut:
                body = body[: cut.pop(0)]
                self.close_connection = True
            self.wfile.write(body)
            hub.sent_bytes += len(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
