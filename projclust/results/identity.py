"""What makes two experiments the same one."""

import hashlib
import json
from typing import Any


def identity_hash(identity: dict[str, Any]) -> str:
    """SHA-256 of everything that defines an experiment: equal hashes, equal experiments."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
