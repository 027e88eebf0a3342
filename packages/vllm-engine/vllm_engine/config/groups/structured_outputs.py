"""Constrained output and reasoning."""

from dataclasses import dataclass
from typing import Literal

from vllm_engine.config.groups.reasons import NO_GRAMMARS, NO_REASONING
from vllm_engine.config.option import key, option


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsConfig:
    """How output is held to a grammar, and how reasoning is told from the answer."""

    backend: Literal["auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer"] = key(
        "auto", help="library that holds output to a grammar", unsupported=NO_GRAMMARS
    )
    disable_any_whitespace: bool = key(False, help="no free white space in JSON", unsupported=NO_GRAMMARS)
    disable_additional_properties: bool = key(
        False, help="no properties in JSON objects that the schema does not name", unsupported=NO_GRAMMARS
    )
    reasoning_parser: str = option(
        "", help="parser that separates reasoning from the answer", unsupported=NO_REASONING, metavar="PARSER"
    )
    reasoning_parser_plugin: str = option(
        "", help="Python file that registers more reasoning parsers", unsupported=NO_REASONING
    )
    enable_in_reasoning: bool = key(False, help="hold the reasoning to the grammar, too", unsupported=NO_GRAMMARS)
