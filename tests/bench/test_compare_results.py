"""Floors, ratios, tables and the plot of a comparison, from planted samples."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from parhelion.bench.compare.checkpoint import (
    QWEN3_1_7B,
    QWEN3_8B,
    TINY,
    compared_model,
    kv_bytes_per_token,
    linear_elements,
    prefill_flops,
    step_bytes,
    write_config,
    write_tokenizer,
)
from parhelion.bench.compare.device import Probe
from parhelion.bench.compare.plot import plot
from parhelion.bench.compare.protocol import EngineFacts
from parhelion.bench.compare.results import EngineRow, LoadFigures, OnlineRow, Sample, make_row, spread
from parhelion.bench.compare.settings import OfflineSettings, OnlineSettings
from parhelion.bench.compare.table import to_tables
from parhelion.errors import ConfigError
from parhelion.models.tokenizer import load_tokenizer
from tests.bench.compare_bench import make_bench

SETTINGS = OfflineSettings(batches=(2,), input_length=8, output_length=11, rounds=3)


def samples(tpot_ms: list[float], tokens: int = 22, checksum: int = 7) -> list[Sample]:
    return [Sample(0.1, 0.1 + 0.01 * each, 2, tokens, checksum) for each in tpot_ms]


def test_floors_are_the_published_ones() -> None:
    # Bytes a step, over 3.02e12 bytes/s: what was measured and written down for these models at a context of 576.
    for shape, expected in ((QWEN3_1_7B, (0.69, 1.02, 2.07, 6.27)), (QWEN3_8B, (2.74, 3.16, 4.51, 9.91))):
        floors = [step_bytes(shape, batch, 576) / 3.02e12 * 1e3 for batch in (1, 16, 64, 256)]
        assert floors == pytest.approx(expected, abs=0.01)
    assert kv_bytes_per_token(QWEN3_8B) == 147_456


def test_the_floor_of_unquantized_weights_reads_them_twice_as_wide(tmp_path: Path) -> None:
    model = compared_model(str(write_config(TINY, tmp_path / "plain", None)), tmp_path)
    narrow = compared_model("tiny", tmp_path)
    head = 2 * TINY.hidden_size * TINY.vocab_size
    wide, kv = model.floor_bytes(1, 1), kv_bytes_per_token(TINY)
    assert wide is not None
    assert narrow.floor_bytes(1, 1) == (wide - head - kv) // 2 + head + kv
    assert (model.name, model.load_format) == ("plain", "dummy")


def test_prompts_need_their_products_or_the_weights_bytes(tmp_path: Path) -> None:
    model = compared_model("tiny", tmp_path)
    heads = TINY.num_attention_heads * TINY.head_dim
    kv = 2 * TINY.num_key_value_heads * TINY.head_dim
    weights = TINY.num_hidden_layers * TINY.hidden_size * (2 * heads + kv + 3 * TINY.intermediate_size)
    assert linear_elements(TINY) == weights
    # Each of 4 tokens looks at itself and those before it: 10 scores a head and prompt, and as many weighted values.
    attention = TINY.num_hidden_layers * heads * (2 * 10 + 2 * 10)
    head = TINY.hidden_size * TINY.vocab_size
    linear, other = prefill_flops(TINY, 3, 4)
    assert (linear, other) == (2 * weights * 3 * 4, 3 * (attention + 2 * head))

    slow = Probe("cuda", "slow products", 1e15, "", {1: 1e9, 2: 5e8})
    assert model.prefill_floor_s(3, 4, slow) == pytest.approx(linear / 1e9 + other / 5e8)
    slow = Probe("cuda", "slow memory", 1e3, "", {1: 1e15, 2: 1e15})
    assert model.prefill_floor_s(3, 4, slow) == pytest.approx(step_bytes(TINY, 3, 4) / 1e3)
    assert model.prefill_floor_s(3, 4, Probe("cuda", "no FP8", 1e9, "", {2: 1e9})) is None


def test_a_mixture_of_experts_has_no_floor(tmp_path: Path) -> None:
    where = write_config(TINY, tmp_path / "moe", None)
    config = json.loads((where / "config.json").read_text()) | {"num_experts": 8}
    (where / "config.json").write_text(json.dumps(config))
    assert compared_model(str(where), tmp_path).floor_bytes(1, 1) is None
    rates = {1: 1e9, 2: 1e9}
    assert compared_model(str(where), tmp_path).prefill_floor_s(1, 1, Probe("cuda", "any", 1e9, "", rates)) is None
    assert make_row("moe", 2, SETTINGS, None, {"parhelion": samples([1.0])}).of_floor == {}


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'gpt-9' is neither a model known here \(tiny, "):
        compared_model("gpt-9", tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 8, "num_attention_heads": 2}')
    with pytest.raises(ConfigError, match="lacks 'intermediate_size'"):
        compared_model(str(tmp_path), tmp_path)


def test_ratios_are_formed_within_each_round() -> None:
    # The machine slowed down in the second round, for both: the medians alone would say 1, as no round does.
    row = make_row("m", 2, SETTINGS, None, {"parhelion": samples([1.0, 4.0, 2.0]), "vllm": samples([2.0, 8.0, 1.0])})
    assert row.tpot_ms == pytest.approx({"parhelion": 2.0, "vllm": 2.0})
    ratio = row.tpot_ratio["vllm"]
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((2.0, 0.5, 2.0))


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        (samples([1.0], tokens=21), "vllm generated 21 tokens in round 1 where 22 were asked for"),
        (samples([1.0], checksum=8), "the prompts of round 1 differ"),
        (samples([0.0]), "too short to be timed"),
    ],
)
def test_times_of_different_work_give_no_ratio(theirs: list[Sample], why: str) -> None:
    row = make_row("m", 2, SETTINGS, None, {"parhelion": samples([1.0]), "vllm": theirs})
    assert row.tpot_ratio == row.prefill_ratio == {}
    assert why in row.refused["vllm"]


def test_own_tokens_that_are_missing_refuse_the_ratio_too() -> None:
    row = make_row("m", 2, SETTINGS, None, {"parhelion": samples([1.0], tokens=20), "vllm": samples([1.0], tokens=20)})
    assert "parhelion generated 20" in row.refused["vllm"]


@pytest.fixture
def bench(tmp_path: Path):
    bench = make_bench(tmp_path, SETTINGS)
    for batch, mine in ((2, 1.0), (16, 2.0)):
        theirs = samples([2.0, 2.5, 2.0], tokens=22 * batch // 2)
        ours = [Sample(0.1, 0.1 + 0.01 * mine, batch, 11 * batch, 7)] * 3
        theirs = [Sample(s.prefill_s, s.whole_s, batch, s.whole_tokens, 7) for s in theirs]
        bench.recorder.put_row(make_row("tiny", batch, SETTINGS, 5e-4, {"parhelion": ours, "<vllm>": theirs}))
    bench.recorder.put_engine(EngineRow("tiny", "parhelion", 1.0, 2.0, 3.0, 3.5))
    bench.recorder.put_engine(EngineRow("tiny", "<vllm>", error="<vllm> ended with status 1"))
    return bench


def test_tables_show_floors_ratios_and_loads(bench) -> None:
    one = spread([3.0])
    figures = LoadFigures(*[one] * 12, spread([0.5]), 2)
    bench.recorder.put_online(OnlineRow("tiny", "open", None, 4.5, {"parhelion": figures}, {}))
    console = Console(width=200, record=True, file=StringIO())
    console.print(to_tables(bench.recorder.comparison))
    text = console.export_text()
    for shown in ("2.00x (2.00 to 2.50)", "50%", "given up", "4.5 requests/s", "3.00 / 3.00", "a planted device"):
        assert shown in text


def test_a_size_between_is_served_as_the_next_larger_one() -> None:
    facts = EngineFacts(block_kernels={1: ["a=helion"], 4: ["a=helion", "b=torch"]})
    assert [len(facts.block_at(batch)) for batch in (1, 2, 4, 5)] == [1, 2, 2, 2]
    assert EngineFacts().block_at(1) == []


def test_the_plot_is_one_svg_file_that_needs_nothing_else(bench) -> None:
    text = plot(bench.recorder.comparison)
    tree = ElementTree.fromstring(text)
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    words = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"parhelion", "<vllm>", "floor", "2", "16"} <= set(words)
    titles = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert "<vllm>, batch 16: 2.00 ms" in titles
    assert "href" not in text
    assert "url(" not in text


def test_servers_measured_one_after_the_other_share_a_row(bench) -> None:
    figures = LoadFigures(*[spread([3.0])] * 13, 0)
    for name in ("parhelion", "vllm"):
        bench.recorder.put_online(OnlineRow("tiny", "closed", 8, None, {name: figures}, {}))
    (row,) = bench.recorder.comparison.online
    assert list(row.engines) == ["parhelion", "vllm"]


def test_the_made_up_tokenizer_has_every_id_and_both_readers_agree(tmp_path: Path) -> None:
    folder = write_config(TINY, tmp_path, None)
    write_tokenizer(folder, TINY.vocab_size)
    mine, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert mine.vocab_size == TINY.vocab_size == len(theirs)
    ids = [70, 300, 1023]
    assert mine.decode(ids) == theirs.decode(ids) == theirs.decode([70]) + "w44w767"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OfflineSettings(batches=(0,)), "batches is"),
        (lambda: OfflineSettings(output_length=1), "output_length is 1; it must be at least 2"),
        (lambda: OfflineSettings(device="cuda:1"), "CUDA_VISIBLE_DEVICES"),
        (lambda: OfflineSettings(batches=(9000,)), "below the largest batch"),
        (lambda: OnlineSettings(rates=(0.0,)), "must be above 0 requests a second"),
        (lambda: OnlineSettings(concurrency=0), "concurrency is 0"),
        (lambda: OnlineSettings(stricter_tpot_limits_ms=(5.0, 0.0)), "stricter_tpot_limits_ms are"),
    ],
)
def test_unusable_settings_are_refused_by_name(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
