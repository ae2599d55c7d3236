"""A server that completes texts with the likeliest tokens, and scores texts as vLLM's ``prompt_logprobs`` does."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from students import tokenizer


def entry(token: int, logprob: float, alternatives: Any = ()) -> dict[str, Any]:
    """A token as a server describes it."""
    text = tokenizer().decode([token])
    return {"token": text, "bytes": list(text.encode()), "logprob": logprob, "top_logprobs": [entry(*other) for other in alternatives]}


class Scripted(BaseHTTPRequestHandler):
    """Answers every question with the same rationale, and scores prompts as vLLM does."""

    text = "There are 2. Add 7: 2 + 7 = 9. The answer is 9."
    distributions = True  # whether logprobs are in the answers
    rejection = ""  # the error of a request that scores a text
    bodies: ClassVar[list[dict]] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).bodies.append(body)
        answer = self.score(body) if "prompt_logprobs" in body else self.complete(body)
        rejected = self.rejection and "prompt_logprobs" in body
        data = json.dumps({"error": {"message": self.rejection}} if rejected else answer).encode()
        self.send_response(400 if rejected else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def complete(self, body):
        ids = tokenizer()(self.text, add_special_tokens=False)["input_ids"]
        content = [entry(token, -0.1, [(token, -0.1), ((token + 1) % 300, -3.0)][: body["top_logprobs"]]) for token in ids]
        logprobs = {"content": content} if self.distributions and body.get("logprobs") else None
        choice = {"message": {"content": self.text}, "finish_reason": "stop", "logprobs": logprobs}
        usage = {"prompt_tokens": 20, "completion_tokens": len(ids) * body["n"]}
        return {"choices": [choice] * body["n"], "usage": usage}

    def score(self, body):
        assert body["max_tokens"] == 1
        prompt = "".join(message["content"] for message in body["messages"])
        ids = tokenizer()(prompt, add_special_tokens=False)["input_ids"]
        positions = [None, *({str(token): {"logprob": -0.2}, str((token + 1) % 300): {"logprob": -2.0}} for token in ids[1:])]
        return {
            "choices": [{"message": {"content": "x"}}],
            "prompt_logprobs": positions,
            "usage": {"prompt_tokens": len(ids), "completion_tokens": 1},
        }

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(**attributes: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server with its URL and the bodies of its requests."""
    handler = type("Handler", (Scripted,), {"bodies": [], **attributes})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", handler.bodies
    finally:
        server.shutdown()
        server.server_close()


def teacher_at(url: str, folder: Path) -> tuple[str, ...]:
    """The overrides of this teacher, and of a student with the same tokens, which are written into the folder."""
    tokenizer().save_pretrained(folder / "tokens")
    teacher = ("teacher=openai", "teacher.model=m", f"teacher.base_url={url}", "teacher.api_key_env=none", "curation=none")
    return (*teacher, "teacher.top_logprobs=2", f"teacher.tokenizer={folder / 'tokens'}", f"student.tokenizer={folder / 'tokens'}")
