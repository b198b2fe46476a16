"""Packs with measured times, and a strict reader of the page."""

from __future__ import annotations

from html.parser import HTMLParser

import msgspec

from parhelion.packs.format import Binary, Candidate, Fingerprint, Ledger, Pack, Recipe, Row

RMS_NORM = "rms_norm(hidden_size=4096, dtype=bfloat16)"
LINEAR = "linear(in_features=4096, out_features=6144, dtype=bfloat16)"
BINARY = Binary("rms_norm.rms_norm", {}, (), "k", "k.cubin", "0" * 64, 2048, 4, 0, 32, 0, Recipe((), ("1",), ()))


def candidate(provider: str, time_us: float) -> Candidate:
    return Candidate(provider, None, time_us, time_us * 0.9, time_us * 1.2)


def row(contract: str, num_tokens: int, floor_us: float, **times: float) -> Row:
    """A row whose first provider serves."""
    best, *others = [candidate(name, time_us) for name, time_us in times.items()]
    op = contract.partition("(")[0]
    return Row(op, contract, num_tokens, best, tuple(others), floor_us, num_tokens, 1e-3, 30.0, 12)


def pack(*rows: Row, name: str = "h100-sxm", device: str = "NVIDIA H100", **changes: object) -> Pack:
    made = Pack(
        format_version=1,
        name=name,
        fingerprint=Fingerprint("nvidia", device, "sm_90", 132, 80 << 30, 3e12),
        rows=rows,
        binaries=(BINARY, msgspec.structs.replace(BINARY, kinds=("int32[1]",))),
        source_hashes={},
        versions={"torch": "2.11.0", "build.triton": "3.9.0"},
        command="parhelion tune --model qwen3-8b",
        created_at="2026-01-02T03:04:05+00:00",
        ledger=Ledger(tune_s=7200.0, gpu_s=3600.0, num_compiled=512, num_dropped=37, num_timed=475, launch_us=4.1),
    )
    return msgspec.structs.replace(made, **changes)


class PageReader(HTMLParser):
    """Reads a page whose every element is closed, and remembers what it holds.

    Attributes:
        tags: of all elements. attributes: name and value of all of them.
        tables: each with its caption and its rows of cells, the headings first.
        titles: the texts of all ``title`` elements.
        text: everything that is read.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.titles: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def table(self, caption: str) -> list[list[str]]:
        """The rows of the only table with this caption."""
        [rows] = [rows for found, rows in self.tables if found == caption]
        return rows

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        self.open.append(tag)
        if tag == "table":
            self.tables.append(("", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][1][-1].append("")
        elif tag == "title":
            self.titles.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "caption" in self.open:
            self.tables[-1] = (self.tables[-1][0] + data, self.tables[-1][1])
        elif "th" in self.open or "td" in self.open:
            self.tables[-1][1][-1][-1] += data
        elif "title" in self.open:
            self.titles[-1] += data
