"""
`[integrations]`: outside systems that are told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optimizer.config.fields import Duration, Secret, option, table
from optimizer.config.limits import Limited
from optimizer.errors import Invalid
from workers.integrations.webhook import check_url, key_of

_LATER = "this version delivers to [[integrations.webhooks]] only"


def _accepted(check: Callable[[Any], object]) -> Callable[[Any], str]:
    """
    A check of an option from one that raises Invalid.
    """

    def expected(value: Any) -> str:
        try:
            check(value)
        except Invalid as error:
            return error.problems[0].expected
        return ""

    return expected


@dataclass(frozen=True, slots=True)
class Webhook:
    """
    One receiver of system events.
    """

    name: str = option("", "Name in metrics and logs; must be unique.", required=True, unique=True)
    url: str = option(
        "",
        "Where events are POSTed, http:// or https://.",
        required=True,
        hidden=True,  # its path is often what lets a sender in
        check=_accepted(check_url),
    )
    secret: Secret = option(
        Secret(""),
        "Standard Webhooks secret (`whsec_` and base64); empty: unsigned.",
        check=_accepted(lambda secret: key_of(secret.reveal())),
    )
    kinds: tuple[str, ...] = option(("*",), "Kinds of events, as globs.")
    enabled: bool = option(True, "Deliver to it.")
    allow_private: bool = option(False, "Allow an address of a private network or of this machine.")
    timeout: Duration = option(Duration(10), "Longest time of one attempt.", minimum=0.1, maximum=60)
    max_age: Duration = option(
        Duration(24 * 3600),
        "An event that could not be delivered for this long is given up, logged and counted.",
        minimum=1,
    )


@dataclass(frozen=True, slots=True)
class Jira:
    """
    `[integrations.jira]`.
    """

    base_url: str = option("", "Jira site.", unused=_LATER)
    email: str = option("", "Account.", unused=_LATER)
    api_token: Secret = option(Secret(""), "Token.", unused=_LATER)
    project: str = option("", "Project key.", unused=_LATER)


@dataclass(frozen=True, slots=True)
class Anthropic:
    """
    `[integrations.anthropic]`.
    """

    api_key: Secret = option(Secret(""), "API key.", unused=_LATER)
    base_url: str = option("", "Address of the API.", unused=_LATER)
    model: str = option("", "Model.", unused=_LATER)


@dataclass(frozen=True, slots=True)
class Settings(Limited):
    """
    Receivers of system events.
    """

    webhooks: tuple[Webhook, ...] = option((), "Receivers of system events.")
    slack_webhook_url: Secret = option(Secret(""), "Slack incoming webhook.", unused=_LATER)
    github_token: Secret = option(Secret(""), "GitHub token.", unused=_LATER)
    github_repository: str = option("", "owner/name.", unused=_LATER)
    jira: Jira = table(Jira, "Jira.")
    anthropic: Anthropic = table(Anthropic, "Anthropic.")
