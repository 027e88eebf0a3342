"""The tables of tuned kernels: what stands in them, what is wrong with a wrong one, and the way of the tuner."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from vllm_kernels import tune
from vllm_kernels.batch_invariance import use_batch_invariance
from vllm_kernels.triton import attention, candidates, few_rows, fp8, tuning
from vllm_kernels.triton.catalogue import KERNELS, TUNABLES
from vllm_kernels.triton.device import FAMILIES, SHARED_MEMORY, interpreted
from vllm_kernels.triton.tuning import Entry, Table, TableError, Tunable, Work, check, forced, read_table

KNOWN = {tunable.kernel: tunable for tunable in TUNABLES}
FEW = {"tokens": "few", "columns": 128, "query_bits": 16, "entry_bits": 16}
CHOICE = {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}
ENTRY = Entry("attention_kernel", FEW, CHOICE, "compiled")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder whose tables win, for as long as the test runs."""
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path))
    _forget()
    yield tmp_path
    _forget()


def _forget() -> None:
    tuning._entries.cache_clear()
    tuning._chosen.cache_clear()


# ---- the tables of the wheel ----


@pytest.mark.parametrize("family", FAMILIES)
def test_the_wheel_s_table_names_what_there_is(family):
    table = read_table(tuning.FOLDER / f"{family}.json")
    assert table.family == family
    assert table.entries
    check(table, TUNABLES)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_compiled_ahead_asks_for_the_classes_and_no_others(family, monkeypatch):
    asked = set()
    choose = Tunable.choose

    def noted(self, where, **shape):
        asked.add(self.key(shape))
        return choose(self, where, **shape)

    monkeypatch.setattr(Tunable, "choose", noted)
    for kernel in KERNELS:
        list(kernel.configurations(family))
    unknown = {"fp8_product_kernel"} if family == "sm_80" else set()
    asked = {key for key in asked if key[0] not in unknown}
    assert asked == {tunable.key(shape) for tunable in TUNABLES for shape in tunable.classes(family)}


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_choose_among_the_candidates_and_fit(family):
    for tunable in TUNABLES:
        for shape in tunable.classes(family):
            rule = tunable.rule(**shape)
            assert tunable.fault(rule, **shape) is None
            assert tunable.work(**shape, **rule).shared_bytes(rule.get("num_stages", 1)) <= SHARED_MEMORY[family]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "nobody"}, "no kernel of that name is tuned"),
        ({"shape": {**FEW, "rows": 1}}, "a class has tokens, columns"),
        ({"shape": {**FEW, "columns": 512}}, "not compiled ahead"),
        ({"choice": {**CHOICE, "BLOCK_K": 32}}, "has BLOCK_K, BLOCK_M"),
        ({"choice": {name: CHOICE[name] for name in ("BLOCK_M", "BLOCK_N", "num_warps")}}, "and not"),
        ({"choice": {**CHOICE, "BLOCK_N": 48}}, "BLOCK_N must be a power of two, got 48"),
        ({"choice": {**CHOICE, "BLOCK_N": 8}}, "BLOCK_N must be of 16, 32, 64, 128, got 8"),
        ({"choice": {**CHOICE, "num_stages": 0}}, "num_stages must be a number, got 0"),
        ({"choice": {**CHOICE, "num_warps": "4"}}, "num_warps must be a power of two, got '4'"),
        ({"origin": "guessed"}, "origin must be one of compiled, measured"),
        ({"origin": "measured"}, "names no device"),
    ],
)
def test_a_wrong_entry_is_named(change, message):
    wrong = dataclasses.replace(ENTRY, **change)
    with pytest.raises(TableError, match=message):
        check(Table("sm_90", None, (wrong,)), TUNABLES)


def test_wrong_tables_are_named(tmp_path):
    with pytest.raises(TableError, match="stands there twice"):
        check(Table("sm_90", None, (ENTRY, ENTRY)), TUNABLES)
    with pytest.raises(TableError, match="family must be one of"):
        check(Table("sm_75", None, ()), TUNABLES)
    wide = dataclasses.replace(ENTRY, shape={**FEW, "columns": 256}, choice={**CHOICE, "BLOCK_N": 128, "num_stages": 4})
    with pytest.raises(TableError, match="bytes of shared memory are more than"):
        check(Table("sm_80", None, (wide,)), TUNABLES)
    for content in ("{", "[]", '{"family": "sm_90", "device": null, "entries": [1]}'):
        (tmp_path / "sm_90.json").write_text(content)
        with pytest.raises(TableError, match=r"sm_90\.json is no table"):
            read_table(tmp_path / "sm_90.json")


def test_what_does_not_fit_shared_memory_does_not_compile_ahead(monkeypatch):
    from vllm_kernels.triton import compilation
    from vllm_kernels.triton.activation import plain

    asm = {"cubin": b"", "ptx": ".entry plain_kernel griddepcontrol.wait;"}
    binary = SimpleNamespace(asm=asm, metadata=SimpleNamespace(shared=SHARED_MEMORY["sm_80"] + 1))
    monkeypatch.setattr(compilation, "source_for", lambda *_: None)
    monkeypatch.setattr(compilation.triton, "compile", lambda *_, **__: binary)
    monkeypatch.setattr(compilation, "_usage", lambda _: (32, 0))
    configuration = plain.configurations("sm_80")[0]
    assert "more than the" in compilation.compile_for(plain, configuration, 80).error
    assert compilation.compile_for(plain, configuration, 90).error is None


# ---- what is chosen ----


def test_a_table_wins_over_the_rule_and_batch_invariance_over_both(folder):
    ask = {"where": "sm_90", "few": True, "head_dim": 100, "query": torch.float16, "entries": torch.bfloat16}
    with_rule = attention.TILES.rule(**FEW)
    Table("sm_90", None, (ENTRY,)).save(folder / "sm_90.json")
    assert attention.choose(**ask) == CHOICE != with_rule
    assert attention.choose(**{**ask, "query": torch.float32}) == attention.TILES.rule(**{**FEW, "query_bits": 32})
    with use_batch_invariance(True):
        assert attention.choose(**ask) == with_rule
    sizes = {configuration.constants["BLOCK_N"] for configuration in _decode_configurations()}
    assert CHOICE["BLOCK_N"] in sizes


def _decode_configurations():
    chosen = attention.attend.configurations("sm_90")
    return [each for each in chosen if each.constants["BLOCK_M"] == 16 and each.constants["BLOCK_D"] == 128]


def test_a_wrong_entry_is_told_when_it_is_asked_for(folder):
    Table("sm_90", None, (dataclasses.replace(ENTRY, choice={**CHOICE, "BLOCK_N": 48}),)).save(folder / "sm_90.json")
    with pytest.raises(TableError, match=r"the table of sm_90, attention_kernel .* power of two, got 48"):
        attention.TILES.choose("sm_90", **FEW)


def test_a_small_gpu_has_fewer_stages(monkeypatch):
    monkeypatch.setattr(tuning, "shared_memory", lambda _: 99 * 1024)
    _forget()
    try:
        choice = fp8.TILES.choose(torch.device("cpu"), rows=128, block=0)
    finally:
        _forget()
    assert fp8.TILES.work(rows=128, block=0, **choice).shared_bytes(choice["num_stages"]) <= 99 * 1024


# ---- candidates ----


def test_the_rule_is_the_first_candidate_and_none_is_too_large():
    for tunable in TUNABLES:
        shape = list(tunable.classes("sm_90"))[-1]
        found = candidates.candidates_of(tunable, shape, "sm_80", 9)
        assert found[0] == tunable.rule(**shape) and 3 <= len(found) <= 9
        for choice in found:
            assert tunable.fault(choice, **shape) is None
            assert tunable.work(**shape, **choice).shared_bytes(choice.get("num_stages", 1)) <= SHARED_MEMORY["sm_80"]


def test_the_configurations_of_a_class_are_those_that_its_choice_changes():
    kernel = next(kernel for kernel in KERNELS if kernel.name == "fp8_product_kernel")
    shape, choice = {"rows": 32, "block": 0}, {"BLOCK_N": 32, "num_warps": 4, "num_stages": 2}
    found = candidates.configurations_of(kernel, fp8.TILES, shape, choice, "sm_90")
    assert found and all(each.constants["BLOCK_M"] == 32 and each.constants["GROUP"] == 0 for each in found)
    assert {(each.constants["BLOCK_N"], each.num_warps, each.num_stages) for each in found} == {(32, 4, 2)}
    assert fp8.TILES.choose("sm_90", **shape) != choice


def test_programs_of_a_multiprocessor_are_counted_by_what_runs_out_first():
    facts = candidates.Facts(registers=128, spilled=0, shared=0, instructions=100)
    assert candidates.programs(facts, 4, "sm_90") == 4  # 65536 registers, 128 of each of 128 threads
    assert candidates.programs(dataclasses.replace(facts, registers=32, shared=75 * 1024), 4, "sm_90") == 3
    assert candidates.programs(dataclasses.replace(facts, registers=16), 8, "sm_90") == 8


def test_figures_of_the_compiler_rank_choices():
    rule = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3}
    wide = {**rule, "BLOCK_M": 128, "num_warps": 8}
    facts = candidates.Facts(registers=128, spilled=0, shared=32 * 1024, instructions=100)

    def rank(choice, facts, bound="matrix", stage_bytes=8192):
        work = Work(bound, choice["BLOCK_M"] * choice["BLOCK_N"], stage_bytes)
        return candidates.rank(choice, facts, work, rule, "sm_90")

    assert rank(wide, facts) < rank(rule, facts)
    assert rank(rule, facts) < rank(wide, dataclasses.replace(facts, spilled=8))
    assert rank(wide, facts) < rank({**wide, "num_stages": 2}, dataclasses.replace(facts, registers=255))
    # Bound by memory, a choice with enough under way is as good as one with more, and the rule decides.
    assert rank(rule, facts, "memory") < rank(wide, facts, "memory")
    deeper = {**rule, "num_stages": 4}
    assert rank(deeper, facts, "memory", 4096) < rank(rule, facts, "memory", 4096)


# ---- the command ----


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert tune.main([]) == 2
    assert "no GPU to time kernels on; --dry-run" in capsys.readouterr().err
    assert tune.main(["--kernels", "nobody"]) == 2


def test_a_dry_run_compiles_lists_and_writes(folder, monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET")
    words = ["--dry-run", "--kernels", "gated_kernel", "--most", "2", "--targets", "90", "--jobs", "1"]
    assert tune.main([*words, "--write"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 + 1 and all("2 candidates, 0 do not compile or fit, 0 spill" in line for line in shown[:2])
    table = read_table(folder / "sm_90.json")
    check(table, TUNABLES)
    ours = [entry for entry in table.entries if entry.kernel == "gated_kernel"]
    assert len(ours) == 2 and {entry.origin for entry in ours} == {"compiled"}


def test_the_fastest_candidate_with_right_values_wins(folder, monkeypatch, capsys):
    """With a clock that is made up: the way from the device's name to the table."""
    shape = {"rows": 32, "block": 0}
    wrong = fp8.TILES.rule(**shape)

    class Fake:
        tolerance = 0.5

        def truth(self):
            return torch.ones(1, dtype=torch.float64)

        def run(self):
            return torch.full((1,), 9.0 if fp8.TILES.choose("sm_90", **shape) == wrong else 1.0)

        def checked(self, result):
            return result

    def seconds(run):
        choice = fp8.TILES.choose("sm_90", **shape)
        return 1.0 if choice["num_warps"] == 8 and choice["num_stages"] == 2 else 2.0

    monkeypatch.setattr("vllm_kernels.benchmarks.workloads.workload", lambda *_: Fake())
    monkeypatch.setattr("vllm_kernels.benchmarks.timing.median_seconds", seconds)
    best, tried = tune.best_of(fp8.TILES, shape, "sm_90", torch.device("cpu"), 40, float("inf"))
    assert best[0]["num_warps"] == 8 and best[0]["num_stages"] == 2 and best[1] == 1.0 and tried > 10
    assert tune.best_of(fp8.TILES, shape, "sm_90", torch.device("cpu"), 40, 0.0) == (None, 1)
    line = tune._write("sm_90", "GPU of a test", [Entry("fp8_product_kernel", shape, best[0], "measured")], None)
    assert "1 of" in line
    saved = json.loads((folder / "sm_90.json").read_text())
    assert saved["device"] == "GPU of a test"
    assert [entry["class"] for entry in saved["entries"] if entry["origin"] == "measured"] == [shape]


@pytest.mark.skipif(not interpreted(), reason="tensors are on the CPU")
def test_every_class_has_a_workload_that_computes_the_right_values():
    """One class of each kernel, in the interpreter and tiny."""
    from vllm_kernels.backend import use_face
    from vllm_kernels.benchmarks.case import relative_error
    from vllm_kernels.benchmarks.workloads import workload

    with use_face("triton"):
        for tunable in TUNABLES:
            shape = next(iter(tunable.classes("sm_90")))
            case = workload(tunable.kernel, shape, torch.device("cpu"), tiny=True)
            assert relative_error(case.checked(case.run()), case.truth()) <= case.tolerance, tunable.kernel


def test_the_workloads_of_few_rows_of_fp8_are_of_fp8():
    from vllm_kernels.backend import use_face
    from vllm_kernels.benchmarks.case import relative_error
    from vllm_kernels.benchmarks.workloads import workload
    from vllm_kernels.triton.kernel import recorded

    with use_face("triton"):
        for gated in (0, 1):
            shape = {"out": 4096, "x_bits": 8, "gated": gated}
            assert shape in few_rows.TILES.classes("sm_90")
            case = workload("few_rows_kernel", shape, torch.device("cpu"), tiny=True)
            with recorded() as launches:
                result = case.run()
            (used,) = (configuration for kernel, configuration in launches if kernel.name == "few_rows_kernel")
            assert used.types["weight"] == "*fp8e4nv"
            assert relative_error(case.checked(result), case.truth()) <= case.tolerance


def test_a_forced_choice_ends_with_its_block():
    with forced(attention.TILES, FEW, CHOICE):
        assert attention.TILES.choose("sm_90", **FEW) == CHOICE
    assert attention.TILES.choose("sm_90", **FEW) != CHOICE


def test_the_tables_are_in_the_wheel_s_package():
    assert tuning.FOLDER.parent == Path(tuning.__file__).parent
