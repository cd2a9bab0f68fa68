"""Write hashes.txt: the sha256 of every file that the pins of constraints.txt may be installed from.

    .venv/bin/python tools/lock.py [FILE ...]

Files are those of the package index (PEP 691), of Python 3.11 and newer; the CPU builds of torch are not
there: give their wheels. Hashes of versions that stay are kept, so that such files are given once.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS, HASHES = ROOT / "constraints.txt", ROOT / "hashes.txt"
INDEX = "https://pypi.org/simple/{}/"
COMPILED = {"llama-cpp-python"}  # from source always
OLD = re.compile(r"(cp|pp)(2|3([0-9]|10)(?!\d))|pp3")
HEAD = """# Written by tools/lock.py: the files that tools/install.py lets pip install.
# After a change of constraints.txt: .venv/bin/python tools/lock.py
"""


def main(files: list[str]) -> None:
    """Look up every pin, and write the file."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE))
    known = read() if HASHES.exists() else {}
    given: dict[str, set[str]] = {}
    for file in map(Path, files):
        name, version, *_ = parse_wheel_filename(file.name)
        pin = f"{name}=={version.public}"
        given.setdefault(pin, set()).add(hashlib.sha256(file.read_bytes()).hexdigest())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(hashes_of, pins, pins.values()))
    lines = [HEAD]
    for name, version, hashes in sorted(zip(map(canonicalize_name, pins), pins.values(), found, strict=True)):
        pin = f"{name}=={version}"
        hashes |= given.get(pin, set()) | known.get(pin, set())
        lines.append(" \\\n".join([pin, *(f"    --hash=sha256:{value}" for value in sorted(hashes))]) + "\n")
    HASHES.write_text("".join(lines), encoding="utf-8")


def read() -> dict[str, set[str]]:
    """hashes.txt as pin -> hashes."""
    entries = HASHES.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    split = [entry.split() for entry in entries if not entry.startswith("#")]
    return {pin: {value.removeprefix("--hash=sha256:") for value in values} for pin, *values in split}


def hashes_of(name: str, version: str) -> set[str]:
    """sha256 of a version's files; SystemExit if the index has none."""
    request = urllib.request.Request(
        INDEX.format(canonicalize_name(name)), headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    found = {
        kind: {
            f["hashes"]["sha256"]
            for f in files
            if f["filename"].endswith(kind) and _version(f["filename"]) == Version(version)
        }
        for kind in (".whl", ".tar.gz", ".zip")
    }
    chosen = found[".tar.gz"] | found[".zip"] if name in COMPILED or not found[".whl"] else found[".whl"]
    return chosen or sys.exit(f"error: {INDEX.format(name)} has no file of {name} {version}")


def _version(filename: str) -> Version | None:
    """The version of a file that pip may take; None for others, and for names of long ago."""
    try:
        if not filename.endswith(".whl"):
            return parse_sdist_filename(filename)[1]
        _, version, _, tags = parse_wheel_filename(filename)
    except ValueError:
        return None
    return None if all(OLD.match(tag.interpreter) and tag.abi != "abi3" for tag in tags) else version


if __name__ == "__main__":
    main(sys.argv[1:])
