"""What an error of OpenSearch means here, by a part of its message. The README holds the same table."""

from __future__ import annotations

#: Parts of OpenSearch's message, any of which tells it -> what to do. The first that fits wins.
ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("not matching the trusted connector endpoint",),
        "the cluster may not call this address: run setup, which adds it to the trusted ones",
    ),
    (
        ("private ip",),
        "the cluster may not call private addresses: run setup, which allows it",
    ),
    (
        ("master key has not been initialized",),
        "a cluster that just started has no key for connectors yet: try again in some seconds",
    ),
    (
        ("Infinite loop in property interpolation",),
        "a text holds ${parameters.input}, the one placeholder that OpenSearch cannot take in a text: change the text",
    ),
    (
        ("parameter placeholder not filled",),
        "a text holds ${parameters.x} and the connector lacks skip_validating_missing_parameters: run setup",
    ),
    (
        ("has empty string value, cannot process it",),
        "a mapped field is blank, which OpenSearch before 3.4 refuses: run setup, whose pipeline takes care of it",
    ),
    (
        ("contains invalid dot usage", "Field name cannot be null or empty"),
        "a vector with a dotted or blank token met a second inference processor: leave --dotted-tokens of the service "
        "at its default, and index the document anew",
    ),
    (
        ("API key is missing or wrong",),
        "the service wants a key: run setup with --api-key-file, which gives it to the connectors",
    ),
    (
        ("overloaded",),
        "the service is full and the connector's retries are used up: smaller bulks, or more instances of the service",
    ),
    (
        ("unavailable",),
        "the service stops or is too slow: see its /readyz and /metrics; smaller bulks, or more instances of it",
    ),
    (
        ("Error communicating with remote model", "Acquire operation took longer", "Connection refused"),
        "the nodes cannot reach the service, or not in time: does it run, does it listen where the nodes are "
        "(--host 0.0.0.0), and is --encoder its address as the nodes see it?",
    ),
    (
        ("Error from remote service",),
        "the service refused: what follows is its message, which names the wrong field",
    ),
    (
        ("Circuit Breaker",),
        "ML Commons refuses work when memory or disk is short: give the node more, or change "
        "plugins.ml_commons.jvm_heap_memory_threshold, native_memory_threshold or disk_free_space_threshold",
    ),
    (
        ("Model not ready", "Failed to find model"),
        "the model is not deployed or gone: run setup again, which deploys or makes it",
    ),
    (
        ("maxClauseCount",),
        "the query has more than 1,024 tokens in all: fewer fields at once, or a lower --top-k-query of the service",
    ),
    (
        ("no permissions for",),
        "the user lacks the permission that the message names; all_access has all",
    ),
    (
        ("Unauthorized",),
        "give the user with --user, and the password with --password-file or when asked",
    ),
)


def advice_for(reason: str) -> str | None:
    """What to do about `reason`, an error message of OpenSearch; None if nothing is known."""
    lower = reason.lower()
    return next((advice for parts, advice in ADVICE if any(part.lower() in lower for part in parts)), None)
