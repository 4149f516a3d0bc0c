"""Text and token ids: tokenizers, chat templates, streaming text, BPE merges and saved chats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.text.bpe import Bpe as Bpe
    from llmcli.text.bpe import Merge as Merge
    from llmcli.text.bpe import Symbols as Symbols
    from llmcli.text.bpe import merge_symbols as merge_symbols
    from llmcli.text.bpe import read_bpe as read_bpe
    from llmcli.text.chat_format import ChatFormat as ChatFormat
    from llmcli.text.chat_format import PlainFormat as PlainFormat
    from llmcli.text.chat_format import RenderedChat as RenderedChat
    from llmcli.text.chat_format import TemplateFormat as TemplateFormat
    from llmcli.text.chat_format import join_messages as join_messages
    from llmcli.text.chat_template import ROLES as ROLES
    from llmcli.text.chat_template import ChatTemplate as ChatTemplate
    from llmcli.text.chat_template import Message as Message
    from llmcli.text.chat_template import find_template as find_template
    from llmcli.text.gguf.vocabulary import gguf_end_ids as gguf_end_ids
    from llmcli.text.gguf.vocabulary import vocabulary_of as vocabulary_of
    from llmcli.text.stream import TextStream as TextStream
    from llmcli.text.thinking import Piece as Piece
    from llmcli.text.thinking import Thinking as Thinking
    from llmcli.text.thinking import ThoughtSplitter as ThoughtSplitter
    from llmcli.text.thinking import switched as switched
    from llmcli.text.thinking import thinking_of as thinking_of
    from llmcli.text.tokenizer import Token as Token
    from llmcli.text.tokenizer import Tokenizer as Tokenizer
    from llmcli.text.tokenizer import load_tokenizer as load_tokenizer
    from llmcli.text.transcript import ChatFile as ChatFile
    from llmcli.text.transcript import read_messages as read_messages
    from llmcli.text.transcript import read_transcript as read_transcript
    from llmcli.text.transcript import write_transcript as write_transcript
    from llmcli.text.words import Word as Word

__all__ = [
    "ROLES",
    "Bpe",
    "ChatFile",
    "ChatFormat",
    "ChatTemplate",
    "Merge",
    "Message",
    "Piece",
    "PlainFormat",
    "RenderedChat",
    "Symbols",
    "TemplateFormat",
    "TextStream",
    "Thinking",
    "ThoughtSplitter",
    "Token",
    "Tokenizer",
    "Word",
    "find_template",
    "gguf_end_ids",
    "join_messages",
    "load_tokenizer",
    "merge_symbols",
    "read_bpe",
    "read_messages",
    "read_transcript",
    "switched",
    "thinking_of",
    "vocabulary_of",
    "write_transcript",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "Bpe": "bpe",
        "Merge": "bpe",
        "Symbols": "bpe",
        "merge_symbols": "bpe",
        "read_bpe": "bpe",
        "ChatFormat": "chat_format",
        "PlainFormat": "chat_format",
        "RenderedChat": "chat_format",
        "TemplateFormat": "chat_format",
        "join_messages": "chat_format",
        "ChatTemplate": "chat_template",
        "Message": "chat_template",
        "ROLES": "chat_template",
        "find_template": "chat_template",
        "gguf_end_ids": "gguf.vocabulary",
        "vocabulary_of": "gguf.vocabulary",
        "TextStream": "stream",
        "Piece": "thinking",
        "Thinking": "thinking",
        "ThoughtSplitter": "thinking",
        "switched": "thinking",
        "thinking_of": "thinking",
        "Token": "tokenizer",
        "Tokenizer": "tokenizer",
        "load_tokenizer": "tokenizer",
        "ChatFile": "transcript",
        "read_messages": "transcript",
        "read_transcript": "transcript",
        "write_transcript": "transcript",
        "Word": "words",
    },
)
