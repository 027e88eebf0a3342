"""From prompts that were given as embeddings to the rows of one forward pass."""

import numpy as np
import torch

from vllm_engine.execution.input_batch import InputBatch
from vllm_engine.execution.step_inputs import StepInputs
from vllm_engine.layers.embedding import GivenEmbeds
from vllm_kernels.transfers import upload, upload_arrays


def given_embeds(
    batch: InputBatch, rows: np.ndarray, inputs: StepInputs, dtype: torch.dtype, device: torch.device
) -> GivenEmbeds | None:
    """The given embeddings of the tokens of a step; None when it has only tokens of the vocabulary.

    Args:
        batch: the persistent rows.
        rows: int64 [S], batch rows in the order of the step.
        inputs: the tokens of the step.
        dtype: data type of the model, which is that of the embeddings.
        device: where the tensors go.
    """
    places, parts = [], []
    for i, row in enumerate(rows.tolist()):
        embeds = batch.prompt_embeds.get(row)
        if embeds is None:
            continue
        start, begin, end = int(inputs.starts[i]), int(inputs.offsets[i]), int(inputs.offsets[i + 1])
        part = embeds[start : start + end - begin]
        places.append(np.arange(begin, begin + len(part)))
        parts.append(part)
    if not places:
        return None
    (there,) = upload_arrays([np.concatenate(places)], device)
    return GivenEmbeds(places=there, rows=upload(torch.from_numpy(np.concatenate(parts)).view(dtype), device))
