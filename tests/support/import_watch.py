"""Run `shim serve`, and write which modules it imported: when, and whether on the event loop's thread.

`python -m tests.support.import_watch FILE …`: what follows the file is ignored, so that these words can
precede the command line of a shim.
"""

from __future__ import annotations

import atexit
import json
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Imports:
    """What a process imported. `on_loop`: each import that the thread of the event loop began, with its time
    (`time.monotonic`). `modules`: all modules at the end."""

    on_loop: tuple[tuple[float, str], ...]
    modules: frozenset[str]

    def on_loop_since(self, moment: float) -> list[str]:
        return [name for began, name in self.on_loop if began >= moment]

    def loaded(self, *names: str) -> list[str]:
        """Return those of the modules and packages that are loaded."""
        return [
            name
            for name in names
            if any(each == name or each.startswith(f"{name}.") for each in self.modules)
        ]


def read_imports(file: Path) -> Imports:
    """Read what a process has written at its end."""
    content = json.loads(file.read_text())
    on_loop = tuple((float(began), str(name)) for began, name in content["on_loop"])
    return Imports(on_loop, frozenset(content["modules"]))


class _Watch:
    """A finder that finds nothing: Python asks it first for each module that is not loaded."""

    def __init__(self) -> None:
        self.on_loop: list[tuple[float, str]] = []
        self._loop = threading.get_ident()

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if threading.get_ident() == self._loop:
            self.on_loop.append((time.monotonic(), name))

    def write(self, file: Path) -> None:
        # None stands for a module that must not be loaded.
        loaded: dict[str, object] = dict(sys.modules)
        modules = [name for name, module in loaded.items() if module is not None]
        file.write_text(json.dumps({"on_loop": self.on_loop, "modules": modules}))


def main() -> None:
    watch = _Watch()
    sys.meta_path.insert(0, watch)
    atexit.register(watch.write, Path(sys.argv[1]).absolute())
    sys.argv[1:] = ["serve"]
    from shim.__main__ import main as run

    run()


if __name__ == "__main__":
    main()
