"""A worker for which the host makes no more processes after some: ``HOSTEL_TEST_FORKS=2 python -m few_forks_worker``
may fork twice once it runs, its children with it."""

import errno
import mmap
import os
import sys

from hostel.vm import checkpoint, fork, worker

left = mmap.mmap(-1, 8)  # shared with the children
left[0] = int(os.environ["HOSTEL_TEST_FORKS"])


class Few:
    """``os`` for a module: ``fork`` fails after some."""

    def __getattr__(self, name):
        return getattr(os, name)

    def fork(self):
        if not left[0]:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        left[0] -= 1
        return os.fork()


if __name__ == "__main__":
    fork.os = checkpoint.os = Few()
    os._exit(worker.main(sys.argv[1:]))
