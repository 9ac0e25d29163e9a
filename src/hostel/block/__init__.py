"""Disks: images of several formats, as chains of layers, behind one interface (``disk.Disk``)."""
