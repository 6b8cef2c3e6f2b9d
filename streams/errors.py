"""The engine's error tree: what can go wrong, and the exit code that each failure ends a command with.

    DriftlineError                     1   (models.errors) anything that a user can put right
    ├── SettingsError                  2   a setting is unknown or bad; the message names its source
    ├── UsageError                     2   a command was asked for something that cannot be done as asked
    ├── NotFit                         3   (services.generations) a generation is not fit to be served
    ├── BundleError                    4   (models.errors) the model bundle is missing, broken or incompatible
    ├── DataError                      5   (models.errors) the data is bad; the message names file and line
    ├── MissingExtra                   6   (models.errors) an optional dependency is not installed
    ├── LogError                      10   Kafka failed us
    │   ├── LogUnavailable            10   no broker can be reached, or the cluster refuses
    │   ├── TopicMissing              12   a topic that is needed does not exist
    │   └── DeliveryFailed            13   Kafka did not accept a message
    ├── StoreUnavailable              11   Redis cannot be reached, or refuses to work
    ├── AuthenticationFailed          14   Kafka or Redis refuses the credentials
    ├── PortInUse                     15   the HTTP port that was asked for is taken
    ├── StateRefused                  20   log and store do not belong together: starting would lose or repeat events
    ├── StoreLostTail                 21   Redis went back behind what this worker applied
    ├── LogGap                        22   frames are missing between the last applied and the next
    └── EncoderFailed                 23   the model gives a wrong answer, or none, on this machine

1 to 9: the command or its input. 10 to 19: the surroundings, so a restart may help. 20 and above: the state, where only
`StoreLostTail` heals by a restart.

A client library's errors are turned into these in the one file, or room, that imports the library; a message says what
was wrong, the value, where it came from and what to do next.
"""

from models.errors import BundleError, DataError, DriftlineError, MissingExtra

__all__ = [
    "AuthenticationFailed",
    "BundleError",
    "DataError",
    "DeliveryFailed",
    "DriftlineError",
    "EncoderFailed",
    "LogError",
    "LogGap",
    "LogUnavailable",
    "MissingExtra",
    "PortInUse",
    "SettingsError",
    "StateRefused",
    "StoreLostTail",
    "StoreUnavailable",
    "TopicMissing",
    "UsageError",
]


class SettingsError(DriftlineError):
    """A setting is unknown or its value is refused; the message names the variable, file or flag that it came from."""

    exit_code = 2


class UsageError(DriftlineError):
    """A command was asked for something that cannot be done as asked, such as two flags that exclude each other."""

    exit_code = 2


class LogError(DriftlineError):
    """Kafka failed us; catch this to catch each of the three ways."""

    exit_code = 10


class LogUnavailable(LogError):
    """No Kafka broker can be reached, or the cluster refuses to work; raised when retrying in place has not helped."""

    exit_code = 10


class TopicMissing(LogError):
    """A topic that is needed does not exist; raised at start, or when it is deleted under a running service."""

    exit_code = 12


class DeliveryFailed(LogError):
    """Kafka did not accept a message; the process ends before it commits, so that the message is made again."""

    exit_code = 13


class StoreUnavailable(DriftlineError):
    """Redis cannot be reached, or refuses to work; raised when retrying in place has not helped."""

    exit_code = 11


class AuthenticationFailed(DriftlineError):
    """Kafka or Redis refuses the credentials, what they may do, or a certificate; retrying cannot help: raised at once."""

    exit_code = 14


class PortInUse(DriftlineError):
    """The HTTP port that was asked for by name is taken, or may not be opened."""

    exit_code = 15


class StateRefused(DriftlineError):
    """Log and store do not belong together, so starting would lose or repeat events; the message names the remedy.

    Redis empty under committed offsets, a watermark past the end of the log, a topic deleted and made anew, a changed
    number of partitions, or another generation.
    """

    exit_code = 20


class StoreLostTail(DriftlineError):
    """Redis went back behind what this worker applied, as after a failover; a restart of the process rewinds."""

    exit_code = 21


class LogGap(DriftlineError):
    """Frames are missing between the last applied and the next, as when retention deleted what was not read yet."""

    exit_code = 22


class EncoderFailed(DriftlineError):
    """The model gives no answer, or on its golden sample another than its bundle recorded, on this machine."""

    exit_code = 23
