"""The chat template of a tokenizer's folder, held to what ``transformers`` makes of it."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.bench.workload_items import items_of
from vllm_bench.workload.template_folder import TemplateFolder
from vllm_cli.command import CommandError

DEMO = Path(__file__).parents[2] / "packages/vllm-engine/vllm_engine/demo"
TALK = [
    {"role": "system", "content": "be kind & <short>"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "thr\u00e9e"},
]


def folder_of(folder: Path, template: object, **config: object) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **config}))
    return folder


def test_a_conversation_has_the_text_and_the_ids_that_transformers_gives_it(tmp_path: Path):
    theirs = PreTrainedTokenizerFast.from_pretrained(DEMO)
    template = TemplateFolder(DEMO)
    for talk in (TALK, TALK[1:2]):
        assert template.render(talk) == theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    file = tmp_path / "c.jsonl"
    file.write_text(json.dumps({"messages": TALK}) + "\n")
    (item,) = items_of(
        *("--dataset-name", "custom", "--dataset-path", file, "--num-prompts", 1, "--tokenizer", DEMO),
    )
    ids = theirs.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    assert (item.prompt, item.prompt_len) == (ids, len(ids))


def test_templates_stand_in_the_configuration_too(tmp_path: Path):
    source = "{{ bos_token }}{% for m in messages %}{{ m.content | tojson }}\n{% endfor %}{{ eos_token }}"
    for template in (source, [{"name": "tools", "template": "x"}, {"name": "default", "template": source}]):
        folder = folder_of(tmp_path, template, bos_token="<s>", eos_token={"content": "</s>"})
        assert TemplateFolder(folder).render(TALK[:2]) == '<s>"be kind & <short>"\n"one"\n</s>'
    (tmp_path / "chat_template.jinja").write_text("{{ messages | length }}")
    assert TemplateFolder(tmp_path).render(TALK) == "4"


@pytest.mark.parametrize("template", [None, [], [{"name": "other", "template": "x"}]])
def test_a_folder_without_one_is_a_lookup_error(tmp_path: Path, template: object):
    with pytest.raises(LookupError):
        TemplateFolder(folder_of(tmp_path, template))
    with pytest.raises(LookupError):
        TemplateFolder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{% if", "TemplateSyntaxError"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ],
)
def test_a_broken_or_a_bad_template_is_one_line(tmp_path: Path, template: str, what: str):
    with pytest.raises(CommandError, match=what) as error:
        TemplateFolder(folder_of(tmp_path, template)).render(TALK)
    assert error.value.exit_code == 2
