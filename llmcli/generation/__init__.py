"""Generating text: the loop of steps, the sampler, speculative decoding, grammars, batches and conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.generation.batch import BatchStep as BatchStep
    from llmcli.generation.bench import Speed as Speed
    from llmcli.generation.bench import measure as measure
    from llmcli.generation.bench import peak_memory as peak_memory
    from llmcli.generation.bench import random_model_of as random_model_of
    from llmcli.generation.bench import read_bandwidth as read_bandwidth
    from llmcli.generation.choice_texts import check_choices as check_choices
    from llmcli.generation.choice_texts import check_several as check_several
    from llmcli.generation.choices import Question as Question
    from llmcli.generation.choices import Scored as Scored
    from llmcli.generation.choices import ask as ask
    from llmcli.generation.choices import score_choices as score_choices
    from llmcli.generation.choices import shares_of as shares_of
    from llmcli.generation.context import Overflow as Overflow
    from llmcli.generation.conversation import Conversation as Conversation
    from llmcli.generation.conversation import Messages as Messages
    from llmcli.generation.conversation import Reply as Reply
    from llmcli.generation.conversation import for_chat as for_chat
    from llmcli.generation.generate import Generation as Generation
    from llmcli.generation.generation_config import Defaults as Defaults
    from llmcli.generation.gguf_texts import gguf_metadata as gguf_metadata
    from llmcli.generation.grammar import Grammar as Grammar
    from llmcli.generation.grammar import GrammarFilter as GrammarFilter
    from llmcli.generation.grammar import choice_rules as choice_rules
    from llmcli.generation.grammar import json_rules as json_rules
    from llmcli.generation.grammar import regex_rules as regex_rules
    from llmcli.generation.loaded import LoadedModel as LoadedModel
    from llmcli.generation.loaded import encode_prompt as encode_prompt
    from llmcli.generation.loaded import fit_prompt as fit_prompt
    from llmcli.generation.loaded import load as load
    from llmcli.generation.loaded import read_checkpoint as read_checkpoint
    from llmcli.generation.prompt_cache import PromptCache as PromptCache
    from llmcli.generation.prompt_cache import Reuse as Reuse
    from llmcli.generation.samples import Sample as Sample
    from llmcli.generation.samples import Samples as Samples
    from llmcli.generation.sampling import Sampler as Sampler
    from llmcli.generation.speculative import DraftModel as DraftModel
    from llmcli.generation.speculative import PromptLookup as PromptLookup
    from llmcli.generation.speculative import check_vocabularies as check_vocabularies
    from llmcli.generation.steps import Continuation as Continuation
    from llmcli.generation.steps import Proposer as Proposer
    from llmcli.generation.steps import Step as Step
    from llmcli.generation.steps import decode_steps as decode_steps
    from llmcli.generation.steps import step_at as step_at

__all__ = [
    "BatchStep",
    "Continuation",
    "Conversation",
    "Defaults",
    "DraftModel",
    "Generation",
    "Grammar",
    "GrammarFilter",
    "LoadedModel",
    "Messages",
    "Overflow",
    "PromptCache",
    "PromptLookup",
    "Proposer",
    "Question",
    "Reply",
    "Reuse",
    "Sample",
    "Sampler",
    "Samples",
    "Scored",
    "Speed",
    "Step",
    "ask",
    "check_choices",
    "check_several",
    "check_vocabularies",
    "choice_rules",
    "decode_steps",
    "encode_prompt",
    "fit_prompt",
    "for_chat",
    "gguf_metadata",
    "json_rules",
    "load",
    "measure",
    "peak_memory",
    "random_model_of",
    "read_bandwidth",
    "read_checkpoint",
    "regex_rules",
    "score_choices",
    "shares_of",
    "step_at",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "Reuse": "prompt_cache",
        "BatchStep": "batch",
        "Speed": "bench",
        "measure": "bench",
        "peak_memory": "bench",
        "random_model_of": "bench",
        "read_bandwidth": "bench",
        "Overflow": "context",
        "encode_prompt": "loaded",
        "fit_prompt": "loaded",
        "Conversation": "conversation",
        "Messages": "conversation",
        "Reply": "conversation",
        "for_chat": "conversation",
        "Generation": "generate",
        "Defaults": "generation_config",
        "gguf_metadata": "gguf_texts",
        "Grammar": "grammar",
        "GrammarFilter": "grammar",
        "choice_rules": "grammar",
        "json_rules": "grammar",
        "regex_rules": "grammar",
        "LoadedModel": "loaded",
        "load": "loaded",
        "read_checkpoint": "loaded",
        "PromptCache": "prompt_cache",
        "Sample": "samples",
        "Samples": "samples",
        "Sampler": "sampling",
        "DraftModel": "speculative",
        "PromptLookup": "speculative",
        "check_vocabularies": "speculative",
        "Continuation": "steps",
        "Proposer": "steps",
        "Step": "steps",
        "decode_steps": "steps",
        "step_at": "steps",
        "Question": "choices",
        "Scored": "choices",
        "check_choices": "choice_texts",
        "check_several": "choice_texts",
        "ask": "choices",
        "score_choices": "choices",
        "shares_of": "choices",
    },
)
