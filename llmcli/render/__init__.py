"""How everything is shown: reports and texts on a terminal, as plain lines, as JSON, and as pictures.

A view's function is named after its command: ``render.print_lens(report, stream)``. The JSON forms are in
``render.json_forms``. Only this package imports Rich, and only when something is printed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.render.bench import BenchRow as BenchRow
    from llmcli.render.bench import bench_line as bench_line
    from llmcli.render.bench import print_bench as print_bench
    from llmcli.render.bench import print_bench_markdown as print_bench_markdown
    from llmcli.render.bench import write_bench_json as write_bench_json
    from llmcli.render.chat import print_chat_commands as print_chat_commands
    from llmcli.render.chat import print_context_use as print_context_use
    from llmcli.render.generation import ENDINGS as ENDINGS
    from llmcli.render.generation import PROMPT_CACHE_UNUSED as PROMPT_CACHE_UNUSED
    from llmcli.render.generation import TextWriter as TextWriter
    from llmcli.render.generation import defaults_line as defaults_line
    from llmcli.render.generation import ending as ending
    from llmcli.render.generation import filter_label as filter_label
    from llmcli.render.generation import print_probabilities as print_probabilities
    from llmcli.render.generation import print_server_limits as print_server_limits
    from llmcli.render.generation import print_server_probabilities as print_server_probabilities
    from llmcli.render.generation import print_server_summary as print_server_summary
    from llmcli.render.generation import print_summary as print_summary
    from llmcli.render.generation import prompt_cache_line as prompt_cache_line
    from llmcli.render.models import print_models as print_models
    from llmcli.render.numbers import ModelLabel as ModelLabel
    from llmcli.render.numbers import at_most as at_most
    from llmcli.render.numbers import most_digits as most_digits
    from llmcli.render.page import page_hashes as page_hashes
    from llmcli.render.page import page_html as page_html
    from llmcli.render.page import save_page as save_page
    from llmcli.render.picture import Caption as Caption
    from llmcli.render.picture import Picture as Picture
    from llmcli.render.progress import BatchProgress as BatchProgress
    from llmcli.render.progress import CountProgress as CountProgress
    from llmcli.render.progress import DownloadProgress as DownloadProgress
    from llmcli.render.progress import LoadingProgress as LoadingProgress
    from llmcli.render.progress import VerifyProgress as VerifyProgress
    from llmcli.render.progress import WritingProgress as WritingProgress
    from llmcli.render.reports import html as html
    from llmcli.render.reports import print_report as print_report
    from llmcli.render.run_log import print_run as print_run
    from llmcli.render.run_log import print_runs as print_runs
    from llmcli.render.samples import SamplesWriter as SamplesWriter
    from llmcli.render.samples import SampleToken as SampleToken
    from llmcli.render.samples import print_samples as print_samples
    from llmcli.render.settings import Setting as Setting
    from llmcli.render.settings import print_settings as print_settings
    from llmcli.render.settings import write_settings_json as write_settings_json
    from llmcli.render.table import Cell as Cell
    from llmcli.render.table import Column as Column
    from llmcli.render.table import print_table as print_table
    from llmcli.render.terminal import animated as animated
    from llmcli.render.terminal import note as note
    from llmcli.render.terminal import print_check as print_check
    from llmcli.render.terminal import print_line as print_line
    from llmcli.render.terminal import print_model_lines as print_model_lines
    from llmcli.render.terminal import print_path as print_path
    from llmcli.render.terminal import printable as printable
    from llmcli.render.text import counted as counted
    from llmcli.render.text import escape_controls as escape_controls
    from llmcli.render.text import one_line as one_line
    from llmcli.render.text import token_label as token_label
    from llmcli.render.training import TrainingProgress as TrainingProgress
    from llmcli.render.training import loss_svg as loss_svg
    from llmcli.render.training import print_loss_curve as print_loss_curve
    from llmcli.render.views.attend import print_attend as print_attend
    from llmcli.render.views.attend import print_attention_pattern as print_attention_pattern
    from llmcli.render.views.branch import print_branch as print_branch
    from llmcli.render.views.chat_tokens import print_chat_tokenization as print_chat_tokenization
    from llmcli.render.views.chat_tokens import print_tokenize_chat as print_tokenize_chat
    from llmcli.render.views.compare import print_compare as print_compare
    from llmcli.render.views.compare import print_compare_summary as print_compare_summary
    from llmcli.render.views.decide import print_accuracy as print_accuracy
    from llmcli.render.views.decide import print_decide as print_decide
    from llmcli.render.views.fit_lens import print_fit_lens as print_fit_lens
    from llmcli.render.views.heads import print_heads as print_heads
    from llmcli.render.views.inspect import print_inspect as print_inspect
    from llmcli.render.views.lens import print_lens as print_lens
    from llmcli.render.views.neighbours import print_neighbours as print_neighbours
    from llmcli.render.views.patch import print_patch as print_patch
    from llmcli.render.views.query_key_value import print_head as print_head
    from llmcli.render.views.quiz import LETTERS as LETTERS
    from llmcli.render.views.quiz import QuizQuestion as QuizQuestion
    from llmcli.render.views.quiz import print_question as print_question
    from llmcli.render.views.quiz import print_quiz as print_quiz
    from llmcli.render.views.quiz import print_quiz_score as print_quiz_score
    from llmcli.render.views.quiz import quiz_questions as quiz_questions
    from llmcli.render.views.quiz import verdict as verdict
    from llmcli.render.views.score import print_score as print_score
    from llmcli.render.views.steer import print_steer as print_steer
    from llmcli.render.views.step import print_candidates as print_candidates
    from llmcli.render.views.step import print_server_step as print_server_step
    from llmcli.render.views.step import print_step as print_step
    from llmcli.render.views.step import print_temperatures as print_temperatures
    from llmcli.render.views.tokens import print_merges as print_merges
    from llmcli.render.views.tokens import print_tokenization as print_tokenization
    from llmcli.render.views.tokens import print_tokenize as print_tokenize
    from llmcli.render.views.tour import TOUR_STOPS as TOUR_STOPS
    from llmcli.render.views.tour import print_position as print_position
    from llmcli.render.views.tour import print_tour as print_tour
    from llmcli.render.views.tour import print_tour_stop as print_tour_stop
    from llmcli.render.views.verify import print_verify as print_verify
    from llmcli.render.views.why import print_why as print_why

__all__ = [
    "ENDINGS",
    "LETTERS",
    "PROMPT_CACHE_UNUSED",
    "TOUR_STOPS",
    "BatchProgress",
    "BenchRow",
    "Caption",
    "Cell",
    "Column",
    "CountProgress",
    "DownloadProgress",
    "LoadingProgress",
    "ModelLabel",
    "Picture",
    "QuizQuestion",
    "SampleToken",
    "SamplesWriter",
    "Setting",
    "TextWriter",
    "TrainingProgress",
    "VerifyProgress",
    "WritingProgress",
    "animated",
    "at_most",
    "bench_line",
    "counted",
    "defaults_line",
    "ending",
    "escape_controls",
    "filter_label",
    "html",
    "loss_svg",
    "most_digits",
    "note",
    "one_line",
    "page_hashes",
    "page_html",
    "print_accuracy",
    "print_attend",
    "print_attention_pattern",
    "print_bench",
    "print_bench_markdown",
    "print_branch",
    "print_candidates",
    "print_chat_commands",
    "print_chat_tokenization",
    "print_check",
    "print_compare",
    "print_compare_summary",
    "print_context_use",
    "print_decide",
    "print_fit_lens",
    "print_head",
    "print_heads",
    "print_inspect",
    "print_lens",
    "print_line",
    "print_loss_curve",
    "print_merges",
    "print_model_lines",
    "print_models",
    "print_neighbours",
    "print_patch",
    "print_path",
    "print_position",
    "print_probabilities",
    "print_question",
    "print_quiz",
    "print_quiz_score",
    "print_report",
    "print_run",
    "print_runs",
    "print_samples",
    "print_score",
    "print_server_limits",
    "print_server_probabilities",
    "print_server_step",
    "print_server_summary",
    "print_settings",
    "print_steer",
    "print_step",
    "print_summary",
    "print_table",
    "print_temperatures",
    "print_tokenization",
    "print_tokenize",
    "print_tokenize_chat",
    "print_tour",
    "print_tour_stop",
    "print_verify",
    "print_why",
    "printable",
    "prompt_cache_line",
    "quiz_questions",
    "save_page",
    "token_label",
    "verdict",
    "write_bench_json",
    "write_settings_json",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "quiz_questions": "views.quiz",
        "verdict": "views.quiz",
        "print_quiz_score": "views.quiz",
        "print_quiz": "views.quiz",
        "print_question": "views.quiz",
        "QuizQuestion": "views.quiz",
        "LETTERS": "views.quiz",
        "print_attend": "views.attend",
        "print_attention_pattern": "views.attend",
        "BenchRow": "bench",
        "bench_line": "bench",
        "print_bench": "bench",
        "print_bench_markdown": "bench",
        "write_bench_json": "bench",
        "print_branch": "views.branch",
        "print_chat_commands": "chat",
        "print_context_use": "chat",
        "print_compare": "views.compare",
        "print_compare_summary": "views.compare",
        "ENDINGS": "generation",
        "PROMPT_CACHE_UNUSED": "generation",
        "TextWriter": "generation",
        "defaults_line": "generation",
        "ending": "generation",
        "filter_label": "generation",
        "print_probabilities": "generation",
        "print_server_limits": "generation",
        "print_server_probabilities": "generation",
        "print_server_summary": "generation",
        "print_summary": "generation",
        "prompt_cache_line": "generation",
        "print_inspect": "views.inspect",
        "print_lens": "views.lens",
        "print_fit_lens": "views.fit_lens",
        "print_models": "models",
        "print_run": "run_log",
        "print_runs": "run_log",
        "print_neighbours": "views.neighbours",
        "ModelLabel": "numbers",
        "at_most": "numbers",
        "most_digits": "numbers",
        "Caption": "picture",
        "page_hashes": "page",
        "page_html": "page",
        "save_page": "page",
        "Picture": "picture",
        "BatchProgress": "progress",
        "CountProgress": "progress",
        "DownloadProgress": "progress",
        "LoadingProgress": "progress",
        "VerifyProgress": "progress",
        "WritingProgress": "progress",
        "print_head": "views.query_key_value",
        "print_heads": "views.heads",
        "print_steer": "views.steer",
        "print_patch": "views.patch",
        "html": "reports",
        "print_report": "reports",
        "SampleToken": "samples",
        "SamplesWriter": "samples",
        "print_samples": "samples",
        "print_score": "views.score",
        "Setting": "settings",
        "print_settings": "settings",
        "write_settings_json": "settings",
        "print_candidates": "views.step",
        "print_server_step": "views.step",
        "print_step": "views.step",
        "print_temperatures": "views.step",
        "Cell": "table",
        "Column": "table",
        "print_table": "table",
        "note": "terminal",
        "print_check": "terminal",
        "print_line": "terminal",
        "print_model_lines": "terminal",
        "print_path": "terminal",
        "printable": "terminal",
        "animated": "terminal",
        "counted": "text",
        "escape_controls": "text",
        "one_line": "text",
        "token_label": "text",
        "print_chat_tokenization": "views.chat_tokens",
        "print_tokenize_chat": "views.chat_tokens",
        "print_merges": "views.tokens",
        "print_tokenization": "views.tokens",
        "print_tokenize": "views.tokens",
        "TOUR_STOPS": "views.tour",
        "print_position": "views.tour",
        "print_tour": "views.tour",
        "print_tour_stop": "views.tour",
        "TrainingProgress": "training",
        "loss_svg": "training",
        "print_loss_curve": "training",
        "print_verify": "views.verify",
        "print_why": "views.why",
        "print_accuracy": "views.decide",
        "print_decide": "views.decide",
    },
)
