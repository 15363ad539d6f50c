"""The one door through which every artifact is written and read: whole or not at all, and verified when read.

A file is written under a temporary name, fsynced, hashed (xxh3) and renamed; its hash stands beside it in
`<name>.xxh3`. A folder is the same with `manifest.json` inside, and while it replaces another one, or longer if asked,
that is `<name>.previous`. A log grows by whole lines and has no hash. Formats: `records`; why a crash at any moment
leaves a version that verifies: `files` and `folders`.
"""

from stillhouse.store.digests import Absent, Corrupt
from stillhouse.store.durable import blaming
from stillhouse.store.files import (
    read_bytes,
    read_json,
    read_jsonl,
    read_text,
    verify_file,
    write_bytes,
    write_file,
    write_json,
    write_jsonl,
    write_text,
)
from stillhouse.store.folders import drop_previous, find_folder, remove_folder, verify_folder, write_folder
from stillhouse.store.logs import append_line, read_lines, rewrite_lines

__all__ = [
    "Absent",
    "Corrupt",
    "append_line",
    "blaming",
    "drop_previous",
    "find_folder",
    "read_bytes",
    "read_json",
    "read_jsonl",
    "read_lines",
    "read_text",
    "remove_folder",
    "rewrite_lines",
    "verify_file",
    "verify_folder",
    "write_bytes",
    "write_file",
    "write_folder",
    "write_json",
    "write_jsonl",
    "write_text",
]
