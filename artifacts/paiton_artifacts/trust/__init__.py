"""Who vouches for a bundle: OpenSSF Model Signing signatures, and the policy that decides whether one is needed.

A signature is a file beside the manifest (`layout.SIGNATURE_NAME`): a Sigstore bundle (JSON) of a DSSE envelope of an
in-toto statement that lists every file with its SHA-256. The manifest is one of them and holds the digests of all that
a boot uses, so a runtime checks the signature over the manifest and the manifest's digests over everything else, while
any other tool that knows the format checks the files themselves.

`policy.py` is what readers and stores ask; `sign.py` is what `paiton-build sign` calls.
"""
