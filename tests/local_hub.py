"""A Hub on 127.0.0.1 for the real clients: repositories with history, tokens, large files, and faults on demand.

    with LocalHub() as hub:
        HfApi(endpoint=hub.url, token="hf_ann_write").create_repo("ann/model")

It speaks what `huggingface_hub`, `transformers` and `datasets` ask of huggingface.co when they push and pull models,
data sets and Spaces, and keeps everything in memory. Clients need HF_HUB_DISABLE_XET=1: of the two ways for large
files it has the older one, Git LFS's (https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from local_hub_store import Blob, Commit, HubError, Repo, card_errors, card_metadata, tree_entries

ACCOUNTS = {"hf_ann_write": ("ann", True), "hf_ann_read": ("ann", False), "hf_bob_write": ("bob", True)}
"""Token -> who it is, and whether it may write; each writes only to its own namespace."""
LARGE_TYPES = (".safetensors", ".parquet", ".bin", ".png", ".wav", ".mp4", ".whl", ".zip", ".pt")
REPO = r"(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
PLAIN_REPO = r"(?:(?P<kind>datasets|spaces)/)?(?P<repo>(?!datasets/|spaces/)[^/]+/[^/]+)"


@dataclass
class Fault:
    """What goes wrong with requests whose method and path match, so many times."""

    method: str
    pattern: str
    how: int | str  # a status, "cut" (the connection, half way) or "corrupt" (one byte of what is sent)
    times: int


class Answer(NamedTuple):
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = {}


class LocalHub:
    """The server; a context manager. `requests` lists (method, path) of all that was asked."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method: str, pattern: str, how: int | str, times: int = 1) -> None:
        """Let the next requests that match go wrong; see `Fault`."""
        self.faults.append(Fault(method, pattern, how, times))

    def fault(self, method: str, path: str) -> int | str | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault.how
        return None

    def asked(self, method: str, pattern: str) -> list[str]:
        """Paths of the requests so far that match."""
        return [path for own, path in self.requests if own == method and re.search(pattern, path)]

    # What a request may do

    def repo(self, kind: str | None, name: str, token: str | None, write: bool = False) -> Repo:
        account = self.account(token)
        found = self.repos.get((kind or "models", name))
        own = account is not None and account[0] == name.split("/")[0]
        if found is None or (found.private and not own):
            if account is None:  # huggingface.co does not tell strangers what there is
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write and account is None:
            raise HubError(401, "Invalid username or password.")
        if write and not (own and account[1]):
            raise HubError(403, f"You don't have the rights to write to {name}")
        return found

    @staticmethod
    def account(token: str | None) -> tuple[str, bool] | None:
        if token is not None and token not in ACCOUNTS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return None if token is None else ACCOUNTS[token]

    # Endpoints: (method, path) -> function of the match, the request and the token

    def whoami(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        account = self.account(token)
        if account is None:
            raise HubError(401, "Invalid username or password.")
        role = "write" if account[1] else "read"
        auth = {"accessToken": {"displayName": role, "role": role}}
        return {"type": "user", "name": account[0], "orgs": [], "auth": auth}

    def create(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        asked, account = request.json(), self.account(token)
        if account is None:
            raise HubError(401, "Invalid username or password.")
        owner = asked.get("organization") or account[0]
        kind, name = f"{asked.get('type', 'model')}s", f"{owner}/{asked['name']}"
        if owner != account[0] or not account[1]:
            raise HubError(403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{owner}"')
        url = f"{self.url}/{name}" if kind == "models" else f"{self.url}/{kind}/{name}"
        if (kind, name) in self.repos:
            return Answer(json.dumps({"error": "You already created this repo", "url": url}).encode(), 409)
        if kind == "spaces" and not asked.get("sdk"):
            raise HubError(400, "a Space needs an sdk")
        self.repos[kind, name] = Repo(
            asked.get("visibility") == "private" or asked.get("private") is True, asked.get("sdk")
        )
        return {"url": url, "id": name}

    def validate(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        errors = card_errors(request.json()["content"])
        answer = {"errors": [{"message": error} for error in errors], "warnings": []}
        return Answer(json.dumps(answer).encode(), 400 if errors else 200)

    def preupload(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        files = self.repo(match["kind"], match["repo"], token, write=True).at(unquote(match["revision"])).files
        answers = []
        for asked in request.json()["files"]:
            sample = base64.b64decode(asked["sample"])
            large = asked["path"].endswith(LARGE_TYPES) or b"\0" in sample or asked["size"] > 10_000_000
            own = files.get(asked["path"])
            answers.append(
                {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                | {"oid": None if own is None else own.oid}
            )
        return {"files": answers}

    def batch(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        self.repo(match["kind"], match["repo"], token, write=True)
        objects = []
        for asked in request.json()["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.large:
                verify = f"{self.url}/{match['kind'] or 'models'}/{match['repo']}/verify"
                upload = f"{self.url}/large/{asked['oid']}"
                answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def store(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        if hashlib.sha256(request.body).hexdigest() != match["oid"]:
            raise HubError(400, "the content does not have the hash it was announced with")
        self.large[match["oid"]] = request.body
        return {}

    def verify(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        asked = request.json()
        if len(self.large.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(404, "not stored in this size")
        return {}

    def commit(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        repo = self.repo(match["kind"], match["repo"], token, write=True)
        lines = [json.loads(line) for line in request.body.splitlines()]
        with self.lock:
            head = repo.at(unquote(match["revision"]))
            wanted = lines[0]["value"].get("parentCommit")
            if head is not repo.commits[-1] or wanted not in (None, head.sha):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for line in lines[1:]:
                self._apply(files, line["key"], line["value"])
            title = lines[0]["value"]["summary"]
            tree = sorted((path, blob.oid) for path, blob in files.items())
            sha = hashlib.sha1(json.dumps([head.sha, title, tree]).encode()).hexdigest()
            repo.commits.append(Commit(sha, title, files))
        url = f"{self.url}/{match['repo']}/commit/{sha}"
        return {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""}

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            if value["oid"] not in self.large:
                raise HubError(400, f"{path}: LFS pointer to a file that was not uploaded")
            files[path] = Blob(self.large[value["oid"]], True)
        else:
            gone = [name for name in files if name == path or name.startswith(f"{path.rstrip('/')}/")]
            if not gone:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del files[name]

    def info(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        repo = self.repo(match["kind"], match["repo"], token)
        commit = repo.at(unquote(match["revision"] or "main"))
        return {
            **{
                "_id": match["repo"],
                "id": match["repo"],
                "modelId": match["repo"],
                "sha": commit.sha,
                "sdk": repo.sdk,
            },
            **{"private": repo.private, "gated": False, "disabled": False, "tags": [], "likes": 0, "downloads": 0},
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            "cardData": card_metadata(commit.files["README.md"].data.decode()) if "README.md" in commit.files else {},
        }

    def commits(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        commits = self.repo(match["kind"], match["repo"], token).commits[::-1]
        date = "2000-01-01T00:00:00.000Z"
        return [{"id": c.sha, "title": c.title, "message": "", "date": date, "authors": []} for c in commits]

    def refs(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        head = self.repo(match["kind"], match["repo"], token).commits[-1].sha
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": head}
        return {"branches": [main], "tags": [], "converts": []}

    def tree(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        commit = self.repo(match["kind"], match["repo"], token).at(unquote(match["revision"]))
        below = unquote(match["path"] or "").strip("/")
        entries = tree_entries(commit.files)
        chosen = [path for path in entries if not below or path.startswith(f"{below}/")]
        if below and not chosen:
            raise HubError(404, f"{below} does not exist on {match['revision']}", "EntryNotFound", commit.sha)
        if request.query.get("recursive", ["false"])[0].lower() != "true":
            depth = below.count("/") + 1 if below else 0
            chosen = [path for path in chosen if path.count("/") == depth]
        return [entries[path] for path in chosen]

    def paths_info(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        commit = self.repo(match["kind"], match["repo"], token).at(unquote(match["revision"]))
        entries, asked = tree_entries(commit.files), request.form_or_json()["paths"]
        return [entries[path] for path in ([asked] if isinstance(asked, str) else asked) if path in entries]

    def resolve(self, match: re.Match, request: "Handler", token: str | None) -> Any:
        commit = self.repo(match["kind"], match["repo"], token).at(unquote(match["revision"]))
        blob = commit.files.get(unquote(match["path"]))
        if blob is None:
            raise HubError(404, "Entry not found", "EntryNotFound", commit.sha)
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.large:
            headers |= {"X-Linked-ETag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.data))}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if not part:
            return Answer(blob.data, 200, headers)
        start, end = int(part[1]), min(int(part[2] or len(blob.data)), len(blob.data) - 1)
        if start >= len(blob.data):
            raise HubError(416, "Range not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end}/{len(blob.data)}"
        return Answer(blob.data[start : end + 1], 206, headers)


ROUTES = [
    ("GET", r"/api/whoami-v2", LocalHub.whoami),
    ("POST", r"/api/repos/create", LocalHub.create),
    ("POST", r"/api/validate-yaml", LocalHub.validate),
    ("POST", rf"/api/{REPO}/preupload/(?P<revision>[^/]+)", LocalHub.preupload),
    ("POST", rf"/{PLAIN_REPO}\.git/info/lfs/objects/batch", LocalHub.batch),
    ("PUT", r"/large/(?P<oid>[0-9a-f]{64})", LocalHub.store),
    ("POST", rf"/{REPO}/verify", LocalHub.verify),
    ("POST", rf"/api/{REPO}/commit/(?P<revision>[^/]+)", LocalHub.commit),
    ("GET", rf"/api/{REPO}(?:/revision/(?P<revision>[^/]+))?", LocalHub.info),
    ("GET", rf"/api/{REPO}/commits/(?P<revision>[^/]+)", LocalHub.commits),
    ("GET", rf"/api/{REPO}/refs", LocalHub.refs),
    ("GET", rf"/api/{REPO}/tree/(?P<revision>[^/]+)(?P<path>/.*)?", LocalHub.tree),
    ("POST", rf"/api/{REPO}/paths-info/(?P<revision>[^/]+)", LocalHub.paths_info),
    ("GET", rf"/{PLAIN_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", LocalHub.resolve),
]


class Handler(BaseHTTPRequestHandler):
    """One connection: reads a request, finds its endpoint, lets go wrong what is to go wrong."""

    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def do_GET(self) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        target = urlsplit(self.path)
        self.query = parse_qs(target.query)
        self.hub.requests.append((self.command, target.path))
        how = self.hub.fault(self.command, target.path)
        self.body = self._read(half=how == "cut" and method != "GET")
        if how == "cut" and method != "GET":
            self.close_connection = True
            return
        try:
            if isinstance(how, int):
                raise HubError(how, f"status {how} on demand")
            answer = self._find(method, target.path)
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            headers |= {"X-Error-Code": error.code} if error.code else {}
            headers |= {"X-Repo-Commit": error.commit} if error.commit else {}
            answer = Answer(json.dumps({"error": error.message}).encode(), error.status, headers)
        self._send(answer, how)

    do_HEAD = do_POST = do_PUT = do_GET

    def _find(self, method: str, path: str) -> Answer:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        for own, pattern, endpoint in ROUTES:
            match = re.fullmatch(pattern, path)
            if own == method and match:
                found = endpoint(self.hub, match, self, token)
                return found if isinstance(found, Answer) else Answer(json.dumps(found).encode())
        raise HubError(404, f"{method} {path} is not spoken here")

    def _read(self, half: bool = False) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if half:
                    return b"".join(parts)
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)) // (2 if half else 1))

    def _send(self, answer: Answer, how: int | str | None) -> None:
        body = answer.body
        if how == "corrupt":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self.send_response(answer.status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **answer.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if how == "cut" else body)
        if how == "cut":
            self.close_connection = True

    def json(self) -> Any:
        return json.loads(self.body)

    def form_or_json(self) -> Any:
        if "json" in self.headers.get("Content-Type", ""):
            return self.json()
        return {name: values for name, values in parse_qs(self.body.decode()).items()}

    def log_message(self, *message: object) -> None:
        """Nothing on stderr."""
