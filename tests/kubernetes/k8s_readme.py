"""What the README's section "On a cluster" has people write and launch."""

from __future__ import annotations

import json
import re
from typing import Any

from k8s_documents import ROOT


def _section() -> str:
    text = (ROOT / "README.md").read_text()
    return text.partition("## On a cluster\n")[2].partition("\n## ")[0]


def cluster_of_readme() -> str:
    """The recipe's section for the cluster, as the README writes it to a file."""
    found = re.search(r"<<'END'\n(.*?)END\n", _section(), re.S)
    assert found
    return found[1]


def launch_of_readme() -> dict[str, Any]:
    """The variables of the GraphQL request that launches the first stage."""
    found = re.search(r"--variables '(\{.*?\})'\n", _section(), re.S)
    assert found
    return dict(json.loads(found[1]))
