"""STUB, no real component: a small process that behaves like one, or badly, on request.

Run by the supervisor tests in place of the master, storage node, engines, renderer and router.
Unknown arguments (the real flags) are ignored. STUB_* variables choose the behaviour:
  STUB_MODE   ready | silent | crash | deaf (ignores SIGTERM)
              | family (leaves grandchildren and a temporary file)
  STUB_LINES  text printed before anything else
  STUB_FILE   for `flaky`: crashes on start while the file exists
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


def option(name: str) -> str | None:
    words = [w for word in sys.argv[1:] for w in word.split("=", 1)]
    return words[words.index(name) + 1] if name in words else None


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def listen() -> None:
    """Answer where a real component would: --port (engines) or --rpc_port (the master)."""
    port = option("--port") or option("--rpc_port")
    if port:
        server = HTTPServer(("127.0.0.1", int(port)), Health)
        threading.Thread(target=server.serve_forever, daemon=True).start()


def start_family() -> None:
    """A grandchild in its own session, one that is orphaned at once, and a forgotten file."""
    with open(os.environ["TMPDIR"] + "/forgotten", "w"):
        pass
    sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    subprocess.Popen(sleeper, start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        subprocess.Popen(sleeper, start_new_session=True)
        os._exit(0)
    os.wait()


def main() -> None:
    mode = os.environ.get("STUB_MODE", "ready")
    print(os.environ.get("STUB_LINES", "hello from the stub"), flush=True)
    if mode == "crash":
        sys.exit(3)
    if mode == "flaky" and os.path.exists(os.environ["STUB_FILE"]):
        sys.exit(4)
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "family":
        start_family()
    if mode != "silent":
        listen()
        print("READY", flush=True)
    while True:
        time.sleep(600)


main()
