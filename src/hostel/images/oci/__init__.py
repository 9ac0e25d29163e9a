"""OCI images: references, registries, layouts and archives, a content-addressed store, unpacked layers and root
folders made of them (image-spec 1.1, distribution-spec 1.1).
"""
