"""A worker with one method more, ``new_generation``, as when a copy goes on: ``python -m generation_worker``."""

import os
import sys

from hostel.spec import rpc
from hostel.vm import worker


class Worker(worker.Worker):
    def do_new_generation(self, connection, params):
        self.machine.stop()
        self.machine._board.new_generation(os.urandom(16))
        self.machine.start()
        return True


if __name__ == "__main__":
    rpc.PARAMS["new_generation"] = rpc.Nothing
    os._exit(worker.main(sys.argv[1:], Worker))
