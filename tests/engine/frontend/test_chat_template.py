"""Chat templates against transformers, and against hostile messages and templates."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.engine.frontend import tiny_tokenizers as tiny
from vllm_engine.errors import ConfigError, InvalidRequest, Unsupported
from vllm_engine.frontend.chat_template import check_template_kwargs, prepare_messages, render_chat
from vllm_engine.frontend.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}\n    {{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}\n"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRICT = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['role'] }}] {{ m['content'] | trim }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
TOOLS = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'skip' %}{% continue %}{% endif %}{{ m.role }}:"
    "{% generation %}{{ m.content }}{% endgeneration %}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}({% for k, v in call.function.arguments.items() %}"
    "{{ k }}={{ v | tojson }}{% endfor %}){% endfor %}{% if loop.last %}{% break %}{% endif %}|{% endfor %}"
)
CONVERSATION = [
    {"role": "user", "content": 'Hi <b>"you"</b> & 你好'},
    {"role": "assistant", "content": "Hello! "},
    {"role": "user", "content": "More\n"},
]
TOOL = {"type": "function", "function": {"name": "f<g>", "description": "é", "parameters": {"type": "object"}}}
CALLS = [
    {"role": "user", "content": "q"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": {"y": ["é"]}}'}}],
    },
    {"role": "tool", "content": "42", "tool_call_id": "1"},
]


@dataclass
class Templates:
    chat_templates: Mapping[str, str]
    special_tokens_map: Mapping[str, str] = field(default_factory=lambda: {"bos_token": "<s>", "eos_token": "</s>"})


def render(template: str, messages: Any = CONVERSATION, **options: Any) -> str:
    return render_chat(Templates({"default": template}), messages, **options)


@pytest.fixture(scope="module")
def transformers_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import PreTrainedTokenizerFast

    folder = tiny.write_folder(tmp_path_factory.mktemp("chat") / "llama", "llama")
    return PreTrainedTokenizerFast.from_pretrained(str(folder))


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("template", [CHATML, STRICT, TOOLS])
@pytest.mark.parametrize("tools", [None, [TOOL, TOOL]])
def test_rendered_text_equals_transformers(
    transformers_tokenizer: Any, template: str, add_generation_prompt: bool, tools: list[Any] | None
) -> None:
    expected = transformers_tokenizer.apply_chat_template(
        CONVERSATION,
        chat_template=template,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
    )
    assert render(template, tools=tools, add_generation_prompt=add_generation_prompt) == expected


@pytest.mark.parametrize("last", ["Once upon", "Once upon  ", "  Once\n", "end"])
@pytest.mark.parametrize("template", [CHATML, STRICT, TOOLS])
def test_a_continued_message_equals_transformers(transformers_tokenizer: Any, template: str, last: str) -> None:
    messages = [{"role": "user", "content": "Tell"}, {"role": "assistant", "content": last}]
    expected = transformers_tokenizer.apply_chat_template(
        messages, chat_template=template, continue_final_message=True, tokenize=False
    )
    assert render(template, messages, add_generation_prompt=False, continue_final_message=True) == expected


def test_an_empty_message_can_be_continued() -> None:
    messages = [{"role": "user", "content": "Tell"}, {"role": "assistant", "content": ""}]
    text = render(CHATML, messages, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\n")


def test_a_message_that_the_template_leaves_out_cannot_be_continued() -> None:
    with pytest.raises(InvalidRequest) as caught:
        render("{{ messages[0].role }}", add_generation_prompt=False, continue_final_message=True)
    assert caught.value.field == "continue_final_message"


def test_a_new_answer_and_a_continued_message_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(CHATML, continue_final_message=True)
    assert caught.value.field == "continue_final_message"


def test_arguments_of_tool_calls_are_objects_for_the_template_and_the_messages_stay_as_they_were() -> None:
    assert render(TOOLS, CALLS) == 'user:q|assistant:Nonef(x={"y": ["é"]})|tool:42'
    assert CALLS[1]["tool_calls"][0]["function"]["arguments"] == '{"x": {"y": ["é"]}}'


def test_text_parts_are_joined_and_other_parts_refused_by_name() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "input_text", "text": "b"},
        "c",
        {"type": "refusal", "refusal": "d"},
    ]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "a\nb\nc\nd"
    for kind in ("image_url", "input_audio", "video_url", 5, None):
        with pytest.raises(Unsupported, match=rf"messages\[1\]\.content\[0\].*{kind}") as caught:
            prepare_messages([{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": kind}]}])
        assert caught.value.field == "messages"


def test_reasoning_reaches_templates_under_the_name_they_read() -> None:
    message = {"role": "assistant", "content": "x", "reasoning": "because"}
    assert prepare_messages([message])[0]["reasoning_content"] == "because"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        None,
        [None],
        ["hello"],
        [{"content": "no role"}],
        [{"role": "", "content": "x"}],
        [{"role": 5, "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": {"a": 1}}],
        [{"role": "user", "content": [5]}],
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        [{"role": "user", "content": object()}],
        [{"role": "user", 5: "x"}],
        [type("Message", (), {"model_dump": lambda self, **_: {"role": "user"}})],
        [{"role": "assistant", "tool_calls": {}}],
        [{"role": "assistant", "tool_calls": [5]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]}],
    ],
)
def test_messages_that_are_not_well_formed_are_refused(messages: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(CHATML, messages)
    assert caught.value.field == "messages"
    assert "0x" not in str(caught.value)


def test_messages_nested_without_end_are_refused() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    with pytest.raises(InvalidRequest):
        render(CHATML, [{"role": "user", "content": "x", "extra": deep}])


def test_what_the_template_says_is_wrong_reaches_the_client() -> None:
    with pytest.raises(InvalidRequest, match=r"^roles must alternate$") as caught:
        render(STRICT, [CONVERSATION[0], CONVERSATION[0]])
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    "template",
    [
        "{{ missing.attribute.deeper }}",
        "{{ messages | nofilter }}",
        "{{ 1 / 0 }}",
        "{{ messages[0] + 1 }}",
        "{{ messages.append(1) }}",
        "{% for i in range(1000000) %}x{% endfor %}",
        "{{ 'x' * 100000000 }}",
        "{{ [0] * 100000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages.__class__ }}{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% include 'x' %}",
        "{% import 'x' as x %}",
    ],
)
def test_no_template_breaks_out_or_blows_up(template: str) -> None:
    start = time.process_time()
    with pytest.raises((InvalidRequest, ConfigError)) as caught:
        render(template)
    assert time.process_time() - start < 5
    assert "0x" not in str(caught.value)


def test_a_broken_template_is_the_fault_of_who_brought_it() -> None:
    with pytest.raises(ConfigError) as of_model:
        render("{% if %}")
    assert of_model.value.field == "chat_template"
    with pytest.raises(InvalidRequest) as of_request:
        render(CHATML, chat_template="{% if %}")
    assert of_request.value.field == "chat_template"


def test_output_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_engine.frontend.template_engine.MAX_RENDERED_CHARS", 1000)
    with pytest.raises(InvalidRequest, match="longer than 1000"):
        render("{% for i in range(2000) %}x{{ i }}{% endfor %}")


def test_the_template_for_tools_is_taken_when_there_are_tools() -> None:
    templates = Templates({"default": "plain", "tool_use": "tools", "rag": "documents"})
    assert render_chat(templates, CONVERSATION) == "plain"
    assert render_chat(templates, CONVERSATION, tools=[TOOL]) == "tools"
    assert render_chat(templates, CONVERSATION, tools=[]) == "plain"
    assert render_chat(templates, CONVERSATION, chat_template="rag") == "documents"
    assert render_chat(templates, CONVERSATION, chat_template="{{ 1 + 1 }}") == "2"


def test_without_a_default_template_the_names_are_told() -> None:
    with pytest.raises(InvalidRequest, match="rag"):
        render_chat(Templates({"rag": "x"}), CONVERSATION)
    with pytest.raises(Unsupported, match="no chat template"):
        render_chat(Templates({}), CONVERSATION)


def test_further_variables_reach_the_template() -> None:
    template = "{{ enable_thinking }} {{ documents[0].title }} {{ bos_token }}"
    assert render(template, enable_thinking=True, documents=[{"title": "t"}]) == "True t <s>"


@pytest.mark.parametrize("kwargs", [{"messages": []}, {"tools": None}, {"tokenizer": 1}, {5: 1}, [1], "x"])
def test_further_variables_cannot_replace_those_of_the_conversation(kwargs: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_template_kwargs(kwargs)
    assert caught.value.field == "chat_template_kwargs"
    assert check_template_kwargs(None) == {}


def test_the_current_time_is_at_hand() -> None:
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")


def test_templates_are_read_from_every_place_they_are_kept(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "from config"}, {"name": "tool_use", "template": "tools"}]
    folder = tiny.write_folder(tmp_path / "t", "byte_level", chat_template=listed)
    assert Tokenizer.from_folder(folder).chat_templates == {"default": "from config", "tool_use": "tools"}
    (folder / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert Tokenizer.from_folder(folder).chat_template == "from json"
    (folder / "chat_template.jinja").write_text("from jinja")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("documents")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.chat_templates == {"default": "from jinja", "tool_use": "tools", "rag": "documents"}


def test_the_tokenizer_applies_its_template_as_users_of_transformers_expect(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(tiny.write_folder(tmp_path / "t", "byte_level", chat_template=CHATML))
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    assert text.endswith("<|im_start|>assistant\n")
    ids = tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True)
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") in ids


@pytest.mark.parametrize(
    "template",
    [
        "{% set ns = namespace(x='ab') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=3) %}{% for a in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
        "{{ ('a' * 1000000) | join('b' * 1000000) }}",
        "{{ ('a' * 1000000).join('b' * 1000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' | format(1000000000, 1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a' | indent(1000000000, true) }}",
        "{{ [] | slice(1000000000) | list }}",
        "{{ [1] | batch(1000000000, 1) | list }}",
    ],
)
def test_a_few_characters_cannot_make_many(template: str) -> None:
    started = time.process_time()
    with pytest.raises(InvalidRequest, match="too l"):
        render(template)
    assert time.process_time() - started < 2


def test_bounds_are_out_of_the_way_of_ordinary_templates() -> None:
    template = (
        "{{ '%05d' % 3 }} {{ '{:>5}'.format(2) }} {{ 'at 10:12345 %s' % 1 }} {{ [1, 2] | join(', ') }} "
        "{{ 'a' ~ 1 ~ none }} {{ 'x' | indent(2, true) }} {{ 'abc' | replace('b', 'dd') }} "
        "{{ [1, 2, 3] | batch(2) | list }} "
        "{% for x in [1, 2, 3] if x > 1 %}{{ loop.index }}{{ loop.length }}{{ loop.last }} {% else %}none{% endfor %}"
        "{% for x in nothing %}some{% else %}none{% endfor %} "
        "{% for x in [[1], []] recursive %}({{ loop(x) if x is iterable else x }}){% endfor %}"
    )
    expected = "00003     2 at 10:12345 1 1, 2 a1None   x addc [[1, 2], [3]] 12False 22True none ((1))()"
    assert render(template) == expected


def test_a_limit_of_time_holds_for_loops_and_calls() -> None:
    from vllm_engine.frontend.template_budget import time_limit
    from vllm_engine.frontend.template_engine import SlowTemplate

    for template in (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ):
        started = time.monotonic()
        with pytest.raises(SlowTemplate), time_limit(0.1):
            render(template)
        assert time.monotonic() - started < 5  # for ever, if nobody stopped it
        assert render("fine") == "fine"
