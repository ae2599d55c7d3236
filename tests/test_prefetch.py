"""``fcot.prefetch`` with a local hub: every file that a run reads is downloaded once, and no others."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from students import save_gpt2

COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUICK = ["dataset.n_problems=60", "trainer.max_steps=4", "trainer.warmup_steps=0", "student.max_new_tokens=8"]


@pytest.fixture
def hub(tmp_path):
    """``(address, names of requested files)`` of a hub with one model, ``owner/small``."""
    folder, requested = tmp_path / "hub", []
    save_gpt2(folder)
    (folder / "tf_model.h5").write_bytes(b"x" * 100)
    (folder / "pytorch_model.bin").write_bytes(b"x" * 100)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"x" * 100)

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(send=False)

        def do_GET(self) -> None:
            self.answer(send=True)

        def answer(self, send: bool) -> None:
            path = self.path.partition("?")[0]
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            names = [str(file.relative_to(folder)) for file in files]
            if path == "/api/models/owner/small/revision/main":
                self.send(
                    200, json.dumps({"id": "owner/small", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}).encode()
                )
            elif path.startswith("/api/models/owner/small/tree/"):
                rows = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
                self.send(200, json.dumps(rows).encode())
            elif path.startswith("/owner/small/resolve/") and (name := path.split("/", 5)[5]) in names:
                if send:
                    requested.append(name)
                self.send(200, (folder / name).read_bytes(), body=send)
            else:
                self.send(404, b"{}")

        def send(self, code: int, data: bytes, body: bool = True) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requested
    server.shutdown()
    server.server_close()


def test_prefetched_models_of_a_sweep_train_offline(hub, run_fcot, tmp_path):
    address, requested = hub
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
    overrides = ["student=causal", "student.hub_id=owner/small", *QUICK]
    prefetched = run_fcot("-m", "diversity=1,2", *overrides, module="fcot.prefetch", HF_HUB_OFFLINE="0", **home)
    assert prefetched.returncode == 0, prefetched.stderr
    assert "dataset toy_arithmetic: 60 problems" in prefetched.stderr
    assert "model owner/small: " in prefetched.stderr
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(requested)
    assert not {"tf_model.h5", "pytorch_model.bin", "onnx/model.onnx"} & set(requested)
    assert len(requested) == len(set(requested))
    n = len(requested)
    run = run_fcot(*overrides, "diversity=1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", **home)
    assert run.returncode == 0, run.stderr
    assert len(requested) == n


def test_a_failed_download_is_reported_in_one_message(hub, run_fcot, tmp_path):
    address, _ = hub
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": address}
    result = run_fcot("student=causal", "student.hub_id=owner/none", module="fcot.prefetch", HF_HUB_OFFLINE="0", **home)
    assert result.returncode == 1
    assert "owner/none: cannot be downloaded" in result.stderr
    assert "use a local copy: student.path=FOLDER" in result.stderr
    assert "Traceback" not in result.stderr
    result = run_fcot("student=gpt3", module="fcot.prefetch")
    assert result.returncode == 1
    assert "there is no student=gpt3. Did you mean student=gpt2?" in result.stderr
    assert not Path(tmp_path / "outputs").exists()
