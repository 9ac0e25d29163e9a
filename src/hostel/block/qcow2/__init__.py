"""The qcow2 format, versions 2 and 3, by its specification (docs/interop/qcow2 of QEMU's documentation; "the
specification" in this folder).

``header`` is what an image says of itself, ``refcounts`` which of its clusters are taken, ``mapping`` where the guest's
clusters are, ``disk`` puts them together, ``check`` counts everything and repairs, ``create`` makes new images.
"""
