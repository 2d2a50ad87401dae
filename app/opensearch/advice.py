"""What an error of OpenSearch means here, by a part of its message. A test holds the guide's table to this one."""

from __future__ import annotations

#: In the first seconds of a cluster, or of its first use of a connector on several nodes.
NO_KEY_YET = ("master key has not been initialized", "Fetching master key timed out")
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
        NO_KEY_YET,
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
        ("has empty string value, cannot process it", "has non-string type", "is neither string nor nested type"),
        "a field is blank or no text, and the pipeline is one of before or of your own: run setup, whose pipeline "
        "takes care of it",
    ),
    (
        ("max allowed inline script size", "cannot execute [inline] scripts", "cannot execute scripts using"),
        "the set-up's ingest pipeline has two inline Painless scripts of 2,000 characters, which the cluster must "
        "allow: see script.max_size_in_bytes, script.allowed_types and script.allowed_contexts",
    ),
    (
        ("holds an object, which has no text", "is in an array of objects"),
        "--field must lead to texts, and through objects only: the message names the field",
    ),
    (
        ("query only works on [rank_features] fields",),
        "the query is for a field that holds no vector of this kind, in this index or another that was searched: name "
        "the field that ends in _sparse (its .sparse_encoding within a nested query for --chunks), and only indices "
        "of this set-up",
    ),
    (
        ("query_text and model_id cannot be null",),
        "the search does not go through the set-up's search pipeline, which names the model: name it in the query, "
        '"model_id" as python -m app.opensearch ids prints it',
    ),
    (
        (
            "Cannot use [sort] option in conjunction with [rescore]",
            "cannot use `collapse` in conjunction with `rescore`",
        ),
        "two-phase search is a rescore, which OpenSearch does not do with sort, search_after, collapse or scroll: run "
        "setup without --two-phase, or add ?search_pipeline=_none and name the model in such a query",
    ),
    (
        ("Limit of total fields", "expected a START_OBJECT but got", "tried to parse field"),
        "a vector came to a field that is not mapped as one, so each token became a field, or to one of another kind: "
        "the index is not of this set-up, or of an older one; check names what it lacks",
    ),
    (
        ("tokens produced by calling _analyze",),
        "a text_chunking processor of your own met a longer text: raise index.analyze.max_token_count of the index, "
        "or take the pipeline of setup --chunks, which knows no such limit",
    ),
    (
        ("that have the same priority",),
        "another index template with the same priority is for the same names: give another --priority or "
        "--index-pattern",
    ),
    (
        ("models are still using this connector",),
        "a model that others made stands on a connector of this set-up: delete that model, or give it a connector of "
        "its own",
    ),
    (
        ("[rank_features] fields do not support", "Queries on [rank_features] fields"),
        "a field of vectors can be searched by neural_sparse only, neither exists nor term nor sorting: ask for its "
        "text field instead",
    ),
    (
        ("an HTML page, not OpenSearch's JSON", "<html"),
        "a proxy or load balancer answered in place of OpenSearch or of the service: look at its log, its limits of "
        "size and time, and the address",
    ),
    (
        ("cluster:admin/opensearch/ml/predict",),
        "whoever indexes or searches needs the cluster permission cluster:admin/opensearch/ml/predict, besides those "
        "on the index",
    ),
    (
        ("cluster:admin/settings/update",),
        "the user may not change cluster settings: somebody who may sets those that setup --dry-run prints, once, and "
        "then setup needs that permission no more",
    ),
    (
        ("User doesn't have privilege to perform this operation on this model",),
        "the model belongs to somebody else: setup --access public, or restricted with --backend-roles, makes it one "
        "that others may use",
    ),
    (
        ("You don't have the backend roles specified", "Only owner or admin can update access control data"),
        "access is given by who made the models, to backend roles of that user: run setup as that user, or as an "
        "administrator",
    ),
    (
        ("already being used by a model group",),
        "a user made it and keeps it from others (--access private, or restricted): let that user run setup with "
        "--access public, or restricted to a backend role that you have, or choose another --name",
    ),
    (
        ("No handler for type [semantic]",),
        "fields of the type semantic are of OpenSearch 3, and the models of setup serve them from 3.6 on: use the "
        "pipelines of setup",
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
        ("PKIX path", "unable to find valid certification path", "SSLHandshakeException"),
        "the nodes do not trust the certificate of the service: import its authority into the trust store of the JDK "
        "of every node (keytool -importcert -cacerts), and restart them",
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
        ("Failed to get data object from index",),
        "a node that has just started does not see the index of the models yet: send these documents again, as bulk "
        "helpers do; if it lasts, look at GET /_cluster/health",
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
    (
        ("all shards failed",),
        "the reason is in root_cause or failed_shards of the answer: look for that here",
    ),
)


def advice_for(reason: str) -> str | None:
    """What to do about `reason`, an error message of OpenSearch; None if nothing is known."""
    lower = reason.lower()
    return next((advice for parts, advice in ADVICE if any(part.lower() in lower for part in parts)), None)


def explained(reason: str) -> str:
    """`reason` with the advice about it, if there is any."""
    advice = advice_for(reason)
    return reason + (f"\n  -> {advice}" if advice else "")
