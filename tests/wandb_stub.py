"""A local server instead of W&B's, which accepts reports and metrics and rejects artifacts; and a server that never answers."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0123456789abcdef" * 2 + "01234567"  # as long as W&B's keys


class Stub:
    """Keeps the names of queries (``calls``), saved views by name, and by run id what was logged: group, tags, rows of metrics."""

    def __init__(self, reject_key: bool = False) -> None:
        self.calls: list[str] = []
        self.views: dict[str, dict] = {}
        self.runs: dict[str, dict] = {}
        self._reject_key = reject_key

    def answer(self, query: str, variables: dict) -> tuple[int, dict]:
        name = match[1] if (match := re.search(r"(?:query|mutation)\s+(\w+)", query)) else "?"
        self.calls.append(name)
        if self._reject_key:
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
        if name in ("RunResumeStatus", "UpsertBucket"):
            return 200, {"data": getattr(self, f"_{name.lower()}")(variables)}
        return 400, {"errors": [{"message": f"the stub does not know {name}"}]}

    def _runresumestatus(self, variables: dict) -> dict:
        project = {"id": "p1", "name": "fcot", "entity": {"id": "e1", "name": "us"}}
        run = self.runs.get(variables["name"])
        bucket = run and {
            "id": "b1", "name": variables["name"], "displayName": "", "summaryMetrics": "{}", "config": run["config"], "tags": [],
            "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]", "historyLineCount": len(run["rows"]),
            "historyTail": json.dumps(run["rows"][-1:]), "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip
        return {"model": project | {"bucket": bucket}}

    def _upsertbucket(self, variables: dict) -> dict:
        new = variables["name"] not in self.runs
        run = self.runs.setdefault(variables["name"], {"rows": [], "config": "{}", "group": None, "tags": None, "ended": False})
        for variable, field in (("config", "config"), ("groupName", "group"), ("tags", "tags")):
            run[field] = variables.get(variable) or run[field]
        project = {"id": "p1", "name": "fcot", "entity": {"id": "e1", "name": "us"}}
        bucket = {"id": "b1", "name": variables["name"], "displayName": variables.get("displayName"), "config": run["config"]}
        return {"upsertBucket": {"bucket": bucket | {"project": project, "historyLineCount": len(run["rows"])}, "inserted": new}}

    def stream(self, run: str, body: dict) -> None:
        """Store rows of metrics at the offset in the history that the client names."""
        if history := (body.get("files") or {}).get("wandb-history.jsonl"):
            rows, first = self.runs[run]["rows"], history["offset"]
            rows[first : first + len(history["content"])] = history["content"]
        self.runs[run]["ended"] = bool(body.get("complete"))

    def history(self, run: str) -> list[dict]:
        """A run's metrics as the server has them."""
        return [json.loads(row) for row in self.runs[run]["rows"]]

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
    """Serve the stub; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = 200, {}
            if self.path == "/graphql":
                body = json.loads(raw)
                status, answer = stub.answer(body["query"], body.get("variables") or {})
            elif self.path.endswith("/file_stream"):
                stub.stream(self.path.split("/")[-2], json.loads(raw))
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
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
