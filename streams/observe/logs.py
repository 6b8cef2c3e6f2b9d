"""One log for the whole process: structlog's lines and those of every library, in one format, on stderr."""

import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, Literal, TextIO

import stamina.instrumentation
import structlog
from structlog.typing import EventDict, Processor

_MASK: Final = "***"
# Matches "sasl_password", "sasl.password", "ssl.key.password", "sasl_plain_password", "api-key", "Authorization" …
_SECRET_KEY: Final = re.compile(r"(?i)passw|secret|credential|authorization|api.?key|private.?key|(?:^|[._-])token$")
# A file's name is no secret, and an operator needs it.
_HARMLESS_KEY: Final = re.compile(r"(?i)[._-](?:file|path|location)$")
_URL_PASSWORD: Final = re.compile(r"(\w+://[^\s:@/'\"]*):[^\s/'\"]*@")
_TEXT_SECRET: Final = re.compile(
    r"(?i)(\b[\w.-]*(?:password|passwd|secret|api.?key)['\"]?\s*[:=]\s*)(?:'[^']*'|\"[^\"]*\"|[^\s,;&'\"(){}\[\]]+)"
)
# At "info" these report every start and stop of their dozens of inner services; at "debug" they may.
_TALKATIVE: Final = ("aiokafka", "asyncio", "faust", "kafka", "mode")
# While no broker answers, aiokafka 0.14 writes some hundred lines a second, the same few over and over.
_REPEAT_AFTER_S: Final = 10.0


def configure_logging(
    log_format: Literal["auto", "console", "json"] = "auto",
    level: Literal["debug", "info", "warning", "error"] = "info",
    service: str = "driftline",
    stream: TextIO | None = None,
) -> None:
    """Send every log line of the process, structlog's and the standard library's, to one place in one format.

    It replaces the handlers of the root logger, so a command calls it once, first. Libraries that would configure
    logging themselves must be told not to: `faust.Worker(..., override_logging=False)`. librdkafka writes past Python
    unless it gets a logger: `Producer(config, logger=logging.getLogger("librdkafka"))`.

    Args:
        log_format: "auto" is "console" on a terminal and "json" elsewhere.
        level: The least that is logged.
        service: Named in every line.
        stream: Where to write; stderr by default, for stdout is for results.
    """
    out = sys.stderr if stream is None else stream
    is_terminal = out.isatty()
    as_json = log_format == "json" or (log_format == "auto" and not is_terminal)

    def name_service(_: Any, __: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_service,
        structlog.processors.StackInfoRenderer(),
        # A plain traceback: structlog's dictionaries and rich's print local variables, secrets among them.
        structlog.processors.format_exc_info,
        mask_secrets,
    ]
    finish: list[Processor] = (
        [structlog.processors.EventRenamer("message"), _in_reading_order, structlog.processors.JSONRenderer()]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=is_terminal and "NO_COLOR" not in os.environ,
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    handler.addFilter(OncePerPeriod(("aiokafka",), _REPEAT_AFTER_S))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(number if level == "debug" else max(number, logging.WARNING))
    logging.captureWarnings(capture=True)
    # Whoever retries says so itself, with what it means for the service; stamina's own line would be a second one.
    stamina.instrumentation.set_on_retry_hooks(())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # Cached loggers would keep the first configuration; nothing logs often enough to notice.
        cache_logger_on_first_use=False,
    )


class OncePerPeriod(logging.Filter):
    """Lets each message of some libraries through once a period, and then says how many were left out.

    Args:
        loggers: Loggers by name; their children are meant too.
        period_s: Seconds.
        clock: Seconds that only go forwards.
    """

    def __init__(self, loggers: tuple[str, ...], period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._loggers = loggers
        self._period_s = period_s
        self._clock = clock
        # By logger and template, so that it is bounded by the library's code: when it was let through, and how many
        # were left out since.
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide on one record; called under the handler's lock."""
        if not any(record.name == name or record.name.startswith(f"{name}.") for name in self._loggers):
            return True
        key, now = (record.name, str(record.msg)), self._clock()
        since, left_out = self._seen.get(key, (-math.inf, 0))
        if now - since < self._period_s:
            self._seen[key] = (since, left_out + 1)
            return False
        self._seen[key] = (now, 0)
        if left_out:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} times more before this)", None
        return True


def mask_secrets(_: Any, __: str, event: EventDict) -> MutableMapping[str, Any]:
    """Replace what looks like a secret by ***: values of telling keys at any depth, and passwords in URLs and texts.

    A second line of defence: secrets are not logged in the first place. What is neither a plain value nor a container
    becomes text here, so that nothing can show itself later.
    """
    for key, value in event.items():
        # `_record` and `_from_structlog` are the formatter's own and never printed.
        if not key.startswith("_"):
            event[key] = _masked(key, value)
    return event


def _in_reading_order(_: Any, __: str, event: EventDict) -> EventDict:
    first = ("timestamp", "level", "service", "logger", "message")
    return {**{key: event[key] for key in first if key in event}, **event}


def _masked(key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if _SECRET_KEY.search(key) and not _HARMLESS_KEY.search(key):
        return _MASK
    if isinstance(value, int | float):
        return value
    if isinstance(value, Mapping):
        return {str(inner): _masked(str(inner), each) for inner, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked("", each) for each in value]
    return _masked_text(value if isinstance(value, str) else str(value))


def _masked_text(text: str) -> str:
    return _TEXT_SECRET.sub(rf"\1{_MASK}", _URL_PASSWORD.sub(rf"\1:{_MASK}@", text))
