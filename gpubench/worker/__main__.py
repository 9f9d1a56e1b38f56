"""A worker in a new interpreter, for systems without fork: `python -m gpubench.worker FD`."""

import socket
import sys

from gpubench.worker.server import run_worker

if __name__ == "__main__":
    sys.exit(run_worker(socket.socket(fileno=int(sys.argv[1]))))
