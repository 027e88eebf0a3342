"""Content as text or as parts: what a template reads is found out, and the text is that of transformers."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.frontend import tiny_tokenizers as tiny
from tests.engine.frontend.test_chat_template import CHATML, STRICT, Templates
from vllm_engine.errors import InvalidRequest
from vllm_engine.frontend.chat_template import render_chat
from vllm_engine.frontend.content_format import ContentFormat

PARTS_ONLY = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m['content'] %}{% if part.type == 'text' %}"
    "{{ part['text'] | trim }};{% elif part.type == 'image' %}<image>{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
EITHER = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content | trim }}"
    "{% elif m.content is iterable %}{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}"
    "{% endfor %}"
)
PARTS_OF_USERS = (
    "{% for m in messages %}{% if m.role == 'user' and m.content is not string %}"
    "{% for part in m.content %}({{ part.text }}){% endfor %}{% else %}{{ m.role + ': ' + m.content }}{% endif %}"
    "{% endfor %}"
)
FIRST_PART = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}|{% endfor %}"
AS_JSON = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
WRITTEN_DOWN = "{% for m in messages %}{{ m.content }}{% endfor %}"
NOTHING = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% endif %}|{% endfor %}"
TOOLS = (
    "{% for m in messages %}{% if m.role == 'tool' %}<{{ m.tool_call_id }}>{% for part in m.content %}{{ part.text }}/"
    "{% endfor %}{% elif m.tool_calls %}{{ m.tool_calls[0].function.name }}{% else %}{{ m.content + '!' }}{% endif %}"
    "{% endfor %}"
)

TEXTS = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": " More"},
]


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def in_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**m, "content": [part(m["content"]), part("and ü")]} for m in messages]


def joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**m, "content": m["content"] + "\nand ü"} for m in messages]


def render(template: str, messages: Any, content_format: ContentFormat = "auto", **options: Any) -> str:
    return render_chat(
        Templates({"default": template}), messages, chat_template_content_format=content_format, **options
    )


@pytest.fixture(scope="module")
def transformers_text(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The text that transformers makes of messages, which it hands to the template as they are."""
    from transformers import PreTrainedTokenizerFast

    folder: Path = tiny.write_folder(tmp_path_factory.mktemp("chat") / "llama", "llama")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))

    def text(template: str, messages: Any) -> Any:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )

    return text


@pytest.mark.parametrize("template", [CHATML, WRITTEN_DOWN, NOTHING, AS_JSON])
def test_a_template_that_reads_text_gets_text(template: str, transformers_text: Any) -> None:
    assert render(template, TEXTS) == transformers_text(template, TEXTS)
    assert render(template, in_parts(TEXTS)) == transformers_text(template, joined(TEXTS))


def test_a_template_that_reads_parts_gets_parts(transformers_text: Any) -> None:
    assert render(PARTS_ONLY, in_parts(TEXTS)) == transformers_text(PARTS_ONLY, in_parts(TEXTS))
    alone = [{**m, "content": [part(m["content"])]} for m in TEXTS]
    assert render(PARTS_ONLY, TEXTS) == transformers_text(PARTS_ONLY, alone)


def test_a_template_that_reads_either_gets_what_the_client_sent(transformers_text: Any) -> None:
    mixed = [*TEXTS[:2], *in_parts(TEXTS)[2:]]
    for messages in (TEXTS, in_parts(TEXTS), mixed):
        assert render(EITHER, messages) == transformers_text(EITHER, messages)


def test_each_role_is_found_out_for_itself(transformers_text: Any) -> None:
    expected = [
        {**m, "content": p["content"] if m["role"] == "user" else m["content"]}
        for m, p in zip(joined(TEXTS), in_parts(TEXTS), strict=True)
    ]
    assert render(PARTS_OF_USERS, in_parts(TEXTS)) == transformers_text(PARTS_OF_USERS, expected)
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [part("a"), part("b")]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
        {"role": "tool", "tool_call_id": "c2", "content": [part("x"), part("y")]},
    ]
    assert render(TOOLS, messages) == "a\nb!look<c1>found/<c2>x/y/"


def test_a_template_that_would_lose_a_part_gets_text() -> None:
    assert render(FIRST_PART, [{"role": "user", "content": [part("a"), part("b")]}]) == "a\nb|"


def test_a_template_that_insists_on_turns_is_found_out_too(transformers_text: Any) -> None:
    messages = TEXTS[1:]
    assert render(STRICT, in_parts(messages)) == transformers_text(STRICT, joined(messages))


def test_parts_of_every_kind_of_text_reach_the_template_as_text() -> None:
    content = [part("a"), {"type": "input_text", "text": "b"}, "c", {"type": "refusal", "refusal": "d"}]
    assert render(PARTS_ONLY, [{"role": "user", "content": content}]) == "<user>a;b;c;d;<assistant>"


@pytest.mark.parametrize(
    ("content_format", "content", "shown"),
    [
        ("string", [part("a"), part("b")], "'a\nb'"),
        ("string", "a", "'a'"),
        ("openai", [part("a"), part("b")], "a,b,"),
        ("openai", "a", "a,"),
        ("auto", [part("a"), part("b")], "a,b,"),
        ("auto", "a", "'a'"),
    ],
)
def test_a_format_that_is_named_holds_for_every_template(
    content_format: ContentFormat, content: Any, shown: str
) -> None:
    template = (
        "{% for m in messages %}{% if m.content is string %}'{{ m.content }}'{% else %}"
        "{% for part in m.content %}{{ part.text }},{% endfor %}{% endif %}{% endfor %}"
    )
    assert render(template, [{"role": "user", "content": content}], content_format) == shown


@pytest.mark.parametrize("content", ["So it ", [part("So "), part("it ")]])
@pytest.mark.parametrize(
    ("template", "text"), [(PARTS_ONLY, "<user>Go;<assistant>So"), (EITHER, "<s>[user]Go[assistant]So")]
)
def test_a_last_message_in_parts_can_be_continued(template: str, text: str, content: Any) -> None:
    messages = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": content}]
    shown = render(template, messages, add_generation_prompt=False, continue_final_message=True)
    assert shown.startswith(text)
    assert shown.endswith("it")


def test_a_last_message_of_no_parts_cannot_be_continued() -> None:
    messages = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": []}]
    with pytest.raises(InvalidRequest) as error:
        render(PARTS_ONLY, messages, add_generation_prompt=False, continue_final_message=True)
    assert error.value.field == "continue_final_message"


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InvalidRequest) as error:
        render(CHATML, TEXTS, "list")  # type: ignore[arg-type]
    assert error.value.field == "chat_template_content_format"
