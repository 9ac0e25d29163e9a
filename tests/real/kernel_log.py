"""What a guest's kernel complains of."""

import re

# Warnings have a level; these say the same at any: stalls of RCU, lockups, clocks that are given up.
WORDS = re.compile(r"\bstall|lockup|unstable|skew|hung_task|blocked for more|WARNING:|BUG:|Oops|Call Trace|nobody")
# "Booting SMP configuration: #1 #2" comes in pieces; one that another message has cut off has the default level.
PIECE = re.compile(r"\[ *\d+\.\d+\] +#\d+")
# dm.c (dm_init) warns of how Debian configures its kernels, on any machine, where systemd loads the module.
CONFIGURATION = re.compile(r"device-mapper: core: CONFIG_IMA_DISABLE_HTABLE is disabled")


def complaints(vm) -> list[str]:
    """Lines of warning level or worse (printk.h: KERN_WARNING is 4), or with words that kernels use for trouble."""
    log = vm.exec(["dmesg", "-r"], timeout=60, check=True).stdout
    lines = re.findall(r"^<(\d+)>(.*)", log, re.MULTILINE)
    assert lines, "no kernel log"
    return [
        text
        for level, text in lines
        if (int(level) & 7 <= 4 or WORDS.search(text)) and not PIECE.fullmatch(text) and not CONFIGURATION.search(text)
    ]
