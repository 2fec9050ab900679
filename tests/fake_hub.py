"""A hub of one process: what the Hugging Face client asks for when it pushes, answered on 127.0.0.1 and recorded."""

import base64
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FakeHub:
    """What the hub was asked, and what it holds."""

    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    created: list[dict] = field(default_factory=list)
    commits: list[dict[str, bytes]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)
    refuses: bool = False

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict]:
        self.requests.append(f"{method} {path}")
        if self.refuses:
            return 403, {"error": "You have no right to write here."}
        if path == "/api/repos/create":
            repo = json.loads(body)
            self.created.append(repo)
            return 200, {"url": f"{self.endpoint}/{repo['organization']}/{repo['name']}"}
        if path == "/api/validate-yaml":
            # As on the real hub, a base model must be a hub id.
            base = re.search(r"^base_model: (.*)$", json.loads(body)["content"], re.MULTILINE)
            if base is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", base[1]) is None:
                return 400, {"errors": [{"message": f"base_model {base[1]} is no id"}], "warnings": []}
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            modes = [(file["path"], file["path"].endswith(".safetensors")) for file in json.loads(body)["files"]]
            return 200, {
                "files": [
                    {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}
                    for name, large in modes
                ]
            }
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{**o, "actions": {"upload": {"href": f"{self.endpoint}/lfs/{o['oid']}"}}} for o in objects]
            return 200, {"transfer": "basic", "objects": actions}
        if path.startswith("/lfs/"):
            self.large[path.removeprefix("/lfs/")] = body
            return 200, {}
        if "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines() if line]
            files = {line["value"]["path"]: line for line in lines if line["key"] in ("file", "lfsFile")}
            self.commits.append({
                name: self.large[line["value"]["oid"]] if line["key"] == "lfsFile"
                else base64.b64decode(line["value"]["content"])
                for name, line in files.items()
            })  # fmt: skip
            return 200, {"commitUrl": f"{self.endpoint}/me/x/commit/0", "commitOid": "0" * 40, "hookOutput": ""}
        return 404, {"error": "nothing here"}


@contextmanager
def fake_hub():
    """Serve a `FakeHub`; its `endpoint` is for HF_ENDPOINT."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "Authorization" in self.headers:
                hub.tokens.add(self.headers["Authorization"].removeprefix("Bearer "))
            status, content = hub.answer(self.command, self.path, body)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_HEAD = reply

        def log_message(self, *_):
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
