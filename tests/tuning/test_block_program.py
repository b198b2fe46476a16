"""The Gluon program of ``decoder_block``, compiled for a Hopper here: what it takes, and what ptxas made of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton

from parhelion.ops.decoder_block import OP
from parhelion.ops.quantize import FP8
from parhelion.tuning.build_rows import untuned_config
from parhelion.tuning.cross_compile import cross_compile
from parhelion.tuning.programs import programs_of
from parhelion.tuning.prune import spilled_bytes, why_dropped
from parhelion.tuning.record import GeneratedCode
from parhelion.tuning.resources import cuobjdump
from parhelion.tuning.target import target
from tests.tuning.triton_programs import cast_launch

SM_90 = target("sm_90")
PLAIN, NORMED, LARGE = OP.examples

MADE = re.compile(r"\bF2FP\.\S*E4M3\.F16\S*")
"""FP8 codes of float16: of the types that a conversion names, the first is what it gives."""

READ_BACK = re.compile(r"\bF2FP\.\S*E4M3\.UNPACK_B\S*")
"""What FP8 codes say, as float16."""


@pytest.fixture(autouse=True)
def _as_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")


def instructions(cubin: bytes, folder: Path) -> str:
    path = folder / "program.cubin"
    path.write_bytes(cubin)
    command = [str(cuobjdump()), "-sass", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


OF_ONE = ("_gluon_decoder_block", 4 + 4)
OF_ROWS = ("gluon_decoder_rows", 8 + 4)
"""Which program it is, and its warps."""


# Each takes some ten seconds, most of them in ptxas.
@pytest.mark.parametrize(
    ("contract", "bucket", "expected"),
    [(PLAIN, 1, OF_ONE), (NORMED, 1, OF_ONE), (NORMED, 8, OF_ROWS), (LARGE, 16, OF_ROWS)],
    ids=["plain", "head norms", "head norms, 8 tokens", "8B, 16 tokens"],
)
def test_the_program_fits_a_processor_and_reads_no_code_back(contract, bucket: int, expected, tmp_path: Path):
    config = untuned_config(contract, bucket, SM_90)
    programs = programs_of(contract, bucket, config, SM_90, GeneratedCode())
    # Of several tokens one for rows of one sequence as well.
    assert len(programs) == (1 if expected == OF_ONE else 2)
    for number, program in enumerate(programs):
        binary = program.binary
        assert (binary.symbol, binary.num_warps) == expected
        # That one may lack two registers.
        assert spilled_bytes([program]) <= 8 * number
        # The ring is there, and all that lies beside it.
        assert config.ring * 64 * config.tile_k < binary.shared_bytes <= SM_90.max_shared_bytes
        assert why_dropped([program], SM_90) is None
        shown = instructions(program.data, tmp_path)
        assert "QGMMA" in shown
        assert MADE.search(shown)
        # ptxas 12.8 mistakes the register of a code that is also stored.
        assert READ_BACK.findall(shown) == []


def test_codes_that_are_read_back_are_told_from_those_that_are_made(tmp_path: Path):
    widened = instructions(cross_compile(cast_launch(FP8, torch.float16), SM_90).data, tmp_path)
    assert READ_BACK.search(widened)
    assert not MADE.search(widened)
    narrowed = instructions(cross_compile(cast_launch(torch.float16, FP8), SM_90).data, tmp_path)
    assert MADE.search(narrowed)
    assert not READ_BACK.search(narrowed)
