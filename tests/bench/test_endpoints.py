import pytest

from vllm_bench import endpoints
from vllm_bench.endpoints.chat import Chat
from vllm_bench.endpoints.completions import Completions
from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import Messages, WorkItem

STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def test_a_completion_asks_for_what_the_item_and_the_options_say():
    item = WorkItem([1, 2], output_len=3, extra={"priority": 1})
    expected = {"model": "m", "prompt": [1, 2], "max_tokens": 3, "temperature": 0.0, "priority": 1, **STREAM}
    assert Completions().body(item, "m", {"temperature": 0.0}) == expected
    with pytest.raises(ValueError, match="openai-chat"):
        Completions().body(WorkItem(Messages()), "m", {})


def test_a_chat_asks_with_messages():
    body = Chat().body(WorkItem("Hi", output_len=3), "m", {})
    hi = [{"role": "user", "content": "Hi"}]
    assert body == {"model": "m", "messages": hi, "max_completion_tokens": 3, **STREAM}
    assert Chat().body(WorkItem(Messages(hi)), "m", {})["messages"] == hi
    with pytest.raises(ValueError, match="token ids"):
        Chat().body(WorkItem([1]), "m", {})


def test_a_chat_reads_thoughts_as_text_and_only_the_answer_as_answer():
    record = RequestRecord(0.0, 0.0)
    for now, delta in enumerate([{"role": "assistant", "content": ""}, {"reasoning": "hm"}, {"content": "yes"}, {}]):
        Chat().read({"choices": [{"delta": delta}]}, float(now), record)
    Chat().read({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}, 4.0, record)
    assert (record.text_times, record.texts) == ([1.0, 2.0], ["", "yes"])
    assert (record.prompt_tokens, record.completion_tokens, record.error) == (4, 2, None)


def test_a_chunk_of_several_choices_is_one():
    record = RequestRecord(0.0, 0.0)
    Completions().read({"choices": [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}]}, 1.0, record)
    assert (record.text_times, record.texts) == ([1.0], ["ab"])


def test_an_answer_of_nothing_is_none_but_tokens_without_text_are_one():
    assert "no text" in Completions().complaint(RequestRecord(0.0, 0.0))
    assert "no text" in Completions().complaint(RequestRecord(0.0, 0.0, completion_tokens=0))
    assert Completions().complaint(RequestRecord(0.0, 0.0, completion_tokens=3)) is None


def test_an_error_event_is_the_requests_error():
    record = RequestRecord(0.0, 0.0)
    Completions().read({"error": {"message": "the engine stumbled"}}, 1.0, record)
    assert "the engine stumbled" in record.error


@pytest.mark.parametrize("name", endpoints.ENDPOINTS)
def test_every_backend_can_be_loaded(name: str):
    assert endpoints.load(name).path.startswith("/")
