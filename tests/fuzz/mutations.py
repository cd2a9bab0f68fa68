"""Damaged and hostile variants of a file: bytes, JSON values, lines and the names in a zip file."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

HEADER = 4096  # sizes and offsets are near the beginning of binary files
NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "a",
    "../../outside", "/tmp/outside", "C:\\outside", "\x00", "\ud800", "%s{0}", "0-99999999999", "é" * 5000,
    [], {}, [[]], [None], [1, "a"], {"": None}, {"a": {"a": {}}},
)  # fmt: skip
_GROW = "{%% set n = namespace(t=%s) %%}{%% for i in range(90) %%}{%% set n.t = %s %%}{%% endfor %%}"
JINJA = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{{ messages }}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    *(_GROW % ("'aa'", step) for step in ("n.t ~ n.t", "n.t + n.t", "n.t | replace('a', n.t)")),
    *(
        _GROW % ("'aa'", step)
        for step in ("[n.t, n.t] | join", "n.t.replace('a', n.t)", "''.join([n.t, n.t])")
    ),
    *(_GROW % ("[1]", step) for step in ("[n.t, n.t] | sum(start=[])", "n.t + n.t", "n.t * 2")),
    *(
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ 'a' * 10 ** 12 }}",
        "{{ 1 << 99 }}",
        "{{ 1 // 0 }}",
        "{{ [1] * 10**12 }}",
    ),
    *("{{ 'a' | center(10**12) }}", "{{ '%999999999999d' % 1 }}", "{{ '%*d' | format(10**12, 1) }}"),
    *("{{ '{:>999999999999}'.format(1) }}", "{{ '{:>{}}'.format(1, 10**12) }}", "{{ 'a'.ljust(10**12) }}"),
    *("{{ lipsum(n=10**9) }}", "{{ messages | tojson(indent=10**12) }}", "{{ range(10**12) | list }}"),
    *("{{ [1] | batch(10**12, 1) | list }}", "{{ [1] | slice(10**12) | list }}", "{{ ''.zfill(10**12) }}"),
    *("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__ }}", "{{ self._x }}"),
    *("{{ messages.append(messages) }}", "{{ namespace(__class__=1) }}", "{{ dict.__base__ }}"),
    *("{{ raise_exception('no') }}", "{{ raise_exception() }}", "{{ strftime_now('%') }}"),
    *("{{ strftime_now(1) }}", "{{ strftime_now('%Y' * 99999) }}", "{{ strftime_now('\ud800') }}"),
    *("{% include 'a' %}", "{% import '/etc/passwd' as a %}", "{% extends messages %}", "{% block a %}"),
    *("{% endfor %}", "{% raw %}", "{# ", "{{ ", "{% if %}", "{% set %}", "{% generation %}", "{% break %}"),
    *("{{ nothing.at.all }}", "{{ nothing() }}", "{{ 'a' | nothing }}", "{{ caller() }}", "{{ loop.index }}"),
    "{% for a in nothing recursive %}{{ loop(a) }}{% endfor %}",
    *("{{ " + "(" * 5000 + ")" * 5000 + " }}", "{{ " + "-" * 5000 + "1 }}", "{{ " + "1 + " * 9000 + "1 }}"),
    *("{% if 1 %}" * 300, "{% for a in [1] %}" * 30, "{% set messages = 1 %}"),
    "{% set minigpt_edge_deadline = 10**9 %}",
)
NAMES = (
    "../outside",
    "/tmp/outside",
    "a/../../outside",
    "C:\\outside",
    "..",
    "",
    "a\x00b",
    "manifest.json/",
    "con",
)


def mutate(name: str, data: bytes, chance: random.Random) -> bytes:
    """A variant of a file's content: a change of its structure where that is known, else of its bytes."""
    kind = name.rpartition(".")[2]
    structured = {
        "json": _json,
        "jsonl": _lines,
        "toml": _lines,
        "csv": _lines,
        "tsv": _lines,
        "zip": _zip,
        "jinja": _template,
    }.get(kind)
    if structured and chance.random() < 0.75:
        try:
            return structured(data, chance)
        except (ValueError, zipfile.BadZipFile):
            pass
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        data = _bytes(data, chance)
    return data


def _bytes(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return chance.randbytes(chance.randrange(1, 64))
    at = chance.randrange(min(len(data), HEADER) if chance.random() < 0.7 else len(data))
    size = min(chance.choice((1, 2, 4, 8, 64, 1000)), len(data) - at)
    made = {
        "flip": lambda: bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :],
        "number": lambda: _number(chance) + data[at + size :],
        "random": lambda: chance.randbytes(size) + data[at + size :],
        "delete": lambda: data[at + size :],
        "repeat": lambda: data[at : at + size] * chance.choice((2, 3, 100)) + data[at + size :],
        "insert": lambda: chance.randbytes(size) + data[at:],
        "zero": lambda: bytes(size) + data[at + size :],
        "truncate": lambda: b"",
    }
    return data[:at] + made[chance.choice(list(made))]()


def _number(chance: random.Random) -> bytes:
    code = chance.choice(("<B", "<H", "<I", "<Q", ">I", ">Q"))
    return struct.pack(code, chance.choice(NUMBERS) % 256 ** struct.calcsize(code))


def _json(data: bytes, chance: random.Random) -> bytes:
    value = json.loads(data)
    if chance.random() < 0.02:  # too deep for a recursive reader
        return b"[" * 100_000 + data + b"]" * 100_000
    return json.dumps(changed(value, chance)).encode()


def changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with one value in it replaced, removed or repeated, or one key renamed."""
    places = list(_places(value))
    if not places:
        return chance.choice(VALUES)
    # of a vocabulary's thousand entries and a config's ten the ten shall be met too
    holder, key = chance.choice(chance.choice(places))
    what = chance.random()
    if what < 0.6:
        holder[key] = chance.choice(VALUES)
    elif what < 0.75 and isinstance(holder[key], int) and not isinstance(holder[key], bool):
        holder[key] += chance.choice((-1, 1, 7, 1000))
    elif what < 0.9:
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, holder[key])
    else:
        holder[f"{key}x"] = holder.pop(key)
    return value


def _places(value: Any) -> Iterator[list[tuple[Any, Any]]]:
    """The places of values, container by container."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        if keys:
            yield [(value, key) for key in keys]
        for key in list(keys)[:50]:
            yield from _places(value[key])


def _lines(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    if not lines:
        raise ValueError("no lines")
    at = chance.randrange(len(lines))
    what = chance.random()
    if what < 0.3 and lines[at].strip().startswith(b"{"):
        lines[at] = json.dumps(changed(json.loads(lines[at]), chance)).encode() + b"\n"
    elif what < 0.5:
        name, equals, _ = lines[at].partition(b"=")
        lines[at] = name + equals + b" " + json.dumps(chance.choice(VALUES)).encode() + b"\n"
    elif what < 0.6:
        del lines[at]
    elif what < 0.7:
        lines.insert(at, lines[at])
    elif what < 0.8:
        lines[at] = lines[at].rstrip(b"\n") * 20_000 + b"\n"
    else:
        lines[at] = _bytes(lines[at], chance)
    return b"".join(lines)


def _template(data: bytes, chance: random.Random) -> bytes:
    """A template with a piece of another meaning between two of its tags, or with one of its tags changed."""
    parts = re.split(rb"(\{[%{].*?[%}]\})", data, flags=re.DOTALL)
    at, hostile = chance.randrange(len(parts)), chance.choice(JINJA).encode()
    what = chance.random()
    if what < 0.5:
        parts.insert(at, hostile)
    elif what < 0.7:
        parts[at] = hostile
    elif what < 0.8:
        parts[at] *= chance.choice((2, 50, 5000))
    elif what < 0.9:
        del parts[at]
    else:
        parts[at] = _bytes(parts[at], chance)
    return b"".join(parts)


def _zip(data: bytes, chance: random.Random) -> bytes:
    """The same entries, one of them with a hostile name, as a link, twice, or much larger than it says."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        chosen = chance.choice(old.namelist())
        for name in old.namelist():
            content, entry = old.read(name), zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            what = chance.random() if name == chosen else 1.0
            if what < 0.4:
                entry.filename = chance.choice(NAMES)
            elif what < 0.55:
                entry.external_attr, content = 0o120777 << 16, b"../../outside"
            elif what < 0.7:
                content = bytes(200_000_000)
            elif what < 0.85:
                content = mutate(name, content, chance)
            new.writestr(entry, content)
            if 0.85 <= what < 1:
                new.writestr(name, content)
    if chance.random() < 0.3:
        return _bytes(out.getvalue(), chance)
    return out.getvalue()
