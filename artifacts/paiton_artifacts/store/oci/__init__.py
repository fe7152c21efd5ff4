"""Bundles in OCI registries (`oci://`): the distribution protocol, and bundles as ModelPack artifacts.

::

    transport    HTTP requests: connections that are kept, redirects, deadlines
    credentials  user names and passwords, from the environment and Docker's configuration
    login        answers a registry's challenges
    artifact     a bundle as an OCI manifest, and back
    registry     one repository, with the operations that the rest of `store` needs

Only the standard library, and imported only for a URL that begins with `oci://`.
"""
