"""What an error of OpenSearch means here, by a part of its message. The README prints the same table."""

from __future__ import annotations

import re

#: Pattern in OpenSearch's message -> what to do. The first that matches wins.
ADVICE: tuple[tuple[str, str], ...] = (
    (
        r"not matching the trusted connector endpoint",
        "the cluster may not call this address: run setup, which adds it to "
        "plugins.ml_commons.trusted_connector_endpoints_regex",
    ),
    (
        r"private ip address|Remote inference host name has private ip",
        "the cluster may not call private addresses: run setup, which sets "
        "plugins.ml_commons.connector.private_ip_enabled",
    ),
    (
        r"master key has not been initialized",
        "a cluster that just started has no key for connectors yet: try again in some seconds",
    ),
    (
        r"Infinite loop in property interpolation",
        "a text holds ${parameters.input}, the one placeholder that OpenSearch cannot take in a text: change the text",
    ),
    (
        r"parameter placeholder not filled",
        "a text holds ${parameters.x} and the connector lacks skip_validating_missing_parameters: run setup",
    ),
    (
        r"has empty string value, cannot process it",
        "a mapped field is blank, which OpenSearch before 3.4 refuses: run setup, whose pipeline takes care of it",
    ),
    (
        r"contains invalid dot usage|Field name cannot be null or empty",
        "a vector with a dotted or blank token went through a second inference processor: encode with dotted_tokens "
        "at its default (drop), and index the document anew",
    ),
    (
        r"Error from remote service: .*\boverloaded\b|\b429\b.*remote service",
        "the service is full and the connector's retries are used up: smaller bulks, or more instances of the service",
    ),
    (
        r"Error from remote service: .*\bunavailable\b",
        "the service stops or is too slow: look at its /readyz and /metrics; smaller bulks, or more instances of it",
    ),
    (
        r"Error from remote service",
        "the service refused: its message, in JSON, says which field is wrong",
    ),
    (
        r"Acquire operation took longer|Error communicating with remote model|Connection refused|"
        r"Error from remote service: connection",
        "the nodes cannot reach the service, or not in time: does it run, does it listen on an address that the nodes "
        "reach (--host 0.0.0.0), and is --encoder that address as the nodes see it?",
    ),
    (
        r"Memory Circuit Breaker|circuit breaker is open|Disk Circuit Breaker",
        "ML Commons refuses work when memory or disk is short: give the node more, or raise "
        "plugins.ml_commons.jvm_heap_memory_threshold, native_memory_threshold, or lower disk_free_space_threshold",
    ),
    (
        r"Model not ready|not deployed|Failed to find model",
        "the model is not deployed or gone: run setup again, which deploys or makes it",
    ),
    (
        r"maxClauseCount|too_many_clauses|too_many_nested_clauses",
        "the query has more than 1,024 tokens in all: fewer fields at once, or a lower top_k_query of the service",
    ),
    (
        r"unknown setting \[index\.sparse\]",
        "sparse_vector fields need OpenSearch 3.3 or newer: leave out --engine seismic",
    ),
    (
        r"security_exception|no permissions for",
        "the user lacks a permission that the message names: all_access may do everything; ml_full_access and "
        "manage rights on pipelines, templates and cluster settings are enough",
    ),
    (
        r"Unauthorized|Authentication finally failed",
        "give the user with --user, and the password with --password-file or when asked",
    ),
)


def advice_for(reason: str) -> str | None:
    """What to do about `reason`, an error message of OpenSearch; None if nothing is known."""
    return next((advice for pattern, advice in ADVICE if re.search(pattern, reason, re.IGNORECASE | re.DOTALL)), None)
