"""Carries a plan out: what exists is left alone, what changed is replaced, what is missing is made."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from app.opensearch.advice import NO_KEY_YET
from app.opensearch.cluster import Body, Cluster, RequestFailed
from app.opensearch.facts import OpenSearchError
from app.opensearch.indices import find_indices
from app.opensearch.plan import Plan, Resource
from app.opensearch.preflight import Preflight, preflight
from app.opensearch.resources import (
    ML,
    NAMED,
    WITH_ID,
    Found,
    find,
    find_all,
    fingerprint,
    marked,
    models_of_others,
    path_of,
    semantic_fields,
)
from app.opensearch.settings_record import to_apply, to_restore

CHUNK_BYTES = 10_000_000  # what OpenSearch's own client takes for one
POLL_SECONDS = 0.2
DEPLOY_SECONDS = 10.0  #: until a model that only some nodes deployed is deployed again

T = TypeVar("T")


class Runner:
    """Sets up and tears down one set-up, `owner`, on a cluster; `say` is told each thing that is done."""

    def __init__(
        self,
        cluster: Cluster,
        owner: str,
        say: Callable[[str], None],
        *,
        dry_run: bool = False,
        timeout_seconds: float = 120.0,
    ) -> None:
        """`dry_run`: requests that change something are said and not sent; `timeout_seconds` for each wait."""
        self._cluster = cluster
        self._owner = owner
        self._say = say
        self._dry_run = dry_run
        self._timeout_seconds = timeout_seconds
        self._undo: list[tuple[str, Callable[[], object]]] = []  # of what was done since the beginning

    def set_up(self, plan: Plan, *, overwrite: bool = False) -> bool:
        """True if anything had to be done; `overwrite`: pipelines that somebody edited are replaced, too.

        If a step fails, what the steps before it did is undone.

        :raises OpenSearchError: if something stands in the way, or does not work.
        """
        ahead = preflight(self._cluster, plan, overwrite=overwrite)
        for warning in ahead.warnings:
            self._say(f"warning: {warning}")
        try:
            changed, ids = self._carry_out(plan, ahead)
        except BaseException as error:
            left = self._undo_all()
            if not isinstance(error, OpenSearchError):
                raise
            rest = f"; this could not be undone: {'; '.join(left)}" if left else ""
            raise OpenSearchError(f"{error}\nWhat was done before was undone{rest}") from error
        self._undo.clear()
        return self._remove_stale(ids) or changed

    def tear_down(self) -> bool:
        """Removes what `set_up` made and puts the cluster settings back; False if there was nothing.

        :raises OpenSearchError: if an index or a model of others still uses it.
        """
        found = find_all(self._cluster, self._owner)
        if users := [i.name for i in find_indices(self._cluster, self._owner) if i.uses(self._owner)]:
            raise OpenSearchError(
                f"{', '.join(users)} still use the pipelines of {self._owner}, so nothing was removed: delete these "
                'indices, or put their settings {"index.default_pipeline": "_none", "index.search.default_pipeline": '
                '"_none"} first'
            )
        if models := models_of_others(self._cluster, found):
            raise OpenSearchError(
                f"the model {', '.join(models)} uses a connector of {self._owner}, so nothing was removed: delete that "
                "model first, or give it a connector of its own"
            )
        if fields := sorted({name for names in semantic_fields(self._cluster, found).values() for name in names}):
            raise OpenSearchError(
                f"{', '.join(fields)} name models of {self._owner}, so nothing was removed: delete these indices, or "
                "name another model in their mappings first"
            )
        for one in found:
            self._delete(one)
        restored = to_restore(self._owner, self._cluster.facts())
        if restored is not None:
            try:
                self._write("PUT", "/_cluster/settings", {"persistent": restored})
                self._done(f"restored cluster settings: {', '.join(sorted(restored))}")
            except RequestFailed as error:
                if error.status != 403:
                    raise
                self._say(f"cluster settings were left, which this user may not change: {', '.join(sorted(restored))}")
        return bool(found) or restored is not None

    def _carry_out(self, plan: Plan, ahead: Preflight) -> tuple[bool, dict[str, str]]:
        """Whether anything had to be done, and the id of each resource by its reference."""
        changed = self._apply_settings(plan)
        ids: dict[str, str] = {}
        for resource in plan.resources:
            if resource.kind == "ingest pipeline":  # it writes into the fields, so they come first
                changed |= self._extend_indices(ahead)
            body = _resolve(resource.body, ids)
            ids[resource.reference], made = self._ensure(resource, body)
            changed |= made
        return changed, ids

    def _extend_indices(self, ahead: Preflight) -> bool:
        changed = False
        for index, impact in ahead.impacts:
            if impact.fields:
                self._write("PUT", f"/{index.name}/_mapping", {"properties": impact.fields})
                self._done(f"added to {index.name}: {', '.join(impact.fields)}")
                changed = True
        return changed

    def _remove_stale(self, ids: Mapping[str, str]) -> bool:
        """What earlier runs made and is needed no more; what others use stays, and is said."""
        changed = False
        rest = [one for one in find_all(self._cluster, self._owner) if one.id not in ids.values()]
        users = semantic_fields(self._cluster, rest)
        for stale in rest:
            if stale.id in users:
                self._say(
                    f"kept model {stale.name} ({stale.id}), which {', '.join(users[stale.id])} uses: name the new one "
                    "in the mapping (PUT /INDEX/_mapping), then run setup again"
                )
                continue
            if stale.kind == "connector" and (models := models_of_others(self._cluster, [stale])):
                self._say(f"kept connector {stale.name} ({stale.id}), which the model {', '.join(models)} uses")
                continue
            changed |= self._delete(stale)
        return changed

    def _undo_all(self) -> list[str]:
        """Undoes what was done, the last first; what could not be undone."""
        left = []
        for what, undo in reversed(self._undo):
            try:
                undo()
            except OpenSearchError as error:
                left.append(f"{what} ({error})")
        self._undo.clear()
        return left

    def _apply_settings(self, plan: Plan) -> bool:
        facts = self._cluster.facts()
        body = to_apply(plan.settings, self._owner, facts)
        if body is None:
            self._say("unchanged cluster settings")
            return False
        for setting in plan.settings:
            value = f"+= {setting.value[-1]}" if isinstance(setting.value, list) else f"= {json.dumps(setting.value)}"
            self._say(f"cluster setting {setting.key} {value}: {setting.why}")
        try:
            self._write("PUT", "/_cluster/settings", {"persistent": body})
        except RequestFailed as error:
            if plan.settings or error.status != 403:
                raise
            self._say("cluster settings are as they must be; a teardown of another set-up may put them back")
            return False
        before = {"persistent": {key: facts.persistent.get(key) for key in body}}
        self._undoing("cluster settings", lambda: self._cluster.request("PUT", "/_cluster/settings", before))
        return True

    def _ensure(self, resource: Resource, body: Mapping[str, Any]) -> tuple[str, bool]:
        """The id of what is there in the end, and whether something was done for it."""
        print_ = fingerprint(resource, body)
        found = find(self._cluster, resource.kind, resource.name)
        if same := next((f for f in found if f.fingerprint == print_ and not f.edited), None):
            deployed = resource.kind != "model" or same.state == "DEPLOYED"
            if not deployed:
                self._deploy(same.id)
            self._say(f"{'unchanged' if deployed else 'deployed'} {resource.kind} {resource.name}")
            return same.id, not deployed
        marked_body = marked(resource.kind, body, self._owner, print_)
        if found and resource.kind == "model group":  # whose name no other may have
            id_ = self._change(found[0], marked_body)
            self._done(f"changed {resource.kind} {resource.name}")
            return id_, True
        id_ = self._create(resource, marked_body)
        self._done(f"{'replaced' if found else 'created'} {resource.kind} {resource.name}")
        return id_, True

    def _change(self, group: Found, body: Mapping[str, Any]) -> str:
        self._write("PUT", group.path, body)
        before = {key: group.body[key] for key in ("name", "description") if key in group.body}
        if access := group.body.get("access"):
            before["access_mode"] = access
        if access == "restricted":
            before["backend_roles"] = group.body["backend_roles"]
        what = f"{group.kind} {group.name}"
        self._undoing(what, lambda: self._cluster.request("PUT", group.path, before))
        return group.id

    def _create(self, resource: Resource, body: Mapping[str, Any]) -> str:
        if resource.kind in NAMED:
            path = path_of(resource.kind, resource.name)
            before = next((f.body for f in find(self._cluster, resource.kind, resource.name)), None)
            self._write("PUT", path, body)
            request = self._cluster.request
            what = f"{resource.kind} {resource.name}"
            self._undoing(what, lambda: request("PUT", path, before) if before else request("DELETE", path))
            return resource.name
        if resource.tokenizer:
            return self._upload(resource, body, resource.tokenizer)
        path, create, id_name = WITH_ID[resource.kind]

        def unless_no_key_yet() -> Any:
            try:
                return self._write("POST", path + create, body)
            except RequestFailed as error:
                if any(message in error.reason for message in NO_KEY_YET):
                    return None
                raise

        answer = self._wait(f"the key that encrypts a {resource.kind}", unless_no_key_yet)
        id_ = str(answer.get(id_name, resource.reference))
        self._undo_creation(resource, id_)
        if resource.kind == "model":
            self._wait_until_deployed(id_)
        return id_

    def _upload(self, resource: Resource, body: Mapping[str, Any], content: bytes) -> str:
        chunks = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
        meta = {
            **body,
            "total_chunks": len(chunks),
            "model_content_size_in_bytes": len(content),
            "model_content_hash_value": hashlib.sha256(content).hexdigest(),
        }
        id_ = str(self._write("POST", f"{ML}/models/_register_meta", meta).get("model_id", resource.reference))
        self._undo_creation(resource, id_)
        for number, chunk in enumerate(chunks):
            self._write("POST", f"{ML}/models/{id_}/upload_chunk/{number}", chunk)
        self._deploy(id_)
        return id_

    def _deploy(self, model_id: str) -> None:
        self._write("POST", f"{ML}/models/{model_id}/_deploy")
        self._wait_until_deployed(model_id)

    def _wait_until_deployed(self, model_id: str) -> None:
        tries, next_try = 0, 0.0

        def again() -> None:
            """A node had no key yet, or was away. One that takes itself to be at it begins again only after an end."""
            nonlocal tries, next_try
            if time.monotonic() > next_try:
                if tries:
                    self._write("POST", f"{ML}/models/{model_id}/_undeploy")
                self._write("POST", f"{ML}/models/{model_id}/_deploy")
                tries, next_try = tries + 1, time.monotonic() + DEPLOY_SECONDS

        def deployed() -> bool | None:
            model = self._cluster.request("GET", f"{ML}/models/{model_id}")
            if model["model_state"] == "DEPLOY_FAILED":
                raise OpenSearchError(
                    f"model {model['name']} ({model_id}) was not deployed: POST {ML}/models/{model_id}/_deploy and "
                    f"GET {ML}/tasks/<the task that it names> say why"
                )
            if model["model_state"] == "PARTIALLY_DEPLOYED":
                again()
            return True if model["model_state"] == "DEPLOYED" else None

        if not self._dry_run:
            self._wait(f"the deployment of model {model_id}", deployed)

    def _delete(self, found: Found) -> bool:
        def unless_in_use() -> Any:
            if found.kind == "model":
                self._write("POST", f"{found.path}/_undeploy")
            try:
                return self._write("DELETE", found.path)
            except RequestFailed as error:
                # Its nodes may report a deployment after it was taken back.
                if found.kind == "model" and "deploying or deployed state" in error.reason:
                    return None
                # The parts of an uploaded model go some time after it, and keep its group as long.
                if found.kind == "model group" and error.status == 409:
                    return None
                raise

        try:
            self._wait(f"the end of what uses {found.kind} {found.name}", unless_in_use)
        except RequestFailed as error:
            if found.kind != "connector" or error.status != 409:
                raise
            # OpenSearch looks for its models by the words of its id, and finds those of connectors with similar ids.
            self._say(f"kept connector {found.name} ({found.id}), which does no harm: {error.reason}")
            return False
        self._done(f"removed {found.kind} {found.name}")
        return True

    def _undo_creation(self, resource: Resource, id_: str) -> None:
        made = Found(resource.kind, resource.name, id_, self._owner, None)
        self._undoing(f"{resource.kind} {resource.name}", lambda: self._delete(made))

    def _undoing(self, what: str, undo: Callable[[], object]) -> None:
        if not self._dry_run:
            self._undo.append((what, undo))

    def _write(self, method: str, path: str, body: Body = None) -> Any:
        if not self._dry_run:
            return self._cluster.request(method, path, body)
        if body and not isinstance(body, bytes) and "credential" in body:
            body = {**body, "credential": "<not shown>"}
        shown = (
            f"<{len(body)} bytes>"
            if isinstance(body, bytes)
            else body and json.dumps(body, indent=2, ensure_ascii=False)
        )
        self._say(f"{method} {path}" + (f"\n{shown}" if shown else ""))
        return {}

    def _done(self, line: str) -> None:
        self._say(f"would be: {line}" if self._dry_run else line)

    def _wait(self, what: str, ask: Callable[[], T | None]) -> T:
        """The first answer of `ask` that is not None."""
        deadline = time.monotonic() + self._timeout_seconds
        while (answer := ask()) is None:
            if time.monotonic() > deadline:
                raise OpenSearchError(f"{what} took more than {self._timeout_seconds:.0f} s: look at the node's log")
            time.sleep(POLL_SECONDS)
        return answer


def _resolve(value: Any, ids: Mapping[str, str]) -> Any:
    """`value` with ids in place of references."""
    if isinstance(value, str):
        return ids.get(value, value)
    if isinstance(value, Mapping):
        return {key: _resolve(item, ids) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, ids) for item in value]
    return value
