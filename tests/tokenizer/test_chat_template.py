"""Chat templates: rendering, options, and requests that do not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from parhelion.errors import InvalidRequestError
from parhelion.models.chat_template import ChatTemplate
from parhelion.models.tokenizer import Tokenizer, load_tokenizer
from tests.tokenizer.tiny import write_byte_level

USER = {"role": "user", "content": "Hi"}


def render(template: str, messages: list[dict[str, object]], **options) -> str:
    settings = {"tools": None, "add_generation_prompt": True, "continue_final_message": False, "template_kwargs": None}
    return ChatTemplate(template).render(messages, **{**settings, **options})


def test_smollm2_renders_chatml(smollm2: Tokenizer):
    system = {"role": "system", "content": "Be brief."}
    text = smollm2.apply_chat_template([system, USER])
    assert text == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert smollm2.encode(text, add_special_tokens=False).count(1) == 3
    assert not smollm2.apply_chat_template([USER], add_generation_prompt=False).endswith("assistant\n")


def test_a_final_message_can_be_left_open(smollm2: Tokenizer):
    opened = {"role": "assistant", "content": "Well,"}
    text = smollm2.apply_chat_template([USER, opened], add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nWell,")
    with pytest.raises(InvalidRequestError, match="exclude each other"):
        smollm2.apply_chat_template([USER, opened], continue_final_message=True)


def test_special_tokens_and_options_reach_the_template(tmp_path: Path):
    template = "{{ bos_token }}{{ messages[0].content }}{% if thinking %}<t>{% endif %}"
    tokenizer = load_tokenizer(write_byte_level(tmp_path / "t.gguf", template=template))
    assert tokenizer.apply_chat_template([USER]) == "<|end|>Hi"
    assert tokenizer.apply_chat_template([USER], template_kwargs={"thinking": True}) == "<|end|>Hi<t>"


def test_tools_reach_the_template():
    assert render("{{ tools | tojson }}", [USER], tools=[{"name": "look"}]) == '[{"name": "look"}]'
    assert render("{{ 'none' if not tools }}", [USER], tools=[]) == "none"


@pytest.mark.parametrize("name", ["messages", "chat_template", "add_generation_prompt", "tools"])
def test_options_may_not_replace_the_requests_own_fields(name: str):
    with pytest.raises(InvalidRequestError, match=name) as caught:
        render("x", [USER], template_kwargs={name: "anything"})
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "user"}], [{"role": "user", "content": None}], [{"content": "x"}], [{"role": "user", "content": 3}]],
)
def test_messages_that_do_not_fit_are_the_requests_fault(smollm2: Tokenizer, messages: list[dict[str, object]]):
    with pytest.raises(InvalidRequestError) as caught:
        smollm2.apply_chat_template(messages)
    assert caught.value.param == "messages"


def test_what_a_template_raises_is_told():
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", [USER])


def test_a_template_runs_in_a_sandbox():
    with pytest.raises(InvalidRequestError, match="unsafe"):
        render("{{ ''.__class__.__mro__ }}", [USER])


def test_a_model_without_a_template_says_so(tmp_path: Path):
    tokenizer = load_tokenizer(write_byte_level(tmp_path / "t.gguf"))
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequestError, match="no chat template") as caught:
        tokenizer.apply_chat_template([USER])
    assert caught.value.param == "messages"


def test_what_renders_a_template_can_be_imported_ahead_of_the_first_one() -> None:
    program = """
import sys
from parhelion.models.chat_template import ChatTemplate, import_renderer
before = set(sys.modules)
assert not [name for name in before if name.startswith(("jinja2", "transformers"))]
import_renderer()
imported = set(sys.modules)
nothing = dict(tools=None, add_generation_prompt=True, continue_final_message=False, template_kwargs=None)
assert ChatTemplate("{{ messages[0].content }}!").render([{"role": "user", "content": "Hi"}], **nothing) == "Hi!"
print(len(imported - before), len(set(sys.modules) - imported))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ahead, later = map(int, ran.stdout.split())
    assert ahead > 0
    assert later == 0
