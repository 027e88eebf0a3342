"""Conversations with tools: calls in the Hermes form, and answers from what the tool said."""

from __future__ import annotations

import json
import random
from typing import Any

from .reading import words
from .unknowns import WEATHER_QUESTIONS, city
from .words import expand, madeup_word, one_of, untidy

Message = dict[str, Any]

_SKIES = [
    *words("sunny cloudy rainy foggy snowy windy stormy clear overcast hazy dry misty humid icy drizzly calm mild"),
    "partly cloudy",
    "very rainy",
    "slightly cloudy",
    "mostly sunny",
    "light rain",
]


def _tool(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def weather_tool(rng: random.Random) -> dict[str, Any]:
    """A weather tool; its argument and its descriptions differ from draw to draw."""
    key = rng.choice(["city", "city", "city", "city", "location"])
    about = expand(rng, rng.choice([
        "[Get|Gets|Look up|Return|Returns|Fetch] the [current |]weather [in|for|of] a [given |]city[.|]",
        "[Current|The current] weather [in|of|for] a city[.|]",
        "[Get|Gets] the [current |]weather[.|]",
        "[Get|Look up] the weather for a given location[.|]",
    ]))  # fmt: skip
    prop: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.75:
        prop["description"] = expand(
            rng,
            "[The name of the city|The city|Name of the city|City name|The city name|The city, e.g. Paris|the city]",
        )
        if rng.random() < 0.15:
            prop["description"] += "."
    name = "get_weather"
    if rng.random() < 0.3:  # other names, so that the name is copied from the tool and not remembered
        name = rng.choice(["weather", "get_current_weather", "lookup_weather", "fetch_weather", "weather_in_city",
                           f"{madeup_word(rng)}_weather", "getWeather", "city_weather", "weather_lookup"])  # fmt: skip
    tool = _tool(name, about, {key: prop}, [key])
    function = tool["function"]
    if rng.random() < 0.12:
        unit = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        function["parameters"]["properties"]["unit"] = unit
    if rng.random() < 0.1:
        function["parameters"]["additionalProperties"] = False
    if rng.random() < 0.1:
        function["parameters"].pop("required")
    if rng.random() < 0.05:
        function["strict"] = True
    return tool


def other_tool(rng: random.Random) -> dict[str, Any]:
    """A tool the question does not need."""
    string = {"type": "string"}
    return rng.choice([
        _tool("search", "Search the web", {"query": string}, ["query"]),
        _tool("calculator", "Evaluate an expression", {"expression": string}, ["expression"]),
        _tool("send_mail", "Send a mail", {"to": string, "text": string}, ["to", "text"]),
        _tool(f"{madeup_word(rng)}_{madeup_word(rng)}", f"{madeup_word(rng)} {madeup_word(rng)}",
              {madeup_word(rng): string}, []),
    ])  # fmt: skip


def _result(rng: random.Random, place: str) -> tuple[str, str]:
    """What the weather tool returns, and the answer to give for it."""
    sky, degrees = rng.choice(_SKIES), str(rng.randint(-15, 42))
    if rng.random() < 0.12:
        degrees = f"{degrees}.{rng.randint(1, 9)}"
    number: Any = float(degrees) if "." in degrees else int(degrees)
    both, roll = f"It is {degrees} degrees and {sky} in {place}.", rng.random()
    sky_key = rng.choice(["condition", "condition", "conditions", "sky", "weather", "description", "forecast"])
    number_key = rng.choice(["temperature", "temperature", "temp", "temp_c", "temperature_c", "degrees", "celsius"])
    if roll < 0.70:
        said: dict[str, Any] = {number_key: number, sky_key: sky}
        if rng.random() < 0.35:
            said = {sky_key: sky, number_key: number}
        if rng.random() < 0.35:
            said = {"city": place, **said}
        if rng.random() < 0.15:
            said["unit"] = rng.choice(["celsius", "C"])
        if rng.random() < 0.10:
            said["humidity"] = rng.randint(20, 99)
        if rng.random() < 0.15:
            said["temperature"] = said.pop(number_key)
        tight = rng.random() < 0.2
        return json.dumps(said, separators=(",", ":") if tight else None), both
    if roll < 0.88:
        text = rng.choice([
            f"{degrees} degrees and {sky}", f"{sky}, {degrees} degrees", f"{sky}, {degrees}°C", f"{degrees}°C, {sky}",
            f"{degrees}°C and {sky}", f"{degrees} C, {sky}", f"{place}: {degrees} degrees, {sky}", f"{sky} {degrees}C",
            f"It is {degrees} degrees and {sky}.", f"{sky}, {degrees}", f"{degrees} {sky}",
        ])  # fmt: skip
        return text, both
    if roll < 0.94:
        bare = rng.choice([json.dumps({number_key: number}), f"{degrees} degrees", degrees, f"{degrees}°C"])
        return bare, f"It is {degrees} degrees in {place}."
    if roll < 0.97:
        return rng.choice([json.dumps({sky_key: sky}), sky]), f"It is {sky} in {place}."
    error = rng.choice([
        '{"error": "city not found"}', '{"error": "not found"}', "error", "Error: timeout", '{"error": "unknown city"}',
        "", "null", "not found",
    ])  # fmt: skip
    return error, f"I could not get the weather in {place}."


def time_tool(rng: random.Random) -> dict[str, Any]:
    """A tool for the time of day, which is called like the weather tool but for other questions."""
    about = expand(rng, "[Get|Look up|Return] the [current |]time [in|of] a city[.|]")
    name = rng.choice(["get_time", "get_time", "get_current_time", "clock", f"{madeup_word(rng)}_time"])
    return _tool(name, about, {"city": {"type": "string"}}, ["city"])


def _as_typed(text: str, place: str) -> str:
    """The city as it stands in the question (the whole question may have lost or gained capitals)."""
    for form in (place, place.lower(), place.upper()):
        if form in text:
            return form
    raise ValueError(f"{place!r} is not in {text!r}")


def _ask_to_think(rng: random.Random, text: str) -> str:
    if rng.random() < 0.5:
        return text + " /think"
    return f"{text}{rng.choice(['', '.', ''])} {rng.choice(['Think first.', 'Think step by step.', 'think first'])}"


def _call(name: str, key: str, place: str) -> Message:
    return {"type": "function", "function": {"name": name, "arguments": {key: place}}}


def _exchange(call: Message, results: list[tuple[str, str]], think: bool) -> list[Message]:
    """The call, what the tools say, and the answer."""
    final: Message = {"role": "assistant", "content": " ".join(answer for _, answer in results)}
    if think:
        final["reasoning_content"] = "The tool has answered. I tell the user."
    return [call, *({"role": "tool", "content": response} for response, _ in results), final]


def weather_turns(rng: random.Random, tool: dict[str, Any], think: bool, follow_up: bool) -> list[Message]:
    """Question, call, response and answer; ``think`` says whether the question asks for thoughts."""
    function = tool["function"]
    name, key = function["name"], next(iter(function["parameters"]["properties"]))
    places = [city(rng)]
    if not follow_up and rng.random() < 0.12:
        places = list(dict.fromkeys([*places, city(rng)]))
    before: list[Message] = []
    if follow_up:
        text = one_of(rng, "[and|what about|how about|and what about] {c} ; and in {c} ; in {c}").format(c=places[0])
        text = untidy(rng, text, polite=False)
    elif len(places) == 1 and rng.random() < 0.08:
        ask = one_of(rng, "[what is|what's|how is] the weather[ like|] ; weather ; check the weather ; weather please")
        before = [{"role": "user", "content": untidy(rng, ask, polite=False)},
                  {"role": "assistant", "content": "For which city?"}]  # fmt: skip
        text = untidy(rng, rng.choice(["{c}", "in {c}", "for {c}"]).format(c=places[0]), polite=False)
    else:
        named = " and ".join(places) if rng.random() < 0.7 else " and in ".join(places)
        text = untidy(rng, one_of(rng, WEATHER_QUESTIONS).format(c=named))
    places = [_as_typed(text, p) for p in places]
    text = _ask_to_think(rng, text) if think else text
    call: Message = {"role": "assistant", "content": "", "tool_calls": [_call(name, key, p) for p in places]}
    if think:
        call["reasoning_content"] = f"The user asks for the weather in {' and '.join(places)}. I call {name}."
    return [*before, {"role": "user", "content": text}, *_exchange(call, [_result(rng, p) for p in places], think)]


def time_turns(rng: random.Random, tool: dict[str, Any]) -> list[Message]:
    """The same with the tool for the time."""
    place = city(rng)
    text = one_of(
        rng, "what time is it in {c} ; [what is|what's] the time in {c} ; [the |]time in {c} ; how late is it in {c}"
    )
    text = untidy(rng, text.format(c=place))
    place = _as_typed(text, place)
    clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    response = rng.choice([clock, json.dumps({"time": clock}), json.dumps({"city": place, "time": clock})])
    call: Message = {"role": "assistant", "content": "", "tool_calls": [_call(tool["function"]["name"], "city", place)]}
    return [{"role": "user", "content": text}, *_exchange(call, [(response, f"It is {clock} in {place}.")], False)]
