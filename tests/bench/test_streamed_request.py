import pytest

from vllm_bench.streamed_request import RequestTiming, request_body


def test_times_are_differences_of_the_recorded_moments():
    timing = RequestTiming(sent=10.0, text_times=[10.5, 10.6, 10.9], ended=11.0, completion_tokens=3)
    assert timing.first_token_seconds == pytest.approx(0.5)
    assert timing.inter_token_seconds == pytest.approx([0.1, 0.3])
    assert timing.seconds_per_output_token == pytest.approx(0.2)
    assert timing.total_seconds == pytest.approx(1.0)


def test_chunks_of_several_tokens_do_not_change_the_time_per_token():
    timing = RequestTiming(sent=0.0, text_times=[1.0, 2.0], ended=2.0, completion_tokens=5)
    assert timing.seconds_per_output_token == pytest.approx(0.25)


@pytest.mark.parametrize("text_times", [[1.0], [1.0, 2.0]])
def test_an_answer_of_one_token_has_no_time_per_token(text_times: list[float]):
    timing = RequestTiming(sent=0.0, text_times=text_times, ended=3.0, completion_tokens=1)
    assert timing.seconds_per_output_token is None


def test_without_usage_the_chunks_are_the_tokens():
    assert RequestTiming(sent=0.0, text_times=[1.0, 2.0, 3.0], ended=3.0).output_tokens == 3


def test_a_chat_body_carries_a_message_and_a_completion_body_a_prompt():
    chat = request_body("openai-chat", "m", "Hi", {"max_tokens": 3})
    assert chat["messages"] == [{"role": "user", "content": "Hi"}]
    assert "prompt" not in chat
    assert request_body("openai", "m", "Hi", {})["prompt"] == "Hi"
