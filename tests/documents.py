"""The commands of the documentation, which tests run as they are printed."""

import re

from tests.tiny_config import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def documented() -> list[str]:
    """Every command in a code block of the documentation, its line breaks undone."""
    commands = []
    for document in DOCUMENTS:
        for block in re.findall(
            r"```(?:sh|bash|console)\n(.*?)```", document.read_text(), re.DOTALL
        ):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                if line.strip() and not line.startswith("#"):
                    commands.append(line.strip())
    return commands
