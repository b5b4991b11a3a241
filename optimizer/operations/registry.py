"""
The table of all operations: what REST, gRPC and optimizerctl are faces of.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from optimizer.model import Task, TaskStats
from optimizer.operations import events, feedback, selection, services, stats, tasks
from optimizer.operations.house import House

Role = Literal["read", "write", "admin"]


@dataclass(frozen=True, slots=True)
class Operation:
    """
    One capability.

    Args:
        name: also the label of its metrics.
        role: the least role that may call it.
        request, response: msgspec types of `run(house, request) -> response`, which raises errors.Invalid, NotFound,
            Conflict, Transient or Rejected.
        summary: one line for people.
    """

    name: str
    role: Role
    request: Any
    response: Any
    run: Callable[[House, Any], Awaitable[Any]]
    summary: str


_TABLE: Final = (
    Operation("tasks.list", "read", tasks.ListTasks, tasks.TaskPage, tasks.list_tasks, "List tasks"),
    Operation("tasks.create", "write", tasks.WriteTask, tasks.WrittenTask, tasks.create_task, "Declare a new task"),
    Operation("tasks.get", "read", tasks.NamedTask, Task, tasks.get_task, "Show a task"),
    Operation(
        "tasks.replace", "write", tasks.WriteTask, tasks.WrittenTask, tasks.replace_task, "Declare or change a task"
    ),
    Operation("tasks.delete", "write", tasks.NamedTask, tasks.Nothing, tasks.delete_task, "Forget a task"),
    Operation("tasks.stats", "read", tasks.NamedTask, TaskStats, stats.task_stats, "What is known of a task"),
    Operation(
        "select",
        "read",
        selection.SelectRequest,
        selection.Selection,
        selection.run_select,
        "Which variant is to serve this request?",
    ),
    Operation(
        "select.batch",
        "read",
        selection.BatchSelectRequest,
        selection.BatchSelection,
        selection.run_batch_select,
        "Which variants are to serve these requests?",
    ),
    Operation(
        "feedback", "write", feedback.FeedbackRequest, feedback.Accepted, feedback.submit_feedback, "Report outcomes"
    ),
    Operation("events.list", "read", events.ListEvents, events.EventPage, events.list_events, "List stored events"),
    Operation(
        "services.list",
        "read",
        tasks.Nothing,
        services.ServiceList,
        services.list_services,
        "How the services of the daemon are",
    ),
)

OPERATIONS: Final[dict[str, Operation]] = {operation.name: operation for operation in _TABLE}
