"""Bundles in object storage and in the local cache. `docs/store.md` describes the keys and the guarantees.

::

    address   URLs of bundles                       client   one object store, with bounded retries
    keys      where things lie in a store           remote   tags, manifests and attachments of one store
    push      uploads what is missing               fetch    chunks into files, verified on the way
    collect   gc                                    cache    complete bundles on this machine
    listing   ls and diff                           resolve  from a URL to a directory that `open_bundle` opens

Nothing here is imported by a boot from a local path, and obstore only by `client`, when a store is opened.
"""
