"""``GET /v1/models``."""

import msgspec


class ModelCard(msgspec.Struct, tag_field="object", tag="model"):
    """One name under which a model is served. ``root`` is the model behind it, ``created`` in seconds since 1970."""

    id: str
    created: int
    root: str
    max_model_len: int
    owned_by: str = "vllm"
    parent: str | None = None


class ModelList(msgspec.Struct, tag_field="object", tag="list"):
    """All names."""

    data: list[ModelCard]
