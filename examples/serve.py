"""A saved model behind HTTP with nothing but Python's own server: probabilities and doubt as JSON.

    python examples/serve.py FOLDER [--port 8000]
    curl -d '{"inputs": [[[[0, 1], ...]]]}' http://127.0.0.1:8000

FOLDER is what `bp.save` or `bayesprune compact` wrote. It listens on this machine alone: put a real server in front of it.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, HTTPServer

import torch

import bayesprune as bp


def server(folder: str, port: int = 8000) -> HTTPServer:
    """A server that is bound and not yet running; port 0 takes a free one."""
    model = bp.load(folder)
    predict = model.predict if isinstance(model, bp.Ensemble) else lambda x: bp.predict(model, None, x)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                found = predict(torch.tensor(asked["inputs"], dtype=torch.float32))
                names = ("probabilities", "total", "epistemic")
                status, answer = 200, {name: getattr(found, name).tolist() for name in names}
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                status, answer = 400, {"error": str(error)}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Be silent."""

    return HTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    with server(arguments.folder, arguments.port) as running:
        print(f"listening on http://127.0.0.1:{running.server_port}")
        running.serve_forever()
