"""hostel beside its peers on one machine: ``python -m bench`` prints a table, ``python -m bench --help`` the rest.

A peer (hostel, QEMU's TCG, the host itself) is a shell that takes commands over a pair of pipes; ``peer`` says what
they have in common, ``hostel``, ``qemu`` and ``native`` what differs. What is measured is a ``Row``, in ``rows/`` one
file a group; adding a row touches that file only. Runs of the peers alternate, so that a busy host is busy for all of
them, and each row's ratio is taken within a run before the median over the runs.
"""
