"""The router's process for namespaces.py: it is forked by net/process as a worker would, with taps for ports."""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from hostel.net import process  # noqa: E402
from hostel.net.settings import Guest, Settings  # noqa: E402
from hostel.spec.net import parse_forward  # noqa: E402


def main() -> int:
    config = json.loads(sys.argv[1])
    forwards = tuple(parse_forward(text) for text in config["forwards"])
    guests = [
        Guest(mac=bytes.fromhex(f"5254001234{0x56 + index:02x}"), name=f"vm{index}", fd=fd,
              forwards=forwards if index == 0 else ())
        for index, fd in enumerate(config["taps"])
    ]
    network = process.start(Settings(**config["options"]), guests)
    for fd in config["taps"]:
        os.close(fd)
    print(json.dumps({"forwards": network.forwards, "pid": network.pid}), flush=True)
    for _ in sys.stdin:
        time.sleep(1.1)  # counters are a second old
        print(json.dumps(network.counters()), flush=True)
    os.kill(network.pid, 15)
    os.waitpid(network.pid, 0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
