"""What a request wants: its options, checked, become the texts to generate."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from llmcli import text
from llmcli.errors import LlmcliError
from llmcli.generation.batch import Request
from llmcli.generation.context import check_prompt, check_text
from llmcli.generation.conversation import for_chat
from llmcli.generation.grammar import Grammar, choice_rules, json_rules, regex_rules
from llmcli.generation.loaded import LoadedModel, encode_prompt
from llmcli.generation.sampling import Sampler
from llmcli.serve.body import Body
from llmcli.serve.errors import api_error, bad_request
from llmcli.serve.limits import Limits
from llmcli.serve.prompts import Prompt, read_messages, read_spans
from llmcli.serve.sampler_options import read_sampler
from llmcli.serve.thoughts import Thoughts, read_thoughts, template_errors, template_values
from llmcli.text.attribution import reply_tokens
from llmcli.text.chat_format import TemplateFormat
from llmcli.text.chat_template import Message
from llmcli.text.thinking import Thinking, thinking_of
from llmcli.text.tokenizer import Tokenizer

# OpenAI's options that do not affect the text.
UNRELATED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
TOOLS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")


@dataclass(frozen=True)
class Wanted:
    """The texts that a request wants: ``count`` for each prompt. ``alternatives`` is None for no probabilities."""

    chat: bool
    prompts: tuple[Prompt, ...]
    count: int
    max_tokens: int
    stop: tuple[str, ...]
    stop_ids: frozenset[int]
    sampler: Sampler
    thoughts: Thoughts
    tokenizer: Tokenizer
    alternatives: int | None
    echo: bool
    stream: bool
    include_usage: bool
    warnings: tuple[str, ...]

    def requests(self, number: int) -> list[Request]:
        """The texts that continue prompt ``number``; their keys are the indices of OpenAI's choices."""
        ids, first = self.prompts[number].ids, number * self.count
        return [
            Request(
                first + n,
                ids,
                self.thoughts.limited(self.sampler.copy(self.sampler.seed + n, len(ids)), self.tokenizer, len(ids)),
                self.max_tokens,
                stop=self.stop,
                shown=self.thoughts.thinking.tag_ids(self.tokenizer),
                stop_ids=self.stop_ids,
            )
            for n in range(self.count)
        ]


class Reader:
    """Reads requests for one model; ``template`` is None for a model that was not trained to chat."""

    def __init__(self, loaded: LoadedModel, template: text.ChatTemplate | None, limits: Limits) -> None:
        self.loaded, self.template, self.limits = loaded, template, limits
        self._grammar = lru_cache(maxsize=16)(lambda rules, stops: Grammar(self._stopping(stops), rules))

    @cached_property
    def thinking(self) -> Thinking:
        """How the model thinks."""
        return Thinking() if self.template is None else thinking_of(self.template, self.loaded.tokenizer)

    def read(self, body: Body, *, chat: bool) -> Wanted:
        """Return the texts to generate. Raises ApiError if the request is invalid."""
        try:
            return self._read(body, chat=chat)
        except LlmcliError as error:
            raise api_error(error) from None

    def _read(self, body: Body, *, chat: bool) -> Wanted:
        stops = self.loaded.stop_ids
        if chat:
            conversation, stops = self.conversation(body)
            prompts = [conversation]
        else:
            prompts = self._prompts(body)
        rules = self._rules(body)
        count = body.integer("n", 1, low=1, high=max(self.limits.texts // len(prompts), 1)) or 1
        stop = self._stop(body, free=rules is None)
        thoughts = read_thoughts(body, self.thinking, prompts[0].text, free=rules is None) if chat else Thoughts()
        echo = not chat and body.flag("echo")
        alternatives = self._alternatives(body, chat=chat)
        max_tokens = self._max_tokens(body, chat=chat, echo=echo)
        stops |= frozenset(body.ids("stop_token_ids", self.loaded.model.config.vocab_size) or ())
        sampler = read_sampler(self.loaded, body, None if rules is None else self._grammar(rules, stops))
        stream = body.flag("stream")
        include_usage = self._include_usage(body)
        if not chat and (body.integer("best_of", count, low=1) or count) != count:
            raise bad_request("best_of must equal n", "best_of")
        body.ignore(*UNRELATED)
        if chat:
            body.ignore(*TOOLS, warn="this server does not support tools")
        body.check()
        for prompt in prompts:
            check_prompt(self.loaded.model, prompt.ids)
        return Wanted(
            chat,
            tuple(prompts),
            count,
            max_tokens,
            stop,
            stops,
            sampler,
            thoughts,
            self.loaded.tokenizer,
            alternatives,
            echo,
            stream,
            include_usage,
            tuple(body.warnings),
        )

    def _stopping(self, stops: frozenset[int]) -> LoadedModel:
        """The model as one whose texts end at ``stops``."""
        return replace(self.loaded, defaults=replace(self.loaded.defaults, stop_ids=tuple(sorted(stops))))

    def _form(self, body: Body) -> TemplateFormat:
        if self.template is None:
            raise bad_request(
                f"{self.loaded.name} has no chat template: it was not trained to chat (use /v1/completions)"
            )
        values = template_values(body, self.template, self.thinking)
        with template_errors(self.template, "chat_template_kwargs"):
            return TemplateFormat(self.template.with_arguments(values), self.loaded.tokenizer)

    def conversation(self, body: Body) -> tuple[Prompt, frozenset[int]]:
        """The messages of a request up to where the reply begins, and the tokens that end the reply.

        Raises ApiError if there is no chat template.
        """
        form = self._form(body)
        messages = read_messages(body.take("messages"))
        self._check_length(messages)
        with template_errors(form.template, "messages"):
            rendered = form.render(messages)
        stops = for_chat(self.loaded, form, self.thinking).stop_ids
        encoded = form.encode_spans(rendered)
        ids = self.loaded.readable([id for id, _, _ in encoded])
        return Prompt(ids, rendered.text, tuple(reply_tokens(form, messages, rendered, encoded))), stops

    def _check_length(self, messages: list[Message]) -> None:
        """Raise ApiError for a conversation that is far too long, before it is rendered."""
        context, what = self.loaded.model.config.max_position_embeddings, "the conversation"
        if len(messages) > context:
            message = f"{what} has {len(messages)} messages, but the model's context holds {context} tokens"
            raise bad_request(message, "messages", "context_length_exceeded")
        said = "".join(message.content + message.reasoning for message in messages)
        try:
            check_text(said, self.loaded.tokenizer.encode, context, what, "conversation-too-long")
        except LlmcliError as error:
            raise api_error(error, "messages") from None

    def prompt(self, body: Body) -> Prompt:
        """The only prompt of a request. Raises ApiError if it is not a text or a list of ids."""
        return self._prompt(body.take("prompt", ""))

    def _prompts(self, body: Body) -> list[Prompt]:
        given = body.take("prompt", "")
        several = isinstance(given, list) and (not given or not isinstance(given[0], int))
        if several and len(given) > self.limits.texts:
            raise bad_request(f"at most {self.limits.texts} prompts in one request", "prompt")
        found = [self._prompt(each) for each in (given if several else [given])]
        if not found:
            raise bad_request("prompt is an empty list", "prompt")
        spans = body.take("generated_spans")
        return found if spans is None else [replace(each, generated=read_spans(spans, each.ids)) for each in found]

    def _prompt(self, given: Any) -> Prompt:
        if isinstance(given, str):
            return Prompt(encode_prompt(self.loaded, given), given)
        if isinstance(given, list) and all(type(id) is int for id in given):
            ids = self.loaded.readable(given)
            return Prompt(ids, self.loaded.tokenizer.decode(ids))
        raise bad_request("prompt must be a string, a list of token ids, or a list of either", "prompt")

    def _rules(self, body: Body) -> str | None:
        """The rules of a grammar for the text; None for free text."""
        kind = body.take("response_format", {"type": "text"})
        named = {name: body.take(name) for name in ("json_schema", "regex", "choices")}
        given = [name for name, value in named.items() if value is not None]
        if not isinstance(kind, dict) or kind.get("type") not in ("text", "json_object", "json_schema"):
            raise bad_request("response_format.type must be text, json_object or json_schema", "response_format")
        if kind["type"] != "text":
            given.append("response_format")
        if len(given) > 1:
            raise bad_request(f"{' and '.join(given)} cannot be combined", given[0])
        if not given:
            return None
        if len(json.dumps([named, kind])) > self.limits.rules:
            raise bad_request(f"{given[0]} is longer than {self.limits.rules} characters", given[0])
        try:
            return _rules_of(given[0], named, kind)
        except LlmcliError as error:
            raise api_error(error, given[0]) from None

    def _stop(self, body: Body, *, free: bool) -> tuple[str, ...]:
        given = body.texts("stop")
        if len(given) > self.limits.stops or any(not 0 < len(each) <= self.limits.stop_length for each in given):
            longest = f"of 1 to {self.limits.stop_length} characters"
            raise bad_request(f"stop takes at most {self.limits.stops} strings {longest}", "stop")
        return given or (self.loaded.defaults.stop if free else ())

    def _alternatives(self, body: Body, *, chat: bool) -> int | None:
        most = self.limits.alternatives
        if not chat:
            if body.take("logprobs") is False:
                return None
            return body.integer("logprobs", None, high=most)
        wanted, count = body.flag("logprobs"), body.integer("top_logprobs", None, high=most)
        if count is not None and not wanted:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
        return (count or 0) if wanted else None

    def _max_tokens(self, body: Body, *, chat: bool, echo: bool) -> int:
        given = body.integer("max_tokens", None, low=0 if echo else 1)
        if chat:
            newer = body.integer("max_completion_tokens", None, low=1)
            given = given if newer is None else newer
        return self.loaded.defaults.token_limit(given)

    def _include_usage(self, body: Body) -> bool:
        options = body.take("stream_options", {})
        if not isinstance(options, dict):
            raise bad_request("stream_options must be an object", "stream_options")
        return options.get("include_usage") is True


def _rules_of(given: str, named: dict[str, Any], kind: dict[str, Any]) -> str:
    if given == "regex":
        if not isinstance(named["regex"], str):
            raise bad_request("regex must be a string", "regex")
        return regex_rules(named["regex"])
    if given == "choices":
        choices = named["choices"]
        if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
            raise bad_request("choices must be a list of strings", "choices")
        return choice_rules(choices)
    if given == "json_schema":
        return json_rules(named["json_schema"])
    if kind["type"] == "json_object":
        return json_rules({"type": "object"})
    inner = kind.get("json_schema")
    if not isinstance(inner, dict) or "schema" not in inner:
        raise bad_request("response_format of type json_schema needs json_schema.schema", "response_format")
    return json_rules(inner["schema"])
