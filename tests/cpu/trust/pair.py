"""A key pair on disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from paiton_artifacts.trust.keys import load_trusted_keys
from paiton_artifacts.trust.policy import Policy


class KeyPair(NamedTuple):
    """Files of a private and a public key (PEM)."""

    private: Path
    public: Path

    def policy(self, *, require_signature: bool = True) -> Policy:
        """Returns a policy that trusts this key alone."""
        return Policy(load_trusted_keys([self.public]), require_signature=require_signature)
