"""Three hundred wrong command lines: each ends with exit code 2 and one clear line, before anything is loaded."""

import contextlib
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_cli.main import main
from vllm_engine.config.settings import Setting, settings_of
from vllm_engine.config.values import choices_of, plain, takes_keys
from vllm_server import serve
from vllm_server.config import CONFIGS

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

SETTINGS: list[Setting] = [setting for config in CONFIGS for setting in settings_of(config).values()]
COUNT = 300

Wrong = tuple[list[str], str]
"""Arguments, and what the error line must hold."""


def of_type(kind: Any) -> list[Setting]:
    return [setting for setting in SETTINGS if plain(setting.hint) is kind]


def wrong_number(pick: random.Random) -> Wrong:
    setting = pick.choice(of_type(int))
    return [
        f"{setting.flag}={pick.choice(['x', '1.5', '', '1e400', '0x10', '4kk', '9' * 30, 'None', '--', '[1]'])}"
    ], setting.flag


def wrong_fraction(pick: random.Random) -> Wrong:
    setting = pick.choice([one for one in of_type(float) if one.group != "Deprecated"])
    return [f"{setting.flag}={pick.choice(['x', 'nan', 'inf', '-inf', '', '1,5', '1e999', '-0.5'])}"], setting.flag


def out_of_range(pick: random.Random) -> Wrong:
    flag, value = pick.choice(
        [
            ("--max-num-seqs", "0"),
            ("--max-num-seqs", "-1"),
            ("--max-model-len", "-2"),
            ("--max-model-len", "0"),
            ("--block-size", "0"),
            ("--block-size", "4k"),
            ("--port", "65536"),
            ("--port", "-1"),
            ("--gpu-memory-utilization", "1.01"),
            ("--gpu-memory-utilization", "0"),
            ("--kv-cache-memory-bytes", "0"),
            ("--max-logprobs", "-2"),
            ("--stream-interval", "0"),
            ("--num-gpu-blocks-override", "1"),
            ("--max-num-partial-prefills", "0"),
            ("--long-prefill-token-threshold", "-1"),
            ("--shutdown-timeout", "-5"),
            ("--optimization-level", "4"),
            ("--max-num-batched-tokens", "0"),
            ("--safetensors-prefetch-num-threads", "0"),
        ]
    )
    return [flag, value], flag


def wrong_choice(pick: random.Random) -> Wrong:
    setting = pick.choice([one for one in SETTINGS if choices_of(one.hint) and not takes_keys(one)])
    choice = str(pick.choice(choices_of(setting.hint)))
    return [f"{setting.flag}={choice}{pick.choice('xyz')}"], setting.flag


def not_honoured(pick: random.Random) -> Wrong:
    setting, value = pick.choice(
        [
            (setting, choice)
            for setting in SETTINGS
            for choice in choices_of(setting.hint)
            if setting.facts["unsupported"] and choice != setting.default and choice not in setting.facts["possible"]
        ]
    )
    return [f"{setting.flag}={value}"], "cannot be honoured"


def not_honoured_number(pick: random.Random) -> Wrong:
    setting = pick.choice([one for one in SETTINGS if one.facts["unsupported"] and plain(one.hint) is int])
    return [setting.flag, "3"], f"{setting.flag}=3 cannot be honoured"


def not_honoured_switch(pick: random.Random) -> Wrong:
    setting = pick.choice(
        [one for one in of_type(bool) if one.facts["unsupported"] and True not in one.facts["possible"]]
    )
    return [setting.flag if not setting.default else f"--no-{setting.flag[2:]}"], f"{setting.flag}="


def mistyped_flag(pick: random.Random) -> Wrong:
    flag = pick.choice([setting.flag for setting in SETTINGS if len(setting.flag) > 10])
    at = pick.randrange(4, len(flag) - 1)
    known = {setting.flag for setting in SETTINGS}
    wrong = flag[:at] + flag[at + 1 :]
    return [wrong if wrong not in known else flag + "x", "1"], "; did you mean --"


def unknown_flag(pick: random.Random) -> Wrong:
    flag = pick.choice(["--zzzzqq", "-Z", "-zz9", "---", "--@", "-", "--qqq.a"])
    return [flag], f"there is no option {flag.partition('.')[0]}"


def missing_value(pick: random.Random) -> Wrong:
    setting = pick.choice([one for one in SETTINGS if plain(one.hint) is not bool and not one.facts.get("bare")])
    return pick.choice([[setting.flag], [setting.flag, "--enforce-eager"]]), setting.flag


def wrong_json(pick: random.Random) -> Wrong:
    setting = pick.choice([one for one in SETTINGS if takes_keys(one)])
    return [
        setting.flag,
        pick.choice(["{", "[1]", "x", "null", "{'a': 1}", '"a"', '{"a": NaN, "a', "[" * 100_000]),
    ], setting.flag


def unknown_key(pick: random.Random) -> Wrong:
    setting = pick.choice([one for one in SETTINGS if one.keys is not None])
    return [f"{setting.flag}.no_such_key", "1"], "has no key 'no_such_key'"


def wrong_key(pick: random.Random) -> Wrong:
    return pick.choice(
        [
            (["--max-num-seqs.a", "1"], "--max-num-seqs has no keys"),
            (["--hf-overrides.", "1"], "a key is missing"),
            (["--hf-overrides.a..b", "1"], "a key is missing"),
            (["--hf-overrides.a", "1", "--hf-overrides.a.b", "2"], "a is not an object"),
            (["--hf-overrides.a", "1", "--hf-overrides.a+", "2"], "a is not a list"),
            (["--hf-overrides.a"], "needs a value"),
            (["--additional-config.a", "--enforce-eager"], "needs a value"),
            (
                ["--attention-config.use_cudnn_prefill", "3"],
                "--attention-config.use_cudnn_prefill must be true or false",
            ),
        ]
    )


def contradiction(pick: random.Random) -> Wrong:
    number = pick.randrange(2, 500)
    return pick.choice(
        [
            (["--max-num-batched-tokens", str(number), "--max-num-seqs", str(number + 1)], "--max-num-batched-tokens"),
            (
                ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "9", "--max-model-len", "64"],
                "chunked prefill",
            ),
            (["--no-enable-chunked-prefill", "--long-prefill-token-threshold", str(number)], "chunked prefill"),
            (["--max-long-partial-prefills", str(number)], "--max-num-partial-prefills"),
            (["--attention-backend", "CPU_ATTN", "--attention-config.backend", "TORCH_SDPA"], "contradicts"),
            (["--rope-theta", "1", "--hf-overrides.rope_theta", "2"], "both are given"),
            (["--model", "other"], "two models are named"),
            (["--skip-tokenizer-init", "--tokenizer", "other"], "--skip-tokenizer-init"),
            (["other"], "one argument too many"),
        ]
    )


def wrong_file(pick: random.Random, folder: Path) -> Wrong:
    text, says = pick.choice(
        [
            ("max-num-seq: 3\n", "did you mean --max-num-seqs?"),
            ("nothing-like-it: 3\n", "unknown key 'nothing-like-it'"),
            ("max-num-seqs: 3\nmax-num-seqs: 4\n", "is given twice"),
            ("max-num-seqs: 3\nmax_num_seqs: 4\n", "two spellings"),
            ("max-num-seqs: [1]\n", "--max-num-seqs must be"),
            ("max-num-seqs: many\n", "--max-num-seqs must be"),
            ("- a\n- b\n", "must hold keys and values"),
            ("just a text\n", "must hold keys and values"),
            ("a: [1\n", "not valid YAML"),
            ("\t- x", "not valid YAML"),
            ("hf-overrides: &a {b: 1}\nadditional-config: *a\n", "aliases"),
            ("3: 4\n", "no text"),
            ("hf-overrides: !!python/object:os.system {}\n", "not valid YAML"),
            ("max-num-seqs: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
            ("additional-config: {when: 2020-01-01}\n", "--additional-config must be"),
            ("tensor-parallel-size: 2\n", "--tensor-parallel-size=2 cannot be honoured"),
            ("dtype:\n", "without a value"),
            ("hf-overrides: " + "{a: " * 500 + "1" + "}" * 500, ""),
            ("\0", "not valid YAML"),
        ]
    )
    path = folder / "wrong.yaml"
    path.write_text(text)
    return ["--config", str(path)], says


def unreadable_file(pick: random.Random, folder: Path) -> Wrong:
    binary = folder / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80" * 9)
    large = folder / "large.yaml"
    large.write_text("a: " + "x" * 1_000_001)
    wrong = folder / "settings.txt"
    wrong.write_text("port: 1")
    return [
        "--config",
        pick.choice(["no/such.yaml", str(folder / "folder.yaml"), str(binary), str(large), str(wrong)]),
    ], "--config: "


KINDS: list[Callable[..., Wrong]] = [
    wrong_number,
    wrong_fraction,
    out_of_range,
    wrong_choice,
    not_honoured,
    not_honoured_number,
    not_honoured_switch,
    mistyped_flag,
    unknown_flag,
    missing_value,
    wrong_json,
    unknown_key,
    wrong_key,
    contradiction,
    wrong_file,
    unreadable_file,
]


@pytest.fixture(autouse=True)
def nothing_is_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    def serve_anyway(*_: Any) -> int:
        raise AssertionError("a wrong command line was taken")

    monkeypatch.setattr(serve, "serve", serve_anyway)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    (tmp_path / "folder.yaml").mkdir()
    yield


@pytest.mark.parametrize("number", range(COUNT))
def test_a_wrong_command_line_ends_with_one_clear_line(number: int, tmp_path: Path) -> None:
    pick = random.Random(number)
    kind = KINDS[number % len(KINDS)]
    arguments, says = kind(pick, tmp_path) if "file" in kind.__name__ else kind(pick)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["serve", "demo", *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    lines = err.getvalue().splitlines()
    shown = [argument[:80] for argument in arguments]
    assert (code, out.getvalue(), len(lines)) == (2, "", 1), (shown, lines)
    assert lines[0].startswith("vllm serve: error: ")
    assert says in lines[0], shown
    assert len(lines[0]) < 1000
    assert "Traceback" not in lines[0]
