"""A folder of the host's in the guest: ``agent mount TAG FOLDER [ro]``, compiled with the agent (`tiny`).

Makes the folder, with those above it, and mounts the share there unless it is. The exit status is the errno, or 0.
"""

from hostel.images.agent_bytes import length, same
from hostel.images.tiny import buffer, load8, load64, store8, syscall, text

MKDIR, STATFS, MOUNT = 83, 137, 165
MS_RDONLY, MS_NODEV = 1, 4
ENAMETOOLONG = 36
FUSE_SUPER_MAGIC = 0x65735546
WAY = buffer(4097)
FOUND = buffer(120)


def mount(tag: int, folder: int, option: int) -> int:
    if length(folder) > 4095:
        return ENAMETOOLONG
    at = 0
    while load8(folder + at):
        store8(WAY + at, load8(folder + at))
        at += 1
        store8(WAY + at, 0)
        if at > 1 and (load8(folder + at) == 47 or not load8(folder + at)):
            syscall(MKDIR, WAY, 0o755)  # what is there stays
    if syscall(STATFS, WAY, FOUND) == 0 and load64(FOUND) == FUSE_SUPER_MAGIC:
        return 0  # the agent was started again
    flags = MS_NODEV
    if option and same(option, text("ro")):
        flags += MS_RDONLY
    return -syscall(MOUNT, tag, WAY, text("virtiofs"), flags, 0)
