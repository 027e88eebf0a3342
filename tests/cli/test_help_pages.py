"""The forms of ``--help`` of a command with many options."""

import pytest

from tests.settings.documented import engine_arguments
from vllm_cli.main import main
from vllm_engine.config import EngineConfig
from vllm_engine.config.settings import group_summaries, settings_of
from vllm_server.config import ServerConfig

COMMANDS = ["serve", "run-batch"]


def page(capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([command, *arguments])
    captured = capsys.readouterr()
    assert (end.value.code, captured.err) == (0, "")
    return captured.out


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("form", ["--help", "-h"])
def test_the_short_page_has_common_options_groups_and_the_way_to_more(capsys, command: str, form: str) -> None:
    shown = page(capsys, command, form)
    assert len(shown.splitlines()) < 100
    for expected in ("--max-model-len", "--dtype", "ModelConfig  ", f"vllm {command} --help=all"):
        assert expected in shown
    assert "--mamba-block-size" not in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_the_full_page_has_every_option_of_the_engine(capsys, command: str) -> None:
    shown = page(capsys, command, "--help=all")
    assert [one.flag for one in engine_arguments() if f"\n  {one.flag}" not in shown] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_groups_are_listed_with_how_many_options_they_have(capsys, command: str) -> None:
    shown = page(capsys, command, "--help=listgroup")
    counts = {row.split()[0]: int(row.split()[1]) for row in shown.splitlines()[1:]}
    for group in group_summaries(EngineConfig):
        assert counts[group] == sum(setting.group == group for setting in settings_of(EngineConfig).values())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("word", ["CacheConfig", "cacheconfig"])
def test_a_group_is_shown_alone(capsys, command: str, word: str) -> None:
    shown = page(capsys, command, f"--help={word}")
    in_group = {one.flag for one in engine_arguments() if one.flag in ("--block-size", "--kv-cache-dtype")}
    assert all(flag in shown for flag in in_group)
    assert "--max-num-seqs" not in shown
    assert group_summaries(EngineConfig)["CacheConfig"] in shown


@pytest.mark.parametrize("word", ["max-num-seqs", "max_num_seqs", "--max-num-seqs"])
def test_one_option_is_shown_alone(capsys, word: str) -> None:
    shown = page(capsys, "serve", f"--help={word}")
    assert shown.startswith("SchedulerConfig:\n  --max-num-seqs INT")
    assert shown.count("  --") == 1


def test_a_short_option_is_found_too(capsys) -> None:
    assert "--tensor-parallel-size" in page(capsys, "serve", "--help=tp")


def test_an_object_comes_with_its_keys(capsys) -> None:
    shown = page(capsys, "serve", "--help=kernel-config")
    assert "--kernel-config.key value" in shown
    assert "ir_op_priority" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_a_keyword_lists_the_options_that_have_it_in_their_names(capsys, command: str) -> None:
    shown = page(capsys, command, "--help=max")
    expected = {one.flag for one in engine_arguments() if "max" in one.flag}
    assert {flag for flag in expected if f"{flag} " not in shown} == set()
    assert "--dtype" not in shown


def test_a_word_that_names_nothing_comes_with_what_is_near(capsys) -> None:
    assert "--max-model-len" in page(capsys, "serve", "--help=max-modle-len")
    with pytest.raises(SystemExit) as end:
        main(["serve", "--help=qqqqqqq"])
    assert end.value.code == 2
    assert "nothing is named 'qqqqqqq'" in capsys.readouterr().err


def test_help_says_what_this_version_honours(capsys) -> None:
    assert "only the default here" in " ".join(page(capsys, "serve", "--help=tensor-parallel-size").split())
    assert "no effect here" in " ".join(page(capsys, "serve", "--help=trust-remote-code").split())


def test_the_front_end_is_a_group_of_serve(capsys) -> None:
    shown = page(capsys, "serve", "--help=Frontend")
    assert [setting.flag for setting in settings_of(ServerConfig).values() if f"\n  {setting.flag}" not in shown] == []


def test_a_small_command_shows_all_it_has(capsys) -> None:
    assert "--system-prompt" in page(capsys, "chat", "--help")
    assert page(capsys, "chat", "--help=quick").startswith("options:\n  -q")
