"""What makes a pack's rows stale: the sources that binaries and configs depend on, and nothing else."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import parhelion.ops
from parhelion.errors import ConfigError
from parhelion.ops.registry import op_names
from parhelion.ops.source_hash import hash_in, source_hash, source_hashes, sources_in

OPS = Path(parhelion.ops.__file__).parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all ops; nobody changes it."""
    folder = tmp_path_factory.mktemp("copy") / "ops"
    shutil.copytree(OPS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def changed(copy: Path, file: str, old: str, new: str, tmp_path: Path) -> set[str]:
    """The ops whose hash differs once a file says something else."""
    before = {name: hash_in(copy, name) for name in op_names()}
    # Another folder: hashes are remembered by path.
    after = tmp_path / "changed"
    shutil.copytree(copy, after)
    text = (after / file).read_text()
    assert old in text
    (after / file).write_text(text.replace(old, new, 1))
    return {name for name in op_names() if hash_in(after, name) != before[name]}


def test_a_copy_has_the_same_hashes(copy: Path) -> None:
    own = {name: hash_in(copy, name) for name in op_names()}
    assert own | {"fused_rope_attention.gluon": hash_in(copy, "decode_attention")} == source_hashes()
    assert len(set(source_hashes().values())) == len(op_names()) + 1
    assert source_hashes(["rms_norm", "decoder_block"]) == {name: own[name] for name in ("rms_norm", "decoder_block")}


def test_a_tile_program_concerns_its_own_op(copy: Path, tmp_path: Path) -> None:
    file = "silu_and_mul/helion_kernel.py"
    assert changed(copy, file, "import helion\n", "import helion as helion\n", tmp_path) == {"silu_and_mul"}


def test_a_tile_program_concerns_an_op_that_launches_it_as_one_of_its_halves(copy: Path, tmp_path: Path) -> None:
    file = "paged_attention/helion_kernel.py"
    users = {"paged_attention", "fused_rope_attention"}
    assert changed(copy, file, "-3.0e38", "-2.0e38", tmp_path) == users


def test_a_shared_tile_program_concerns_all_that_launch_it(copy: Path, tmp_path: Path) -> None:
    gemms = {"linear", "scaled_mm", "scaled_mm_blockwise", "weight_only_mm"}
    assert changed(copy, "gemm/helion_kernel.py", "2.0**120", "2.0**121", tmp_path) == gemms


def test_one_tile_program_serves_two_types_of_codes_and_attention(copy: Path, tmp_path: Path) -> None:
    file = "dynamic_per_token_scaled_fp8_quant/helion_kernel.py"
    twins = {"dynamic_per_token_scaled_fp8_quant", "dynamic_per_token_scaled_int8_quant"}
    assert changed(copy, file, "1.0 / scale", "2.0 / scale", tmp_path) == {*twins, "fused_rope_attention"}


def test_a_program_in_gluon_concerns_its_own_op(copy: Path, tmp_path: Path) -> None:
    hashes = []
    for number, text in enumerate(("STEP = 1\n", "STEP = 2\n", "# A remark.\nSTEP = 2\n")):
        folder = tmp_path / str(number)
        shutil.copytree(copy, folder)
        (folder / "decoder_block" / "gluon_kernel.py").write_text(text)
        hashes.append({name: hash_in(folder, name) for name in op_names()})
    first, second, remarked = hashes
    assert {name for name in op_names() if first[name] != second[name]} == {"decoder_block"}
    assert second == remarked


def test_a_block_depends_on_what_its_parts_promise(copy: Path, tmp_path: Path) -> None:
    file = "weight_only_mv/contract.py"
    assert changed(copy, file, "relative=4e-3", "relative=5e-3", tmp_path) == {"weight_only_mv", "decoder_block"}


def test_a_program_that_is_named_by_a_formatted_string_counts(copy: Path, tmp_path: Path) -> None:
    file = "rms_norm_per_block_quant/helion_kernel.py"
    assert changed(copy, file, "1.0 / scale", "2.0 / scale", tmp_path) == {"rms_norm_per_block_quant"}


def test_shared_arithmetic_concerns_its_users_and_no_others(copy: Path, tmp_path: Path) -> None:
    concerned = changed(copy, "tile_math.py", "torch.sigmoid(gate)", "torch.tanh(gate)", tmp_path)
    assert {"silu_and_mul", "rms_norm"} <= concerned
    assert not {"argmax", "linear", "paged_attention"} & concerned


def test_comments_docstrings_and_formatting_do_not_count(copy: Path, tmp_path: Path) -> None:
    otherwise = {
        "\nimport helion\n": "\n# A remark.\nimport helion\n",
        "    num_tokens, hidden_size = x.size()": "    num_tokens, hidden_size = (\n        x.size()\n    )",
        '"""``rms_norm`` as a tile program': '"""Other words',
    }
    for number, (old, new) in enumerate(otherwise.items()):
        # It concerns no other op: see above.
        folder = tmp_path / str(number)
        shutil.copytree(copy, folder)
        file = folder / "rms_norm" / "helion_kernel.py"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))
        assert hash_in(folder, "rms_norm") == hash_in(copy, "rms_norm")


def test_providers_do_not_count(copy: Path) -> None:
    for name in op_names():
        assert not any(path.name in ("providers.py", "__init__.py") for path in sources_in(copy, name))


def test_an_ops_second_program_depends_on_the_op_and_the_op_not_on_it(copy: Path, tmp_path: Path) -> None:
    before = hash_in(copy, "decode_attention")
    for number, folder in enumerate(("decode_attention/gluon_kernel.py", "decode_attention/launch.py")):
        assert changed(copy, folder, "import Any", "import Any as Any", tmp_path / str(number)) == set()
        assert hash_in(tmp_path / str(number) / "changed", "decode_attention") != before
    file = "fused_rope_attention/launch.py"
    assert "fused_rope_attention" in changed(copy, file, "TOGETHER = 4", "TOGETHER = 8", tmp_path)
    assert hash_in(tmp_path / "changed", "decode_attention") != before
    shutil.copytree(copy, tmp_path / "tried")
    (tmp_path / "tried" / "decode_attention" / "candidates.py").write_text("NONE = ()")
    assert hash_in(tmp_path / "tried", "decode_attention") == before


def test_an_unknown_op_is_refused() -> None:
    with pytest.raises(ConfigError, match="no op 'nothing'"):
        source_hash("nothing")


def test_hashing_imports_no_kernel_compiler() -> None:
    code = (
        "import sys; from parhelion.ops.source_hash import source_hashes; source_hashes();"
        "assert not {'helion', 'triton'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


PROGRAM = """
from parhelion.ops.tiles import SIZE

def a(x):
    return x * SIZE + 3
"""


def hash_of(folder: Path, program: str, tiles: str = "SIZE = 64") -> str:
    """Of an op called ``a`` in a folder with nothing else."""
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "helion_kernel.py").write_text(program)
    (folder / "tiles.py").write_text(tiles)
    return hash_in(folder, "a")


@pytest.mark.parametrize("changed_to", ["+ 4", "+ 3.0", "+ None", "+ '3'", "- 3", "+ x", "if x else 3"])
def test_whatever_is_computed_otherwise_counts(changed_to: str, tmp_path: Path) -> None:
    assert hash_of(tmp_path / "1", PROGRAM.replace("+ 3", changed_to)) != hash_of(tmp_path / "2", PROGRAM)


@pytest.mark.parametrize(
    "line",
    ["from parhelion.ops.tiles import SIZE", "from parhelion.ops import tiles", "import parhelion.ops.tiles as t"],
)
def test_what_is_imported_counts_however_it_is_imported(line: str, tmp_path: Path) -> None:
    program = f"def a():\n    {line}\n"
    assert hash_of(tmp_path / "1", program) != hash_of(tmp_path / "2", program, "SIZE = 32")


def test_trees_of_other_versions_of_python_hash_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer versions know further fields, which are empty, and may cut the text of f-strings elsewhere."""
    program = "def a(x):\n    return f'a{x}b{{c'\n"
    here = hash_of(tmp_path / "1", program)
    parse = ast.parse

    def parsed_elsewhere(text: str) -> ast.Module:
        tree = parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.type_params = []
                node._fields = (*(name for name in node._fields if name != "type_params"), "type_params")
            if isinstance(node, ast.JoinedStr):
                node.values[2:] = [ast.Constant("b{"), ast.Constant(""), ast.Constant("c")]
        return tree

    with monkeypatch.context() as patch:
        patch.setattr(ast, "parse", parsed_elsewhere)
        assert hash_of(tmp_path / "2", program) == here
    assert hash_of(tmp_path / "3", program.replace("b{{c", "bc")) != here
