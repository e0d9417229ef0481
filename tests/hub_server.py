"""A Hub of our own on loopback, with its repositories in memory, and projclust run against it."""

import base64
import contextlib
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from commandline import Outcome

WRITER, READER = "hf_writer", "hf_reader"
OWNER = "someone"  # of both tokens, and of the one namespace they know


@dataclass
class Repository:
    """A model repository: its files as they are now, and the ids of its commits."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    commits: list[str] = field(default_factory=lambda: [new_commit()])


@dataclass
class Hub:
    """What the server knows, what it saw, and how it shall fail.

    Attributes:
        url: of the server.
        repositories: by their ids.
        objects: uploaded large files, by SHA-256, whether a commit has them or not.
        seen: every request, as "METHOD path".
        failing: a request with this in its path is answered by an error page.
        status: of that page.
        dropping: as many uploads of large files lose their connection half way.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    failing: str = ""
    status: int = 502
    dropping: int = 0

    def add(self, repo: str, folder: Path, private: bool = False) -> None:
        """A repository with the files of a folder."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repositories[repo] = Repository(files, private)

    def reset(self) -> None:
        """Forget everything but the address."""
        self.__init__(self.url)  # type: ignore[misc]

    def uploads(self) -> int:
        """How many uploads of large files were tried."""
        return sum(request.startswith("PUT ") for request in self.seen)


def new_commit() -> str:
    """An id no other commit has, for the client keeps what it downloaded by these."""
    return uuid.uuid4().hex + "0" * 8


def is_large(name: str) -> bool:
    """Whether the Hub stores a file beside the git repository."""
    return name.endswith((".safetensors", ".png"))


def object_id(name: str, content: bytes) -> str:
    """What the Hub names a file's content by."""
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A server on a free port of loopback."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def do_PUT(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.seen.append(f"{self.command} {path}")
            if path.startswith("/storage/") and hub.dropping:
                hub.dropping -= 1
                self.drop()
                return
            body = self.body()
            if hub.failing and hub.failing in path:
                self.send(hub.status, b"<html>An error</html>", {"Content-Type": "text/html"})
            elif path == "/api/whoami-v2":
                self.whoami()
            elif path == "/api/validate-yaml":
                self.validate_card(json.loads(body)["content"])
            elif path == "/api/repos/create":
                self.create(json.loads(body))
            elif path.startswith("/storage/"):
                hub.objects[path.rpartition("/")[2]] = body
                self.json({})
            else:
                self.repository(path, body)

        def drop(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            # Lingering for no time makes close() reset the connection.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def token(self) -> str:
            return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

        def whoami(self) -> None:
            role = {WRITER: "write", READER: "read"}.get(self.token())
            if role is None:
                self.json({"error": "Invalid username or password."}, 401)
                return
            access = {"displayName": "test", "role": role}
            self.json({"type": "user", "name": OWNER, "orgs": [], "auth": {"accessToken": access}})

        def validate_card(self, content: str) -> None:
            parts = content.split("---\n")
            try:
                empty = len(parts) < 3 or not yaml.safe_load(parts[1])
            except yaml.YAMLError:
                self.json({"errors": [{"message": "bad indentation of a mapping entry"}]}, 400)
                return
            self.json({"warnings": [{"message": "empty or missing yaml metadata in repo card"}] if empty else []})

        def create(self, wanted: dict[str, Any]) -> None:
            repo = f"{wanted['organization']}/{wanted['name']}"
            if self.refused(repo):
                return
            url = {"url": f"{hub.url}/{repo}"}
            if repo in hub.repositories:
                self.json({**url, "error": "You already created this model repo"}, 409)
                return
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            hub.repositories[repo] = Repository({".gitattributes": b"*.safetensors filter=lfs\n"}, private)
            self.json(url)

        def refused(self, repo: str) -> bool:
            """Answer a request to write which this token must not make."""
            if self.token() != WRITER or not repo.startswith(f"{OWNER}/"):
                namespace = repo.partition("/")[0]
                self.json({"error": f'You don\'t have the rights to create a model under "{namespace}"'}, 403)
                return True
            return False

        def repository(self, path: str, body: bytes) -> None:
            parts = path.removeprefix("/api/models").removeprefix("/").split("/")
            repo, rest = "/".join(parts[:2]).removesuffix(".git"), parts[2:]
            stored = hub.repositories.get(repo)
            if stored is None or (stored.private and self.token() not in (WRITER, READER)):
                self.json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            elif self.command == "POST":
                if not self.refused(repo):
                    self.write(repo, stored, rest, json.loads(f"[{','.join(body.decode().splitlines())}]"))
            elif rest[:1] == ["resolve"]:
                self.resolve(stored, "/".join(rest[2:]))
            elif rest[:1] == ["tree"]:
                self.json([_entry(name, content) for name, content in stored.files.items()])
            else:
                names = [{"rfilename": name} for name in stored.files]
                self.json({"id": repo, "sha": stored.commits[-1], "private": stored.private, "siblings": names})

        def resolve(self, stored: Repository, name: str) -> None:
            if name not in stored.files:
                self.json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            content = stored.files[name]
            self.send(200, content, {"X-Repo-Commit": stored.commits[-1], "ETag": f'"{object_id(name, content)}"'})

        def write(self, repo: str, stored: Repository, rest: list[str], lines: list[dict[str, Any]]) -> None:
            if rest[0] == "preupload":
                self.json({"files": [self.upload_mode(stored, file["path"]) for file in lines[0]["files"]]})
            elif rest[-1] == "batch":
                self.json({"transfer": "basic", "objects": [self.upload_action(item) for item in lines[0]["objects"]]})
            elif rest[0] == "commit":
                self.commit(repo, stored, lines)

        def upload_mode(self, stored: Repository, name: str) -> dict[str, Any]:
            known = {"oid": object_id(name, stored.files[name])} if name in stored.files else {}
            return {"path": name, "uploadMode": "lfs" if is_large(name) else "regular", "shouldIgnore": False, **known}

        def upload_action(self, item: dict[str, Any]) -> dict[str, Any]:
            if item["oid"] in hub.objects:
                return item
            return {**item, "actions": {"upload": {"href": f"{hub.url}/storage/{item['oid']}"}}}

        def commit(self, repo: str, stored: Repository, lines: list[dict[str, Any]]) -> None:
            files = dict(stored.files)
            for line in lines[1:]:
                kind, value = line["key"], line["value"]
                if kind == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif kind == "lfsFile":
                    content = hub.objects[value["oid"]]
                    assert hashlib.sha256(content).hexdigest() == value["oid"]
                    files[value["path"]] = content
                elif kind == "deletedFile":
                    del files[value["path"]]
            stored.files = files
            stored.commits.append(new_commit())
            commit = stored.commits[-1]
            self.json({"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/{repo}/commit/{commit}"})

        def json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

        def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if is_large(name):
        entry["lfs"] = {"oid": object_id(name, content), "size": len(content), "pointerSize": 130}
    return entry


# Imports what takes seconds once, then becomes projclust in a new process for every command line it reads. There the
# client's waits between its tries take no time (the tries stay), and nor does python's own end.
_FORKING = """
import json, os, sys, time
import projclust.jobs.compress, projclust.jobs.expand, projclust.jobs.inspect, projclust.jobs.push
from projclust.cli import main

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.update(job["environment"])
        os.dup2(os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(os.open(job["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.argv[1:] = job["arguments"]
        time.sleep = lambda seconds: None
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Program:
    """projclust in processes of its own, with a Hub's address and a home folder in their environment."""

    def __init__(self, hub: Hub, home: Path, xet: bool = False) -> None:
        self.home = home
        home.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
        }
        command = [sys.executable, "-c", _FORKING]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *arguments: object, **environment: str) -> Outcome:
        """Run one command line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = self.home / "out", self.home / "err"
        job = {"arguments": [str(argument) for argument in arguments], "environment": environment}
        print(json.dumps({**job, "out": str(out), "err": str(err)}), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        return Outcome(code, out.read_text(), err.read_text())

    def close(self) -> None:
        """End the process the others come from."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
