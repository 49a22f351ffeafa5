"""The Hub's HTTP API on this machine, as far as `huggingface_hub` uses it to create, write and read repositories.

Large files go through git LFS's batch protocol, small ones in the commit, as the Hub decides by name. It checks the
token, who owns a name, what is there already and on top of which commit is written, and keeps what it was sent.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.helpers.openid import SignIn


LARGE = (".safetensors", ".glb", ".mp4", ".png", ".zip")


@dataclass
class Repo:
    """What is in a repository of the stand-in."""

    visibility: str
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: ["0" * 40])


@dataclass
class Hub:
    """The state of the stand-in.

    Args:
        address: To be used as endpoint.
        tokens: Who each token belongs to; a user may write to own names only.
        failing: Statuses with which the next commits are answered.
        sign_in: For visitors of a Space.
    """

    address: str = ""
    tokens: dict[str, str] = field(default_factory=lambda: {"hf_me": "me"})
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    large: list[str] = field(default_factory=list)
    failing: list[int] = field(default_factory=list)
    sign_in: SignIn = field(default_factory=SignIn)

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        return self.repos[kind, repo_id]


@contextmanager
def hub_server():
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, content, status: int = 200, headers: dict | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str = "") -> None:
        self.answer({"error": "refused"}, status, {"X-Error-Code": code} if code else None)

    @property
    def user(self) -> str | None:
        return self.hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def body(self) -> bytes:
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        body = self.body()
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path == "/oauth/token":
            return self.give_token(body)
        if self.user is None:
            return self.refuse(401)
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if match := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.path):
            return self.batch(json.loads(body))
        match = re.match(r"/api/(model|dataset|space)s/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        if match is None:
            return self.refuse(404)
        kind, repo_id, call = match.groups()
        if (kind, repo_id) not in self.hub.repos:
            return self.refuse(404, "RepoNotFound")
        if not repo_id.startswith(f"{self.user}/"):
            return self.refuse(403)
        return self.preupload(json.loads(body)) if call == "preupload" else self.commit(kind, repo_id, body)

    def give_token(self, body: bytes) -> None:
        token = self.hub.sign_in.token(self.hub.address, self.headers.get("Authorization") or "", body)
        if token is None:
            return self.refuse(401)
        self.hub.tokens[token["access_token"]] = self.hub.sign_in.user
        return self.answer(token, headers={"Content-Type": "application/json"})

    def sign_in(self) -> None:
        sign_in, address = self.hub.sign_in, self.hub.address
        if self.path.startswith("/oauth/authorize"):
            back = sign_in.authorize(self.path)
            return self.refuse(400) if back is None else self.answer(b"", 302, {"Location": back})
        content = sign_in.keys() if self.path == "/oauth/jwks" else sign_in.metadata(address)
        return self.answer(content, headers={"Content-Type": "application/json"})

    def create(self, wanted: dict) -> None:
        kind, owner = wanted.get("type") or "model", wanted.get("organization") or self.user
        repo_id = f"{owner}/{wanted['name']}"
        if owner != self.user:
            return self.refuse(403)
        prefix = "" if kind == "model" else f"{kind}s/"
        url = {"url": f"{self.hub.address}/{prefix}{repo_id}", "name": repo_id, "id": "1"}
        if (kind, repo_id) in self.hub.repos:
            return self.answer(url, 409)
        self.hub.repos[kind, repo_id] = Repo(wanted.get("visibility") or "public")
        return self.answer(url)

    def preupload(self, wanted: dict) -> None:
        modes = [
            {
                "path": file["path"], "shouldIgnore": False,
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
            }
            for file in wanted["files"]
        ]  # fmt: skip
        self.answer({"files": modes})

    def batch(self, wanted: dict) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{entry['oid']}"}}}
            for entry in wanted["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def do_PUT(self):
        oid, body = self.path.removeprefix("/lfs/"), self.body()
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400)
        self.hub.objects[oid] = body
        return self.answer({})

    def commit(self, kind: str, repo_id: str, body: bytes) -> None:
        if self.hub.failing:
            return self.refuse(self.hub.failing.pop(0))
        repo = self.hub.repos[kind, repo_id]
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", repo.commits[-1]) != repo.commits[-1]:
            return self.refuse(412)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self.refuse(422)
                repo.files[value["path"]] = self.hub.objects[value["oid"]]
                self.hub.large.append(value["path"])
        repo.commits.append(hashlib.sha1(body).hexdigest())
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.hub.address}/{prefix}{repo_id}/commit/{repo.commits[-1]}"
        self.answer({"success": True, "commitOid": repo.commits[-1], "commitUrl": url, "hookOutput": ""})

    def do_GET(self):
        if self.path.startswith(("/oauth/", "/.well-known/")):
            return self.sign_in()
        if self.path.startswith("/api/whoami-v2"):
            return self.refuse(401) if self.user is None else self.answer({"type": "user", "name": self.user})
        match = re.match(r"/api/(model|dataset|space)s/([^/]+/[^/?]+)", self.path)
        if match is not None:
            return self.info(*match.groups())
        match = re.match(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/[^/]+/([^?]+)", self.path)
        if match is None:
            return self.refuse(404)
        kind, repo_id, path = match.groups()
        repo = self.readable(kind or "model", repo_id)
        if repo is None:
            return self.refuse(401, "RepoNotFound")
        if path not in repo.files:
            return self.refuse(404, "EntryNotFound")
        content = repo.files[path]
        tag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": repo.commits[-1]}
        return self.answer(content, 200, tag)

    do_HEAD = do_GET

    def readable(self, kind: str, repo_id: str) -> Repo | None:
        repo = self.hub.repos.get((kind, repo_id))
        if repo is not None and repo.visibility == "private" and not repo_id.startswith(f"{self.user}/"):
            return None
        return repo

    def info(self, kind: str, repo_id: str) -> None:
        repo = self.readable(kind, repo_id)
        if repo is None:
            return self.refuse(401, "RepoNotFound")
        if "/tree/" in self.path:
            return self.answer([
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in repo.files.items()
            ])  # fmt: skip
        files = [{"rfilename": path} for path in repo.files]
        private = repo.visibility == "private"
        return self.answer(
            {"id": repo_id, "sha": repo.commits[-1], "siblings": files, "private": private, "tags": [], "downloads": 0,
             "likes": 0}
        )  # fmt: skip
