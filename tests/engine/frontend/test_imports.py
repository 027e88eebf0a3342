"""What the frontend must not load."""

import subprocess
import sys

CODE = """
import sys
import vllm_engine, vllm_engine.async_llm, vllm_engine.llm
from vllm_engine.config.model_files import resolve_model
from vllm_engine.frontend.chat_template import render_chat
from vllm_engine.frontend.engine_frontend import ModelFrontend
from vllm_engine import EngineArgs
config = EngineArgs("demo").create_config()
tokenizer = ModelFrontend.load(config, resolve_model("demo")).tokenizer
render_chat(tokenizer, [{"role": "user", "content": "Hi"}])
tokenizer.decode(tokenizer.encode("Hello"))
print(sorted({"torch", "transformers", "numpy", "huggingface_hub", "zmq"} & set(sys.modules)))
"""


def test_the_whole_way_from_chat_to_ids_needs_neither_torch_nor_transformers() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
