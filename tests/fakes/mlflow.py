"""The five calls of MLflow's REST API that a job needs, in memory, with the server's own answers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Mlflow(ThreadingHTTPServer):
    """Listens on a port of its own; `runs` and `experiments` are what it was told."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if method == "experiments/get-by-name":
            name = body["experiment_name"][0]
            if name not in self.experiments:
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"Could not find {name}"}
            return 200, {"experiment": {"experiment_id": self.experiments[name], "name": name}}
        if method == "experiments/create":
            self.experiments[body["name"]] = str(len(self.experiments) + 1)
            return 200, {"experiment_id": self.experiments[body["name"]]}
        if method == "runs/create":
            run_id = f"run{len(self.runs)}"
            self.runs[run_id] = {**body, "status": ["RUNNING"], "metrics": [], "params": []}
            return 200, {"run": {"info": {"run_id": run_id}, "data": {}}}
        run = self.runs[body["run_id"]]
        if method == "runs/update":
            run["status"].append(body["status"])
        else:
            assert method == "runs/log-batch", method
            run["metrics"] += body.get("metrics", [])
            run["params"] += body.get("params", [])
        return 200, {}


class _Handler(BaseHTTPRequestHandler):
    server: Mlflow

    def do_GET(self) -> None:
        self._answer(dict(parse_qs(urlsplit(self.path).query)))

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        method = urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/")
        status, answer = self.server.answer(method, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
