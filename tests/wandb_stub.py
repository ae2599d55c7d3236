"""A local server in W&B's place: answers the GraphQL calls of wandb-workspaces, or accepts connections and never answers."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0123456789abcdef" * 2 + "01234567"  # as long as W&B's


class Stub:
    """What was asked, and the views that were saved."""

    def __init__(self, refuse: bool = False) -> None:
        self.calls: list[str] = []
        self.views: dict[str, dict] = {}
        self.authorizations: set[str] = set()
        self._refuse = refuse

    def answer(self, query: str, variables: dict) -> tuple[int, dict]:
        name = found[1] if (found := re.search(r"(?:query|mutation)\s+(\w+)", query)) else "?"
        self.calls.append(name)
        if self._refuse:
            return 401, {"errors": [{"message": "invalid key"}]}
        if name == "Viewer":
            return 200, {"data": {"viewer": {"id": "1", "entity": "us", "username": "us", "teams": {"edges": []}}}}
        if name == "ProjectInternalId":
            return 200, {"data": {"project": {"internalId": "p1"}}}
        if name == "GetProjects":
            return 200, {"data": {"models": {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}}}
        if name == "CreateProject":
            return 200, {"data": {"result": {"project": None, "model": None, "inserted": True}}}
        if name == "upsertView":
            view = self._save(variables)
            return 200, {"data": {"upsertView": {"view": view, "inserted": True}}}
        return 500, {"errors": [{"message": f"the stub does not know {name}"}]}  # a run's calls: it can only be kept offline

    def _save(self, variables: dict) -> dict:
        name = variables.get("id") or f"view{len(self.views)}"
        self.views[name] = {
            "id": name, "name": variables["name"], "displayName": variables["displayName"], "description": variables["description"],
            "spec": variables["spec"], "createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00",
            "project": {"id": "p1", "name": variables["projectName"], "entityName": variables["entityName"]},
        }  # fmt: skip
        return self.views[name]


@contextlib.contextmanager
def served(stub: Stub):
    """Its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            stub.authorizations.add(self.headers.get("Authorization", ""))
            status, answer = stub.answer(body.get("query", ""), body.get("variables") or {})
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@contextlib.contextmanager
def silent():
    """The address of a server that accepts and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
