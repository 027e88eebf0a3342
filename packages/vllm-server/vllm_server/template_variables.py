"""Which variables of a chat template requests and settings may choose, as ``chat_template_kwargs``."""

RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "chat_template_content_format",
        "continue_final_message",
        "conversation",
        "messages",
        "must_read",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer",
        "tools",
    }
)
"""What the server itself hands to the template, or to what renders it."""


def may_be_chosen(name: str) -> bool:
    """Whether this is the name of a variable, and none of the server's own."""
    return name not in RESERVED and name.isidentifier() and not name.startswith("_")
