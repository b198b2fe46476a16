"""The page: well-formed, self-contained, complete, and safe with whatever stands in names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from parhelion.packs.format import Fingerprint, ModelEntry
from parhelion.tuning.report.collect import make_report
from parhelion.tuning.report.data import Figure, Point, Report, Size
from parhelion.tuning.report.html import number, percent, seconds, size_of
from parhelion.tuning.report.marks import DARK, LIGHT, SHAPES, marks_for
from parhelion.tuning.report.page import report_page
from parhelion.tuning.report.plot import plot
from parhelion.tuning.report.style import style_sheet
from tests.tuning.report_packs import LINEAR, RMS_NORM, PageReader, pack, row
from tests.tuning.test_report_data import EXPECTED, ops_result, timing

ROWS = (
    row(RMS_NORM, 1, 0.004, helion=2.0, torch=3.0, reference=19.0),
    row(RMS_NORM, 16, 0.06, helion=2.2, torch=3.5),
    row(RMS_NORM, 8192, 33.0, helion=35.0, torch=71.0, reference=420.0),
    row(LINEAR, 1, 16.0, torch=20.0, helion=23.0),
)
HOSTILE = "</title></table><script>alert(1)</script><img src=x onerror='alert(\"1\")'>&amp;"


@pytest.fixture
def report() -> Report:
    return make_report([pack(*ROWS)], None, EXPECTED)


@pytest.fixture
def page(report: Report) -> PageReader:
    return PageReader(report_page(report))


def test_every_figure_of_every_row_stands_in_the_tables(page: PageReader):
    tables = [rows for caption, rows in page.tables if caption == "NVIDIA H100, µs, from h100-sxm"]
    shown = {
        (op, cells[0]): dict(zip(rows[0], cells, strict=True))
        for op, rows in zip(("linear", "rms_norm"), tables, strict=True)
        for cells in rows
    }
    for each in ROWS:
        cells = shown[each.op, str(each.num_tokens)]
        for candidate in (each.best, *each.runners_up):
            assert cells[candidate.provider] == number(candidate.time_us)
        assert cells["floor"] == number(each.floor_us)
        assert cells["of floor"] == percent(each.floor_us / each.best.time_us)
        assert cells["serves"] == each.best.provider
    assert shown["rms_norm", "16"]["reference"] == "-"


def test_equal_reports_give_equal_pages(report: Report):
    assert report_page(report) == report_page(msgspec.json.decode(msgspec.json.encode(report), type=Report))


def test_the_page_needs_nothing_but_itself(report: Report):
    text = report_page(report)
    page = PageReader(text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    assert {"script", "img", "iframe", "object", "embed"}.isdisjoint(page.tags)
    references = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "data", "action")]
    assert references
    ids = {value for name, value in page.attributes if name == "id"}
    assert all(value == "data:," or value.removeprefix("#") in ids for value in references)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes


def test_the_page_says_its_language_its_title_and_its_sources(page: PageReader):
    assert ("lang", "en") in page.attributes
    assert page.titles[0] == "Parhelion report: NVIDIA H100"
    for fact in (
        "NVIDIA H100 (sm_90)",
        "2026-01-02 03:04 UTC",
        "parhelion tune --model qwen3-8b",
        "build.triton 3.9.0",
    ):
        assert fact in page.text


def test_every_table_heads_its_columns_and_rows(page: PageReader):
    assert page.tags.count("th") == sum(name == "scope" for name, _ in page.attributes)
    for _, rows in page.tables:
        assert len({len(cells) for cells in rows}) == 1


def test_a_plot_marks_what_was_measured_and_nothing_else(report: Report):
    figure = next(each for each in report.figures if each.op == "rms_norm")
    drawn = PageReader(plot(figure, marks_for(["helion", "torch", "reference"])))
    assert len(drawn.titles) == len(figure.points) == 8
    assert (
        "helion, M = 1: 2.00 µs (10th to 90th percentile: 1.80 to 2.40 µs); 0.2% of the floor, 0.00400 µs"
        in drawn.titles
    )
    classes = [value for name, value in drawn.attributes if name == "class"]
    # Helion's and torch's two lines each, and the reference's one past M = 16, at which it was not measured.
    assert sum(value.startswith("series") for value in classes) == 5
    assert [value for value in classes if "passes" in value] == ["series s3 passes"]


@pytest.mark.parametrize("floor_us", [0.0, 1.0])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_a_single_time_can_be_drawn(floor_us: float, spread: float):
    size = Size(1, floor_us, "helion")
    figure = Figure("p", "d", "f", "f(n=1)", (size,), (Point(1, "helion", 2.0, spread, spread),))
    drawn = PageReader(plot(figure, marks_for(["helion"])))
    assert ("class", "floor") in drawn.attributes or not floor_us
    for name, value in drawn.attributes:
        if name in ("cx", "cy", "x1", "x2", "y1", "y2"):
            assert 0 <= float(value) <= 460


def test_hostile_names_stay_text(tmp_path: Path):
    contract = f"f(n={HOSTILE})"
    hostile = msgspec.structs.replace(row(contract, 1, 1.0, helion=2.0, **{HOSTILE: 3.0}), op=HOSTILE)
    unmeasured = msgspec.structs.replace(hostile, measured_at=0, chosen_by=HOSTILE)
    made = pack(
        hostile,
        unmeasured,
        name=HOSTILE,
        fingerprint=Fingerprint(HOSTILE, HOSTILE, HOSTILE, 1, 1),
        versions={HOSTILE: HOSTILE},
        command=HOSTILE,
        created_at=HOSTILE,
        models=(ModelEntry(HOSTILE, HOSTILE, ()),),
    )
    matrix = tmp_path / "matrix.json"
    build = {"op": HOSTILE, "target": HOSTILE, "reason": HOSTILE, "instead": HOSTILE}
    matrix.write_text(json.dumps([build]))
    results = tmp_path / "results"
    results.mkdir()
    record = timing(contract, 1, HOSTILE, 2.0)
    (results / "a&b<i>.json").write_text(json.dumps(ops_result(record, device=HOSTILE, command=HOSTILE)))
    page = PageReader(report_page(make_report([made], results, matrix)))
    assert {"script", "img", "i"}.isdisjoint(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert HOSTILE in page.text
    assert "a&b<i>.json" in page.text


def test_one_device_is_not_called_portability(report: Report):
    text = PageReader(report_page(report)).text
    assert "Fraction of the floor" in text
    assert "says nothing about portability" in text
    assert "Performance portability" not in text.replace("A Metric for Performance Portability", "")


def test_two_devices_have_a_score_and_their_own_fractions():
    other = pack(row(LINEAR, 1, 5.0, helion=20.0), name="mi300x", device="MI300X")
    page = PageReader(report_page(make_report([pack(*ROWS), other])))
    headings, linear, overall = page.table("PP over the devices")
    assert headings[1] == "decode, helion"
    # The harmonic mean of 16/23 and 5/20.
    assert linear[:2] == ["linear", percent(2 / (23 / 16 + 20 / 5))]
    assert overall[0] == "all ops"
    assert page.table("On MI300X")[1][1] == "25%"
    assert "Performance Portability" in page.text
    assert "Pennycook" in page.text


def test_the_ledger_shows_costs_and_when_they_are_earned_back(page: PageReader):
    ledger = {cells[0]: cells[1] for cells in page.table("What the packs cost and take")}
    assert ledger["tuning, wall clock"] == "2 h 0 min"
    assert ledger["given up before they ran"] == "37"
    assert ledger["binaries"] == "2 (2.0 KiB)"
    assert ledger["building what is kept, processor time"] == "-"
    rows = {cells[0]: cells for cells in page.table("h100-sxm: 2 h 0 min of tuning")}
    # At M = 1: 2 us against 3 us, and torch's own 20 us, of which nothing is saved.
    assert rows["1"] == ["1", "2", "0", "22.0", "1.00", number(2 * 22.0 / 1.0)]
    assert "GPU-hours = tuning seconds / 3600 × round / saved" in page.text


def test_the_matrix_shows_what_is_built(page: PageReader):
    rows = {cells[0]: cells[1:] for cells in page.table("contracts built, from expected_matrix.json")}
    assert rows["op"][0] == "sm_80"
    assert rows["argmax"][0].startswith("✓")
    assert rows["dynamic_per_token_scaled_fp8_quant"][0].startswith("not built, 0/")


def test_sections_without_data_say_what_to_pass():
    text = PageReader(report_page(make_report([]))).text
    for option in ("--pack or --results", "pass --pack.", "--matrix"):
        assert option in text


def test_a_provider_has_the_same_mark_on_every_page():
    alone, among = marks_for(["torch"]), marks_for(["torch", "helion", "mine", "theirs"])
    assert alone["torch"] == among["torch"]
    assert len(set(among.values())) == 4
    many = marks_for([f"p{number}" for number in range(30)])
    assert {mark.place for mark in many.values()} == set(range(len(SHAPES)))


@pytest.mark.parametrize(("colours", "page"), [(LIGHT, "#ffffff"), (DARK, "#14171a")])
def test_marks_stand_out_from_the_page(colours: tuple[str, ...], page: str):
    """3:1 as WCAG 2.1 asks of graphics (1.4.11)."""
    assert len(colours) == len(SHAPES)
    for colour in colours:
        light, dark = sorted((_luminance(colour), _luminance(page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_the_style_has_a_dark_side_and_a_narrow_one():
    assert "@media (prefers-color-scheme: dark)" in style_sheet()
    assert "@media (max-width" in style_sheet()


def test_figures_have_three_digits_and_no_exponent():
    assert [number(value) for value in (0, 0.00407, 0.9996, 2, 9.996, 17.56, 99.96, 1234.5)] == [
        "0", "0.00407", "1.00", "2.00", "10.0", "17.6", "100", "1234",
    ]  # fmt: skip
    assert [percent(value) for value in (0, 0.0023, 0.042, 0.83, 1.031)] == ["0%", "0.23%", "4.2%", "83%", "103%"]
    assert [seconds(value) for value in (0, 41, 725, 12000)] == ["-", "41.0 s", "12 min 5 s", "3 h 20 min"]
    assert [size_of(value) for value in (512, 1536, 24 << 20, 3 << 30)] == ["512 B", "1.5 KiB", "24.0 MiB", "3.00 GiB"]


def _luminance(colour: str) -> float:
    """Relative luminance of sRGB, as WCAG 2.1 defines it."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
