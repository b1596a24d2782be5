"""The configuration of a document, and what a test fills in: every change is named, must meet a line
of the document, and is shown as a difference when the test runs."""

import difflib
import os


class Document:
    def __init__(self, test, name):
        self.name = name
        with open(os.path.join(os.path.dirname(os.path.abspath(test)), name), encoding="utf-8") as file:
            self.text = file.read()

    def filled(self, who, changes, added=""):
        """`changes`: the document's words and ours. `added`: lines behind the last one."""
        text = self.text
        for old, new in changes.items():
            assert old in text, f"{self.name} has no '{old}'"
            text = text.replace(old, new)
        text = text.rstrip("\n") + "\n" + added
        shown = difflib.unified_diff(self.text.splitlines(), text.splitlines(), f"{self.name} (document)",
                                     who, n=0, lineterm="")
        print("\n".join(line if len(line) < 100 else line[:97] + "…" for line in shown), flush=True)
        return text
