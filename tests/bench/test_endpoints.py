import pytest

from vllm_bench import endpoints
from vllm_bench.endpoints.chat import Chat
from vllm_bench.endpoints.completions import Completions
from vllm_bench.endpoints.embeddings import CHAT, OPENAI
from vllm_bench.endpoints.rerank import Rerank
from vllm_bench.endpoints.responses import Responses
from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import Messages, Ranking, Texts, WorkItem

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


def test_tokens_without_text_have_their_moments():
    """Special ones past an answer's end take their time; chunks that name a role, an end or a count are no tokens."""
    record = RequestRecord(0.0, 0.0)
    ends = [("", None), ("a", None), ("", None), ("", "length")]
    for now, (text, finish) in enumerate(ends):
        Completions().read({"choices": [{"text": text, "finish_reason": finish}]}, float(now), record)
    Completions().read({"choices": [{"text": "", "finish_reason": "stop"}]}, 4.0, record)
    Completions().read({"choices": [], "usage": {"completion_tokens": 4}}, 5.0, record)
    assert (record.text_times, record.tpot) == ([0.0, 1.0, 2.0, 3.0], 1.0)

    record = RequestRecord(0.0, 0.0)
    deltas = [{"role": "assistant", "content": ""}, {"content": ""}, {"tool_calls": [{}]}, {}]
    for now, delta in enumerate(deltas):
        Chat().read({"choices": [{"delta": delta}]}, float(now), record)
    Chat().read({"choices": [{"delta": {"content": ""}, "finish_reason": "stop"}]}, 4.0, record)
    assert record.text_times == [1.0, 2.0]


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


def test_each_api_asks_for_log_probabilities_in_its_own_way():
    item, options = WorkItem("Hi"), {"logprobs": 3}
    assert Completions().body(item, "m", options)["logprobs"] == 3
    chat = Chat().body(item, "m", options)
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 3)
    response = Responses().body(item, "m", options)
    assert (response["top_logprobs"], response["include"]) == (3, ["message.output_text.logprobs"])
    assert "logprobs" not in response
    assert "top_logprobs" not in Chat().body(item, "m", {"logprobs": True})


def test_a_response_reads_typed_events_to_the_one_with_the_usage():
    record = RequestRecord(0.0, 0.0)
    events = [
        {"type": "response.created", "response": {"usage": None}},
        {"type": "response.output_item.added", "item": {"type": "reasoning"}},
        {"type": "response.reasoning_text.delta", "delta": "hm"},
        {"type": "response.output_text.delta", "delta": "yes"},
        {"type": "response.output_text.done", "text": "yes"},
        {"type": "response.incomplete", "response": {"usage": {"input_tokens": 4, "output_tokens": 2}}},
    ]
    for now, event in enumerate(events):
        assert not record.finished
        Responses().read(event, float(now), record)
    assert (record.text_times, record.texts, record.finished) == ([2.0, 3.0], ["", "yes"], True)
    assert (record.prompt_tokens, record.completion_tokens, record.error) == (4, 2, None)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "code": "server_error", "message": "the engine stumbled"},
        {"type": "response.failed", "response": {"error": {"message": "the engine stumbled"}}},
    ],
)
def test_a_failed_response_is_the_requests_error(event: dict):
    record = RequestRecord(0.0, 0.0)
    Responses().read(event, 1.0, record)
    assert "the engine stumbled" in record.error


@pytest.mark.parametrize(
    ("endpoint", "content"),
    [
        (Completions(), {"choices": [{"text": "yes"}], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}),
        (Chat(), {"choices": [{"message": {"content": "yes"}}], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}),
        (
            Responses(),
            {
                "status": "completed",
                "error": None,
                "output": [
                    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
                    {"type": "message", "content": [{"type": "output_text", "text": "yes"}]},
                ],
                "usage": {"input_tokens": 4, "output_tokens": 2},
            },
        ),
    ],
)
def test_a_whole_answer_has_text_and_usage_but_no_moments(endpoint, content: dict):
    record = RequestRecord(0.0, 0.0)
    endpoint.read_whole(content, record)
    assert (record.texts, record.text_times) == (["yes"], [])
    assert (record.prompt_tokens, record.completion_tokens, record.error) == (4, 2, None)
    assert endpoint.complaint(record) is None


def test_embeddings_take_texts_ids_and_conversations_each_by_its_backend():
    assert OPENAI.body(WorkItem("a"), "m", {"dimensions": 2}) == {"model": "m", "input": "a", "dimensions": 2}
    assert OPENAI.body(WorkItem(Texts(["a", "b"])), "m", {})["input"] == ["a", "b"]
    assert OPENAI.body(WorkItem([1, 2]), "m", {})["input"] == [1, 2]
    assert CHAT.body(WorkItem("a"), "m", {})["messages"] == [{"role": "user", "content": "a"}]
    with pytest.raises(ValueError, match="openai-embeddings-chat"):
        OPENAI.body(WorkItem(Messages()), "m", {})
    with pytest.raises(ValueError, match="vllm-rerank"):
        OPENAI.body(WorkItem(Ranking("q", ("d",))), "m", {})
    with pytest.raises(ValueError, match="random-rerank"):
        Rerank().body(WorkItem("a"), "m", {})
    with pytest.raises(ValueError, match="several texts"):
        Chat().body(WorkItem(Texts(["a", "b"])), "m", {})


def test_scores_are_an_answer_and_their_absence_is_none():
    record = RequestRecord(0.0, 0.0)
    body = Rerank().body(WorkItem(Ranking("q", ("a", "b"))), "m", {"top_n": 1})
    assert body == {"model": "m", "query": "q", "documents": ["a", "b"], "top_n": 1}
    Rerank().read_whole({"results": [{"index": 0}], "usage": {"total_tokens": 9}}, record)
    assert (record.prompt_tokens, record.completion_tokens) == (9, None)
    for nothing in ({"results": []}, {"results": None}, {"error": "no"}):
        with pytest.raises(ValueError, match=r"empty|no"):
            Rerank().read_whole(nothing, record)
