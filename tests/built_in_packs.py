"""The codepacks that come with qvmi, each with what it cannot do without."""

import tempfile
from pathlib import Path
from typing import Final, cast

from qvmi.cli.declared.words import PACKS
from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.manifest import built_in_manifest
from qvmi.codepacks.packaging.pack_loader import load_installed
from qvmi.codepacks.resources import RESOURCE_GRANTS

__all__ = ["MEMORY_PACKS", "RULES", "made"]

MEMORY_PACKS: Final = tuple(
    name for name in PACKS if RESOURCE_GRANTS.isdisjoint(built_in_manifest(name).grants)
)
"""Those that look at nothing but the guest's memory."""

RULES: Final = 'rule nothing { strings: $n = "what no guest has 7f3a5c" condition: $n }'
"""Rules that match nowhere."""


def made(name: str, interval_s: float) -> Codepack:
    """This makes one of them."""
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder, "nothing.yar")
        rules.write_text(RULES)
        options: dict[str, dict[str, object]] = {"known-malware": {"rules": [str(rules)]}}
        entry = built_in_manifest(name).entry
        return cast("Codepack", load_installed(name, entry, interval_s, **options.get(name, {})))
