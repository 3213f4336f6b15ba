#!/usr/bin/env python3
"""Derives every id of ids.json anew, with another implementation of XXH3.

Needs the package `xxhash`. `--write` fills in what is expected; the runtime's
own test then checks it in the other direction.
"""

import json
import pathlib
import struct
import sys

import xxhash

PATH = pathlib.Path(__file__).with_name("ids.json")
BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def identity(kind, fields):
    """XXH3-128 over the scheme, the kind and the fields, each with its length."""
    parts = [b"vahti/1", kind.encode(), *fields]
    return xxhash.xxh3_128_intdigest(b"".join(struct.pack("<I", len(p)) + p for p in parts))


def process(kind, v):
    boot_id = bytes.fromhex(v["boot_id"].replace("-", ""))
    fields = [boot_id, struct.pack("<I", v["tgid"]), struct.pack("<Q", v["start_boot_ns"])]
    return identity(kind, fields)


def span(value):
    return f"{(value & (2**64 - 1)) or 1:016x}"


def trace(value):
    return f"{value or 1:032x}"


def event(v):
    boot_id = bytes.fromhex(v["boot_id"].replace("-", ""))
    numbers = struct.pack("<I", v["cpu"]), struct.pack("<Q", v["boot_ns"])
    numbers += struct.pack("<Q", v["seq"]), struct.pack("<I", v["ordinal"])
    entropy = identity("event", [boot_id, v["observer"].encode(), *numbers])
    millis = (v["wall_ns"] // 1_000_000) & (2**48 - 1)
    ulid = (millis << 80) | (entropy >> 48)
    text = "".join(BASE32[(ulid >> (5 * (25 - i))) & 31] for i in range(26))
    return {"id": text, "span_id": span(entropy), "trace_id": trace(entropy)}


DERIVE = {
    "identity_hash": lambda v: f"{identity(v['kind'], [bytes.fromhex(f) for f in v['fields']]):032x}",
    "trace_of_process": lambda v: trace(process("process", v)),
    "entity_of_process": lambda v: f"{process('process', v):032x}",
    "span_of_oom_kill": lambda v: span(process("oom_kill", v)),
    "span_of_process_end": lambda v: span(process("process.end", v)),
    "span_of_container_end": lambda v: span(identity("container.end", [v["container_id"].encode()])),
    "entity_of_container": lambda v: f"{identity('container', [v['container_id'].encode()]):032x}",
    "entity_of_name": lambda v: f"{identity('entity', [v['name'].encode()]):032x}",
    "event": event,
}


def main():
    vectors = json.loads(PATH.read_text())
    wrong = 0
    for vector in vectors:
        derived = DERIVE[vector["derive"]](vector["from"])
        if "--write" in sys.argv:
            vector["expect"] = derived
        elif vector["expect"] != derived:
            wrong += 1
            print(f"{vector['derive']} of {vector['from']}: {vector['expect']}, but is {derived}")
    if "--write" in sys.argv:
        PATH.write_text(json.dumps(vectors, indent=2, ensure_ascii=False) + "\n")
    print(f"{len(vectors)} vectors, {wrong} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
