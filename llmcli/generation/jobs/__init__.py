"""Batch files: a file of prompts, a file of results, and one run over them for local models and servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.generation.jobs.choices import Accuracy as Accuracy
    from llmcli.generation.jobs.choices import ChoiceWriter as ChoiceWriter
    from llmcli.generation.jobs.choices import accuracies as accuracies
    from llmcli.generation.jobs.choices import questions_only as questions_only
    from llmcli.generation.jobs.local import ChatSetup as ChatSetup
    from llmcli.generation.jobs.local import LocalWriter as LocalWriter
    from llmcli.generation.jobs.parts import SharedResults as SharedResults
    from llmcli.generation.jobs.parts import check_name as check_name
    from llmcli.generation.jobs.parts import merge as merge
    from llmcli.generation.jobs.parts import parts_of as parts_of
    from llmcli.generation.jobs.prompts import ChatJob as ChatJob
    from llmcli.generation.jobs.prompts import InvalidLine as InvalidLine
    from llmcli.generation.jobs.prompts import Job as Job
    from llmcli.generation.jobs.prompts import JobDefaults as JobDefaults
    from llmcli.generation.jobs.prompts import QuestionJob as QuestionJob
    from llmcli.generation.jobs.prompts import read_jobs as read_jobs
    from llmcli.generation.jobs.results import Results as Results
    from llmcli.generation.jobs.run import BatchRun as BatchRun
    from llmcli.generation.jobs.run import JobUpdate as JobUpdate
    from llmcli.generation.jobs.run import Writer as Writer

__all__ = [
    "Accuracy",
    "BatchRun",
    "ChatJob",
    "ChatSetup",
    "ChoiceWriter",
    "InvalidLine",
    "Job",
    "JobDefaults",
    "JobUpdate",
    "LocalWriter",
    "QuestionJob",
    "Results",
    "SharedResults",
    "Writer",
    "accuracies",
    "check_name",
    "merge",
    "parts_of",
    "questions_only",
    "read_jobs",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "QuestionJob": "prompts",
        "questions_only": "choices",
        "accuracies": "choices",
        "ChoiceWriter": "choices",
        "Accuracy": "choices",
        "ChatJob": "prompts",
        "ChatSetup": "local",
        "LocalWriter": "local",
        "SharedResults": "parts",
        "check_name": "parts",
        "merge": "parts",
        "parts_of": "parts",
        "InvalidLine": "prompts",
        "Job": "prompts",
        "JobDefaults": "prompts",
        "read_jobs": "prompts",
        "Results": "results",
        "BatchRun": "run",
        "JobUpdate": "run",
        "Writer": "run",
    },
)
