"""An OpenAI-compatible server for models and views.

``scheduler`` reads the prompts of a model and advances all its texts together, in the one thread of
``model_thread``. ``app`` receives requests, ``wanted`` checks them, ``answers`` writes the responses, ``guard`` refuses
unauthorized requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.serve.app import Service as Service
    from llmcli.serve.app import build_app as build_app
    from llmcli.serve.guard import Guard as Guard
    from llmcli.serve.limits import Limits as Limits
    from llmcli.serve.listening import check_installed as check_installed
    from llmcli.serve.listening import is_loopback as is_loopback
    from llmcli.serve.listening import listen as listen
    from llmcli.serve.listening import run_server as run_server
    from llmcli.serve.model_thread import ModelThread as ModelThread
    from llmcli.serve.model_thread import run_apart as run_apart
    from llmcli.serve.models import Models as Models
    from llmcli.serve.models import Served as Served
    from llmcli.serve.scheduler import Scheduler as Scheduler
    from llmcli.serve.token_page import PageWriter as PageWriter
    from llmcli.serve.wanted import Reader as Reader

__all__ = [
    "Guard",
    "Limits",
    "ModelThread",
    "Models",
    "PageWriter",
    "Reader",
    "Scheduler",
    "Served",
    "Service",
    "build_app",
    "check_installed",
    "is_loopback",
    "listen",
    "run_apart",
    "run_server",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "Service": "app",
        "build_app": "app",
        "Guard": "guard",
        "Limits": "limits",
        "check_installed": "listening",
        "is_loopback": "listening",
        "listen": "listening",
        "run_server": "listening",
        "Scheduler": "scheduler",
        "Reader": "wanted",
        "Served": "models",
        "Models": "models",
        "PageWriter": "token_page",
        "ModelThread": "model_thread",
        "run_apart": "model_thread",
    },
)
